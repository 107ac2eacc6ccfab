"""Options of NVIDIA's toolkit itself: where it comes from, and the content of its config.toml.

Invariant: as in `agent.options.table`, of whose table this is a part.
"""

from __future__ import annotations

from agent.options.option import MAKE_SPEC, NODE, Option

_CRT = "--nvidia-container-runtime"

TOOLKIT = (
    Option("toolkit_install_dir", "path", ("TOOLKIT_INSTALL_DIR", "ROOT"),
           "The toolkit is in the directory `toolkit` below this one.",
           default="/usr/local/nvidia", flags=("--toolkit-install-dir", "--root"),
           commands=(*NODE, *MAKE_SPEC), main=True),
    Option("toolkit_source_root", "path", ("TOOLKIT_SOURCE_ROOT",),
           "Unpacked packages to install the toolkit from, or a directory with deb and rpm below "
           "it.",
           unset="/artifacts in a container that has it, else the toolkit that is on the host"),
    Option("toolkit_package_type", "choice", ("TOOLKIT_PACKAGE_TYPE",),
           "Which of deb and rpm to install; auto: rpm where the host has /usr/bin/rpm.",
           default="auto", choices=("auto", "deb", "rpm")),
    Option("create_device_nodes", "list", ("CREATE_DEVICE_NODES",),
           'Device nodes to make where they are missing: control; "" or none for none. With CDI '
           "only.",
           default="control", keep_empty=True),
    Option("cdi_default_kind", "text", ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND",),
           "Kind of a device that is asked for by its name alone, as in NVIDIA_VISIBLE_DEVICES.",
           default="nvidia.com/gpu", flags=(_CRT + ".modes.cdi.default-kind",)),
    Option("low_level_runtimes", "list", ("NVIDIA_CONTAINER_RUNTIME_RUNTIMES",),
           "What nvidia-container-runtime calls.",
           unset="what this node's handlers run, runc, crun", flags=(_CRT + ".runtimes",)),
    Option("runtime_debug", "file", ("NVIDIA_CONTAINER_RUNTIME_DEBUG",),
           "Log file of nvidia-container-runtime.",
           default="/dev/null", flags=(_CRT + ".debug", _CRT + "-debug")),
    Option("runtime_log_level", "text", ("NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL",),
           "What it logs.",
           default="info", flags=(_CRT + ".log-level", _CRT + "-debug-log-level")),
    Option("cli_debug", "file", ("NVIDIA_CONTAINER_CLI_DEBUG",),
           "Log file of nvidia-container-cli.",
           default="", flags=("--nvidia-container-cli.debug", "--nvidia-container-cli-debug")),
    Option("hook_skip_mode_detection", "bool",
           ("NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION",),
           "The OCI hook works whatever the mode is.",
           default="true", flags=(_CRT + "-hook.skip-mode-detection",)),
    Option("accept_envvar", "bool", ("ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED",),
           "May an unprivileged container ask for GPUs by NVIDIA_VISIBLE_DEVICES, past the "
           "scheduler.",
           unset="only where CDI is off",
           flags=("--accept-nvidia-visible-devices-envvar-when-unprivileged",)),
    Option("accept_mounts", "bool", ("ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS",),
           "May a container ask for GPUs by its mounts.",
           default="false", flags=("--accept-nvidia-visible-devices-as-volume-mounts",)),
    Option("opt_in_features", "list", ("NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES",),
           "Names to be true below `features` in config.toml."),
)  # fmt: skip
