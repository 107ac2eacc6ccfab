"""The table of every option: its flags, its environment variables, its kind and its default.

Invariant: an option is described only here (options of CDI specs in `agent.options.cdi`). The
command line, the environment, the help text and the valid values come from this table. Names and
precedence are those of nvidia-container-toolkit's installer (v1.20) for its options, so that
gpu-operator needs no change.
"""

from __future__ import annotations

from agent.options.cdi import SPECS
from agent.options.option import (
    CHANGE,
    DECIDE,
    MAKE_SPEC,
    NODE,
    READ_SPECS,
    RUN,
    Kind,
    Option,
    Topic,
)

_CRT = "--nvidia-container-runtime"
_NOT_ZERO = r".*[1-9].*"
_NO_CONTROL = r"[^\x00-\x1f\x7f]*"
_KIND = r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]/[A-Za-z][A-Za-z0-9_-]*[A-Za-z0-9]"
_KIND_NEEDS = "give VENDOR/CLASS, two or more characters each"
_LEVELS = ("panic", "fatal", "error", "warn", "warning", "info", "debug", "trace")
STRATEGIES = ("envvar", "volume-mounts", "cdi-annotations", "cdi-cri")


def _unsupported(name: str, flag: str, env: tuple[str, ...], kind: Kind = "text") -> Option:
    """An option of NVIDIA's installer that has no effect here."""
    text = "Accepted for compatibility; has no effect."
    return Option(name, kind, env, text, flags=(flag,), supported=False, keep_empty=True)


_RUNTIME = (
    Option("runtime", "choice", ("RUNTIME",),
           "Container runtime of this node; auto: found by its socket.",
           default="auto", flags=("--runtime", "-r"),
           choices=("auto", "containerd", "crio", "docker"),
           commands=(*NODE, *READ_SPECS), main=True),
    Option("socket", "path", ("RUNTIME_SOCKET", "CONTAINERD_SOCKET", "DOCKER_SOCKET"),
           "CRI socket of the runtime.",
           unset="the first usual one that answers", commands=(*NODE, *READ_SPECS), main=True),
    Option("config", "path",
           ("RUNTIME_CONFIG", "CONTAINERD_CONFIG", "CRIO_CONFIG", "DOCKER_CONFIG"),
           "Root configuration file. CRI-O's is never written; with CRI-O the option counts only "
           "if no process can be seen.",
           unset="the one that the running process loads", main=True),
    Option("host_root", "path", ("HOST_ROOT_MOUNT",),
           "Path at which the host's root directory is mounted.",
           unset="/host if that is a mount, else /",
           commands=(*NODE, *READ_SPECS, *MAKE_SPEC, "wait"), main=True),
    Option("drop_in_config", "path", ("RUNTIME_DROP_IN_CONFIG",),
           "Path of the agent's drop-in.",
           unset="conf.d/99-nvidia.toml beside the root file; 99-nvidia.conf in CRI-O's directory "
           "of drop-ins"),
    Option("drop_in_config_host_path", "path", ("RUNTIME_DROP_IN_CONFIG_HOST_PATH",),
           "Path of the drop-in on the host, if the agent sees it under another path."),
    Option("executable_path", "path", ("RUNTIME_EXECUTABLE_PATH",),
           "Executable that checks a configuration.",
           unset="the executable of the running process"),
    Option("config_source", "list", ("RUNTIME_CONFIG_SOURCES", "RUNTIME_CONFIG_SOURCE"),
           "Where settings are read from: file, file=/path, command. Files always decide here.",
           flags=("--config-source", "--config-sources"), supported=False),
)  # fmt: skip

_RESTART = (
    Option("restart_mode", "choice", ("RUNTIME_RESTART_MODE", "CONTAINERD_RESTART_MODE"),
           "How to restart the runtime: auto (its systemd unit), systemd, signal (SIGTERM to its "
           "process, which its supervisor starts again), none (write files; the restart is left "
           "to you).",
           default="auto", choices=("auto", "systemd", "signal", "none"), main=True),
    Option("proof_timeout", "duration", ("AGENT_PROOF_TIMEOUT",),
           "Time limit for the proof after a restart.",
           default="60s", pattern=_NOT_ZERO, needs="give a time such as 60s"),
    Option("verify", "choice", ("AGENT_VERIFY",),
           "Also prove a restart by a pod under the default handler and each of ours; auto: if "
           "the sandbox image is on the node.",
           default="auto", choices=("auto", "off"), commands=("apply", "run")),
    Option("restart_spread", "duration", ("AGENT_RESTART_SPREAD",),
           "Delay a restart by a part of this time, counted from the start of run. The node's "
           "name decides the part, so that a first rollout does not restart all runtimes of a "
           "cluster at once. Until then nothing is changed. A node that needs no restart, a "
           "rollback, and a restart that becomes necessary after this time are not delayed. No "
           "effect with --no-daemon.",
           default="0", commands=RUN),
)  # fmt: skip

