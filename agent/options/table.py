"""The table of every option: its flags, its environment variables, its kind and its default.

Invariant: an option is described here (those of NVIDIA's toolkit in `agent.options.toolkit`, those
of CDI specs in `agent.options.cdi`) and nowhere else. The command line, the environment and the
help text come from this table. Names and precedence are those of nvidia-container-toolkit's
installer (v1.20) where it has the option, so that gpu-operator needs no change.
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
from agent.options.toolkit import TOOLKIT


def _unsupported(name: str, flag: str, env: tuple[str, ...], kind: Kind = "text") -> Option:
    """An option of NVIDIA's installer that has no effect here."""
    text = "Accepted for compatibility; not acted on."
    return Option(name, kind, env, text, flags=(flag,), supported=False, keep_empty=True)


_RUNTIME = (
    Option("runtime", "choice", ("RUNTIME",),
           "Container runtime of this node; auto: found by its socket.",
           default="auto", flags=("--runtime", "-r"),
           choices=("auto", "containerd", "crio", "docker"),
           commands=(*NODE, *READ_SPECS), main=True),
    Option("socket", "path", ("RUNTIME_SOCKET", "CONTAINERD_SOCKET", "DOCKER_SOCKET"),
           "CRI socket of the runtime.",
           unset="the first usual one that exists", commands=(*NODE, *READ_SPECS), main=True),
    Option("config", "path",
           ("RUNTIME_CONFIG", "CONTAINERD_CONFIG", "CRIO_CONFIG", "DOCKER_CONFIG"),
           "Root configuration file. CRI-O's is never written; it counts only where no process "
           "can be seen.",
           unset="the one that the running process loads", main=True),
    Option("host_root", "path", ("HOST_ROOT_MOUNT",),
           "Where the host's root directory is mounted.",
           unset="/host where that is a mount, else /",
           commands=(*NODE, *READ_SPECS, *MAKE_SPEC, "wait"), main=True),
    Option("drop_in_config", "path", ("RUNTIME_DROP_IN_CONFIG",),
           "Our drop-in.",
           unset="conf.d/99-nvidia.toml beside the root file; 99-nvidia.conf in the directory from "
           "which CRI-O takes drop-ins"),
    Option("drop_in_config_host_path", "path", ("RUNTIME_DROP_IN_CONFIG_HOST_PATH",),
           "Name of the drop-in on the host, where it differs from what we see."),
    Option("executable_path", "path", ("RUNTIME_EXECUTABLE_PATH",),
           "Executable that checks a configuration.",
           unset="that of the running process"),
    Option("config_source", "list", ("RUNTIME_CONFIG_SOURCES", "RUNTIME_CONFIG_SOURCE"),
           "Where settings are read from: file, file=/path, command. Files always decide here.",
           flags=("--config-source", "--config-sources"), supported=False),
)  # fmt: skip

_RESTART = (
    Option("restart_mode", "choice", ("RUNTIME_RESTART_MODE", "CONTAINERD_RESTART_MODE"),
           "How to restart the runtime: auto (its systemd unit), systemd, signal (SIGTERM to a "
           "checked process that something starts again), none (write files, somebody else "
           "restarts).",
           default="auto", choices=("auto", "systemd", "signal", "none"), main=True),
    Option("proof_timeout", "seconds", ("AGENT_PROOF_TIMEOUT",),
           "How long a restarted runtime may take to prove itself.",
           default="60"),
    Option("verify", "choice", ("AGENT_VERIFY",),
           "Whether a restarted runtime also has to run a pod under the default handler and each "
           "of ours; auto: where the sandbox image is on the node.",
           default="auto", choices=("auto", "off"), commands=("apply", "run")),
    Option("restart_spread", "duration", ("AGENT_RESTART_SPREAD",),
           "Put a restart that is needed off by a part of this time, such as 300, 300s or "
           "5m, counted from the start of run; the node's name decides the part, so that a first "
           "rollout does not restart all runtimes of a cluster at once. Meanwhile nothing is "
           "touched. A node that is right is not held up, nor is a rollback, nor a restart that "
           "becomes necessary after this time. Of no effect with --no-daemon.",
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
           unset="what the decision says", main=True),
    Option("device_list_strategy", "list", ("AGENT_DEVICE_LIST_STRATEGY",),
           "Override the device plugin's strategy in the status file.",
           unset="what the decision says", main=True),
    Option("native_cdi", "choice", ("AGENT_NATIVE_CDI",),
           "Override what the runtime says about native CDI.",
           default="auto", choices=("auto", "true", "false")),
    Option("enable_cdi_in_runtime", "bool", ("RUNTIME_ENABLE_CDI",),
           "May the runtime's own enable_cdi be switched on.",
           unset="as --cdi-enabled"),
    Option("runtime_name", "text",
           ("NVIDIA_RUNTIME_NAME", "CONTAINERD_RUNTIME_CLASS", "DOCKER_RUNTIME_NAME"),
           "Name of the handler.",
           default="nvidia", flags=("--runtime-name", "--nvidia-runtime-name", "--runtime-class")),
    Option("runtime_type", "text", ("CONTAINERD_RUNTIME_TYPE",),
           "runtime_type of a handler that has none to inherit.",
           default="io.containerd.runc.v2"),
    Option("mode", "choice", ("NVIDIA_CONTAINER_RUNTIME_MODE",),
           "Mode of nvidia-container-runtime.",
           unset="what the decision says",
           flags=("--nvidia-container-runtime.mode", "--nvidia-container-runtime-mode"),
           choices=("auto", "cdi", "legacy", "csv", "jit-cdi")),
    Option("annotation_prefixes", "list",
           ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",),
           "Annotation prefixes that the handler answers.",
           unset="what the decision says",
           flags=("--nvidia-container-runtime.modes.cdi.annotation-prefixes",)),
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
           default="oci-nvidia-hook.json", flags=("--hook-filename",)),
)  # fmt: skip