_DECISION = (
    Option("cdi_enabled", "bool", ("CDI_ENABLED", "ENABLE_CDI"),
           "Use CDI.",
           unset="true; nvidia-toolkit: false", flags=("--cdi-enabled", "--enable-cdi"),
           main=True),
    Option("set_as_default", "bool",
           ("NVIDIA_RUNTIME_SET_AS_DEFAULT", "CONTAINERD_SET_AS_DEFAULT", "DOCKER_SET_AS_DEFAULT"),
           "Make the handler the default runtime or not.",
           unset="by the decision", main=True),
    Option("device_list_strategy", "list", ("AGENT_DEVICE_LIST_STRATEGY",),
           "Override the device plugin's strategy in the status file.",
           unset="by the decision", choices=STRATEGIES, main=True),
    Option("native_cdi", "choice", ("AGENT_NATIVE_CDI",),
           "Override the evidence whether the runtime itself injects CDI devices.",
           default="auto", choices=("auto", "true", "false")),
    Option("enable_cdi_in_runtime", "bool", ("RUNTIME_ENABLE_CDI",),
           "Allow the agent to set enable_cdi in the runtime's configuration.",
           unset="as --cdi-enabled"),
    Option("runtime_name", "text",
           ("NVIDIA_RUNTIME_NAME", "CONTAINERD_RUNTIME_CLASS", "DOCKER_RUNTIME_NAME"),
           "Name of the handler.",
           default="nvidia", pattern=r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?",
           needs="give a name of letters, digits, dots and dashes, as Kubernetes requires",
           flags=("--runtime-name", "--nvidia-runtime-name", "--runtime-class")),
    Option("runtime_type", "text", ("CONTAINERD_RUNTIME_TYPE",),
           "runtime_type of a handler that cannot inherit one.",
           default="io.containerd.runc.v2"),
    Option("mode", "choice", ("NVIDIA_CONTAINER_RUNTIME_MODE",),
           "Mode of nvidia-container-runtime.",
           unset="by the decision",
           flags=(_CRT + ".mode", _CRT + "-mode"),
           choices=("auto", "cdi", "legacy", "csv", "jit-cdi")),
    Option("annotation_prefixes", "list",
           ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",),
           "Annotation prefixes that the handler answers.",
           unset="by the decision",
           pattern="[A-Za-z0-9.-]+/", needs="give a DNS name that ends in '/'",
           flags=(_CRT + ".modes.cdi.annotation-prefixes",)),
    Option("kubelet_version", "version", ("KUBELET_VERSION",),
           "Version of the kubelet (older than 1.28 knows no CDI field)."),
    Option("no_runtime_config", "bool", ("NO_RUNTIME_CONFIG",),
           "Leave the runtime's configuration alone: no edits, no restart.",
           default="false"),
)  # fmt: skip

_CRIO = (
    Option("crio_config_mode", "choice", ("CRIO_CONFIG_MODE",),
           "With CDI off on CRI-O: an OCI hook, or handlers as in containerd.",
           unset="hook", flags=("--config-mode",), choices=("hook", "config")),
    Option("crio_hooks_dir", "path", ("CRIO_HOOKS_DIR",),
           "Directory for the OCI hook; CRI-O has to read it (hooks_dir).",
           default="/usr/share/containers/oci/hooks.d", flags=("--hooks-dir",)),
    Option("crio_hook_filename", "text", ("CRIO_HOOK_FILENAME",),
           "Name of the OCI hook's file.",
           default="oci-nvidia-hook.json", flags=("--hook-filename",),
           pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.json",
           needs="give NAME.json, without a slash"),
)  # fmt: skip

_DRIVER = (
    Option("driver_root", "path", ("NVIDIA_DRIVER_ROOT", "DRIVER_ROOT"),
           "Root directory of the driver on the host.",
           unset="/run/nvidia/driver if a driver container provides it, else /",
           flags=("--driver-root", "--nvidia-driver-root"), main=True),
    Option("driver_root_ctr_path", "path", ("DRIVER_ROOT_CTR_PATH",),
           "Path of the driver root in the agent's container.",
           unset="below the host root"),
    Option("dev_root", "path", ("NVIDIA_DEV_ROOT", "DEV_ROOT"),
           "Directory on the host that has dev/nvidia*.",
           unset="the driver root, else /"),
    Option("dev_root_ctr_path", "path", ("DEV_ROOT_CTR_PATH",),
           "Path of --dev-root in the agent's container.",
           unset="below the host root"),
    Option("is_host_driver", "bool", ("IS_HOST_DRIVER",),
           "true: the driver root is /, unless an option gives another.",
           commands=DECIDE),
    Option("cdi_output_dir", "path", ("CDI_OUTPUT_DIR",),
           'Directory for CDI specs; "" means none.',
           default="/var/run/cdi", keep_empty=True, commands=(*NODE, *READ_SPECS)),
    Option("cdi_kind", "text", ("CDI_KIND",),
           "Kind (vendor/class) of the management spec.",
           default="management.nvidia.com/gpu", pattern=_KIND, needs=_KIND_NEEDS),
)  # fmt: skip

_TOOLKIT = (
    Option("toolkit_install_dir", "path", ("TOOLKIT_INSTALL_DIR", "ROOT"),
           "Parent of the toolkit's directory, which is called `toolkit`.",
           default="/usr/local/nvidia", flags=("--toolkit-install-dir", "--root"),
           pattern="[^:]+",
           needs="give a path without a colon, because it becomes a part of PATH",
           commands=(*NODE, *MAKE_SPEC), main=True),
    Option("toolkit_source_root", "path", ("TOOLKIT_SOURCE_ROOT",),
           "Directory of the toolkit's unpacked packages, or of the subdirectories deb and rpm "
           "with them.",
           unset="/artifacts if the container has it, else the toolkit on the host"),
    Option("toolkit_package_type", "choice", ("TOOLKIT_PACKAGE_TYPE",),
           "Type of the packages to install; auto: rpm if the host has /usr/bin/rpm, else deb.",
           default="auto", choices=("auto", "deb", "rpm")),
    Option("create_device_nodes", "list", ("CREATE_DEVICE_NODES",),
           'Missing device nodes to make: control; "" or none: no nodes. Only with CDI.',
           default="control", choices=("control", "none"), keep_empty=True),
    Option("cdi_default_kind", "text", ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND",),
           "Kind of a device that is requested without a kind, as by NVIDIA_VISIBLE_DEVICES.",
           default="nvidia.com/gpu", pattern=_KIND, needs=_KIND_NEEDS,
           flags=(_CRT + ".modes.cdi.default-kind",)),
    Option("low_level_runtimes", "list", ("NVIDIA_CONTAINER_RUNTIME_RUNTIMES",),
           "Low-level runtimes that nvidia-container-runtime tries.",
           unset="the programs of this node's handlers, runc, crun", flags=(_CRT + ".runtimes",),
           pattern=rf"(/({_NO_CONTROL}/)?)?(?!nvidia-container-runtime)[^/\x00-\x1f\x7f]+",
           needs="give a name or an absolute path such as runc, but not nvidia-container-runtime, "
           "which would call itself for ever"),
    Option("runtime_debug", "file", ("NVIDIA_CONTAINER_RUNTIME_DEBUG",),
           "Log file of nvidia-container-runtime.",
           default="/dev/null", flags=(_CRT + ".debug", _CRT + "-debug"),
           pattern=_NO_CONTROL, needs="give a plain path"),
    Option("runtime_log_level", "text", ("NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL",),
           "Log level of nvidia-container-runtime.",
           default="info", flags=(_CRT + ".log-level", _CRT + "-debug-log-level"),
           choices=_LEVELS),
    Option("cli_debug", "file", ("NVIDIA_CONTAINER_CLI_DEBUG",),
           "Log file of nvidia-container-cli.",
           default="", flags=("--nvidia-container-cli.debug", "--nvidia-container-cli-debug"),
           pattern=_NO_CONTROL, needs="give a plain path"),
    Option("hook_skip_mode_detection", "bool",
           ("NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION",),
           "The OCI hook works in every mode.",
           default="true", flags=(_CRT + "-hook.skip-mode-detection",)),
    Option("accept_envvar", "bool", ("ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED",),
           "Allow an unprivileged container to request GPUs by NVIDIA_VISIBLE_DEVICES, past the "
           "scheduler.",
           unset="only if CDI is off",
           flags=("--accept-nvidia-visible-devices-envvar-when-unprivileged",)),
    Option("accept_mounts", "bool", ("ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS",),
           "Allow a container to request GPUs by its mounts.",
           default="false", flags=("--accept-nvidia-visible-devices-as-volume-mounts",)),
    Option("opt_in_features", "list", ("NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES",),
           "Names of features to enable in config.toml (`features`).",
           pattern="[A-Za-z0-9_-]{1,100}", needs="give letters, digits and dashes"),
)  # fmt: skip