_DRIVER = (
    Option("driver_root", "path", ("NVIDIA_DRIVER_ROOT", "DRIVER_ROOT"),
           "Root directory of the driver on the host.",
           unset="/run/nvidia/driver where a driver container has put one there, else /",
           flags=("--driver-root", "--nvidia-driver-root"), main=True),
    Option("driver_root_ctr_path", "path", ("DRIVER_ROOT_CTR_PATH",),
           "Where we see it.",
           unset="below the host root"),
    Option("dev_root", "path", ("NVIDIA_DEV_ROOT", "DEV_ROOT"),
           "Directory on the host that has dev/nvidia*.",
           unset="the driver root, else /"),
    Option("dev_root_ctr_path", "path", ("DEV_ROOT_CTR_PATH",),
           "Where we see it.",
           unset="below the host root"),
    Option("is_host_driver", "bool", ("IS_HOST_DRIVER",),
           "True: the driver root is /, where no option names another.",
           commands=DECIDE),
    Option("cdi_output_dir", "path", ("CDI_OUTPUT_DIR",),
           'Directory for CDI specs; "" means none.',
           default="/var/run/cdi", keep_empty=True, commands=(*NODE, *READ_SPECS)),
    Option("cdi_kind", "text", ("CDI_KIND",),
           "Kind (vendor/class) of the management spec.",
           default="management.nvidia.com/gpu"),
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
    Option("interval", "seconds", ("AGENT_INTERVAL",),
           "How long between two looks at the whole node, besides those when something changed.",
           default="600"),
    Option("node_name", "text", ("NODE_NAME",),
           "Name of the node, for --restart-spread.",
           unset="the host name"),
    Option("ready_file", "path", ("AGENT_READY_FILE",),
           "File that is there while the last convergence of this very process succeeded, "
           "for a readiness probe; FILE.reason says why it is not there. It is this process's "
           "own file (not below the host root): put it into memory of the pod."),
    Option("no_daemon", "bool", ("NO_DAEMON",),
           "End after the first convergence instead of staying.",
           default="false", flags=("--no-daemon", "-n")),
    Option("pid_file", "path", ("TOOLKIT_PID_FILE", "PID_FILE"),
           'Has our pid, and our lock, while we run; "" means none.',
           unset="none; nvidia-toolkit: /run/nvidia/toolkit/toolkit.pid", keep_empty=True),
    Option("enable_nri_plugin", "bool", ("ENABLE_NRI_PLUGIN",),
           "As --no-runtime-config, except with --no-daemon; the NRI plugin itself is not "
           "served.",
           default="false", flags=("--enable-nri-plugin", "-p")),
)  # fmt: skip

_LOG = (
    Option("debug", "bool", ("TOOLKIT_DEBUG",),
           "Log more: what was seen, and what follows from it.",
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
    Topic("Toolkit", DECIDE, TOOLKIT),
    Topic("State and status", NODE, _STATE),
    Topic("Daemon", RUN, _DAEMON),
    Topic("Options", NODE, _LOG),
    Topic("Not acted on", (), _UNSUPPORTED),
)
OPTIONS: tuple[Option, ...] = tuple(option for topic in TOPICS for option in topic.options)