_STATE = (
    Option("status_dir", "path", ("OUTPUT_DIR",),
           "Directory of toolkit-ready.",
           default="/run/nvidia/validations", commands=(*NODE, "wait")),
    Option("state_dir", "path", ("AGENT_STATE_DIR",),
           "Directory of the journal and of saved originals; must lie on the host.",
           default="/var/lib/toolkit-agent"),
)  # fmt: skip

_DAEMON = (
    Option("interval", "duration", ("AGENT_INTERVAL",),
           "Time between two checks of the whole node. A change starts a check, too.",
           default="10m", pattern=_NOT_ZERO, needs="give a time such as 10m"),
    Option("node_name", "text", ("NODE_NAME",),
           "Name of the node, for --restart-spread.",
           unset="the host name"),
    Option("ready_file", "path", ("AGENT_READY_FILE",),
           "File for a readiness probe. It exists if the last convergence of this process "
           "succeeded; otherwise FILE.reason says why. The path is not below the host root; use "
           "a tmpfs of the pod."),
    Option("no_daemon", "bool", ("NO_DAEMON",),
           "End after the first convergence instead of staying.",
           default="false", flags=("--no-daemon", "-n")),
    Option("pid_file", "path", ("TOOLKIT_PID_FILE", "PID_FILE"),
           'File with the pid and the lock of a running agent; "" means none.',
           unset="none; nvidia-toolkit: /run/nvidia/toolkit/toolkit.pid", keep_empty=True,
           pattern="(.*/)?toolkit[.]pid",
           needs="its name has to be toolkit.pid, as for NVIDIA's installer"),
    Option("enable_nri_plugin", "bool", ("ENABLE_NRI_PLUGIN",),
           "As --no-runtime-config, except with --no-daemon; there is no NRI plugin.",
           default="false", flags=("--enable-nri-plugin", "-p")),
)  # fmt: skip

_LOG = (
    Option("debug", "bool", ("TOOLKIT_DEBUG",),
           "Log more: the evidence, and the decisions.",
           default="false", flags=("--debug", "-v", "--verbose"), main=True),
)  # fmt: skip

_UNSUPPORTED = (
    _unsupported("use_legacy_config", "--use-legacy-config",
                 ("CONTAINERD_USE_LEGACY_CONFIG",), "bool"),
    _unsupported("runtime_config_override", "--runtime-config-override",
                 ("RUNTIME_CONFIG_OVERRIDE", "CONTAINERD_RUNTIME_CONFIG_OVERRIDE")),
    _unsupported("nri_plugin_index", "--nri-plugin-index", ("NRI_PLUGIN_INDEX",)),
    _unsupported("nri_socket", "--nri-socket", ("NRI_SOCKET",)),
    _unsupported("nri_namespace", "--nri-namespace", ("NRI_NAMESPACE",)),
    _unsupported("nri_management_namespaces", "--nri-management-cdi-device-namespaces",
                 ("NRI_MANAGEMENT_CDI_DEVICE_NAMESPACES",), "list"),
    _unsupported("ignore_errors", "--ignore-errors", (), "bool"),
)  # fmt: skip

# The topics of help texts, in their order. "Options" are shown with a command's own.
TOPICS = (
    Topic("Runtime", NODE, _RUNTIME),
    Topic("Restart", CHANGE, _RESTART),
    Topic("Decision", DECIDE, _DECISION),
    Topic("CRI-O with CDI off", DECIDE, _CRIO),
    Topic("Driver and CDI specs", (*DECIDE, *MAKE_SPEC), (*_DRIVER, *SPECS)),
    Topic("Toolkit", DECIDE, _TOOLKIT),
    Topic("State and status", NODE, _STATE),
    Topic("Daemon", RUN, _DAEMON),
    Topic("Options", NODE, _LOG),
    Topic("Without effect", (), _UNSUPPORTED),
)
OPTIONS: tuple[Option, ...] = tuple(option for topic in TOPICS for option in topic.options)
