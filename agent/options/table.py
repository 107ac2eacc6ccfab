"""The table of every option: its flags, its environment variables, its kind and its default.

Invariant: an option is described here (those of NVIDIA's toolkit in `agent.options.toolkit`, those
of CDI specs in `agent.options.cdi`) and nowhere else. The command line, the environment and the
help text come from this table. Names and precedence are those of nvidia-container-toolkit's
installer (v1.20) where it has the option, so that gpu-operator needs no change.
"""

from __future__ import annotations

from agent.options.cdi import SPECS
from agent.options.option import Kind, Option
from agent.options.toolkit import TOOLKIT


def _unsupported(name: str, flag: str, env: tuple[str, ...], kind: Kind = "text") -> Option:
    """An option of NVIDIA's installer that has no effect here."""
    text = "Accepted for compatibility; not acted on."
    return Option(name, kind, env, text, flags=(flag,), supported=False, keep_empty=True)


_RUNTIME = (
    Option("runtime", "choice", ("RUNTIME",),
           "Container runtime of this node; auto finds it by its socket.",
           default="auto", flags=("--runtime", "-r"),
           choices=("auto", "containerd", "crio", "docker")),
    Option("socket", "path", ("RUNTIME_SOCKET", "CONTAINERD_SOCKET", "DOCKER_SOCKET"),
           "CRI socket of the runtime."),
    Option("config", "path",
           ("RUNTIME_CONFIG", "CONTAINERD_CONFIG", "CRIO_CONFIG", "DOCKER_CONFIG"),
           "Root configuration file; default: the one that the running process loads. CRI-O's is "
           "never written; it counts only where no process can be seen."),
    Option("drop_in_config", "path", ("RUNTIME_DROP_IN_CONFIG",),
           "Our drop-in; default: conf.d/99-nvidia.toml beside the root file, 99-nvidia.conf in "
           "the directory from which CRI-O takes drop-ins."),
    Option("drop_in_config_host_path", "path", ("RUNTIME_DROP_IN_CONFIG_HOST_PATH",),
           "Name of the drop-in on the host, where it differs from what we see."),
    Option("executable_path", "path", ("RUNTIME_EXECUTABLE_PATH",),
           "Executable that checks a configuration; default: that of the running process."),
    Option("config_source", "list", ("RUNTIME_CONFIG_SOURCES", "RUNTIME_CONFIG_SOURCE"),
           "Where settings are read from: file, file=/path, command. Files always decide here.",
           flags=("--config-source", "--config-sources"), supported=False),
    Option("restart_mode", "choice", ("RUNTIME_RESTART_MODE", "CONTAINERD_RESTART_MODE"),
           "How to restart the runtime: auto (its systemd unit), systemd, signal (SIGTERM to a "
           "checked process that something starts again), none (write files, somebody else "
           "restarts).",
           default="auto", choices=("auto", "systemd", "signal", "none")),
    Option("host_root", "path", ("HOST_ROOT_MOUNT",),
           "Where the host's root directory is mounted; default /host where that is a mount, "
           "else /."),
    Option("runtime_name", "text",
           ("NVIDIA_RUNTIME_NAME", "CONTAINERD_RUNTIME_CLASS", "DOCKER_RUNTIME_NAME"),
           "Name of the handler.",
           default="nvidia", flags=("--runtime-name", "--nvidia-runtime-name", "--runtime-class")),
    Option("set_as_default", "bool",
           ("NVIDIA_RUNTIME_SET_AS_DEFAULT", "CONTAINERD_SET_AS_DEFAULT", "DOCKER_SET_AS_DEFAULT"),
           "Make the handler the default runtime or not; default: what the decision says."),
    Option("runtime_type", "text", ("CONTAINERD_RUNTIME_TYPE",),
           "runtime_type of a handler that has none to inherit.",
           default="io.containerd.runc.v2"),
)  # fmt: skip

_CDI = (
    Option("cdi_enabled", "bool", ("CDI_ENABLED", "ENABLE_CDI"),
           "Use CDI; default true (nvidia-toolkit: false).",
           flags=("--cdi-enabled", "--enable-cdi")),
    Option("enable_cdi_in_runtime", "bool", ("RUNTIME_ENABLE_CDI",),
           "May the runtime's own enable_cdi be switched on; default: as --cdi-enabled."),
    Option("native_cdi", "choice", ("AGENT_NATIVE_CDI",),
           "Override what the runtime says about native CDI.",
           default="auto", choices=("auto", "true", "false")),
    Option("mode", "choice", ("NVIDIA_CONTAINER_RUNTIME_MODE",),
           "Mode of nvidia-container-runtime; default: what the decision says.",
           flags=("--nvidia-container-runtime.mode", "--nvidia-container-runtime-mode"),
           choices=("auto", "cdi", "legacy", "csv", "jit-cdi")),
    Option("annotation_prefixes", "list",
           ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",),
           "Annotation prefixes that the handler answers; default: what the decision says.",
           flags=("--nvidia-container-runtime.modes.cdi.annotation-prefixes",)),
    Option("device_list_strategy", "list", ("AGENT_DEVICE_LIST_STRATEGY",),
           "Override the device plugin's strategy in the status file."),
    Option("kubelet_version", "version", ("KUBELET_VERSION",),
           "Version of the kubelet (older than 1.28 knows no CDI field)."),
    Option("cdi_output_dir", "path", ("CDI_OUTPUT_DIR",),
           'Directory for CDI specs; "" means none.',
           default="/var/run/cdi", keep_empty=True),
    Option("cdi_kind", "text", ("CDI_KIND",),
           "Kind (vendor/class) of the management spec.",
           default="management.nvidia.com/gpu"),
    Option("driver_root", "path", ("NVIDIA_DRIVER_ROOT", "DRIVER_ROOT"),
           "Root directory of the driver on the host; default /run/nvidia/driver where a driver "
           "container has put one there, else /.",
           flags=("--driver-root", "--nvidia-driver-root")),
    Option("driver_root_ctr_path", "path", ("DRIVER_ROOT_CTR_PATH",),
           "Where we see it; default: below the host root."),
    Option("dev_root", "path", ("NVIDIA_DEV_ROOT", "DEV_ROOT"),
           "Directory on the host that has dev/nvidia*; default: the driver root, else /."),
    Option("dev_root_ctr_path", "path", ("DEV_ROOT_CTR_PATH",),
           "Where we see it; default: below the host root."),
    Option("crio_config_mode", "choice", ("CRIO_CONFIG_MODE",),
           "With CDI off on CRI-O: an OCI hook, or handlers as in containerd.",
           flags=("--config-mode",), choices=("hook", "config")),
    Option("crio_hooks_dir", "path", ("CRIO_HOOKS_DIR",),
           "Directory for the OCI hook; CRI-O has to read it (hooks_dir).",
           default="/usr/share/containers/oci/hooks.d", flags=("--hooks-dir",)),
    Option("crio_hook_filename", "text", ("CRIO_HOOK_FILENAME",),
           "Name of the OCI hook's file.",
           default="oci-nvidia-hook.json", flags=("--hook-filename",)),
)  # fmt: skip

_AGENT = (
    Option("status_dir", "path", ("OUTPUT_DIR",),
           "Directory of toolkit-ready.",
           default="/run/nvidia/validations"),
    Option("state_dir", "path", ("AGENT_STATE_DIR",),
           "Directory of the journal and of saved originals; must lie on the host.",
           default="/var/lib/toolkit-agent"),
    Option("proof_timeout", "seconds", ("AGENT_PROOF_TIMEOUT",),
           "Seconds that a restarted runtime has to prove itself.",
           default="60"),
    Option("interval", "seconds", ("AGENT_INTERVAL",),
           "run: seconds between two looks at the whole node, besides those when something "
           "changed.",
           default="600"),
    Option("restart_spread", "duration", ("AGENT_RESTART_SPREAD",),
           "run: put a restart that is needed off by a part of this time, such as 300, 300s or "
           "5m, counted from the start of run; the node's name decides the part, so that a first "
           "rollout does not restart all runtimes of a cluster at once. Meanwhile nothing is "
           "touched. A node that is right is not held up, nor is a rollback, nor a restart that "
           "becomes necessary after this time. Of no effect with --no-daemon.",
           default="0"),
    Option("node_name", "text", ("NODE_NAME",),
           "run: name of the node, for --restart-spread; default: the host name."),
    Option("ready_file", "path", ("AGENT_READY_FILE",),
           "run: file that is there while the last convergence of this very process succeeded, "
           "for a readiness probe; FILE.reason says why it is not there. It is this process's "
           "own file (not below the host root): put it into memory of the pod."),
    Option("no_runtime_config", "bool", ("NO_RUNTIME_CONFIG",),
           "Leave the runtime's configuration alone: no edits, no restart.",
           default="false"),
    Option("no_daemon", "bool", ("NO_DAEMON",),
           "run, nvidia-toolkit: end after the first convergence instead of staying.",
           default="false", flags=("--no-daemon", "-n")),
    Option("debug", "bool", ("TOOLKIT_DEBUG",),
           "Log more.",
           default="false"),
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

_OPERATOR = (
    Option("pid_file", "path", ("TOOLKIT_PID_FILE", "PID_FILE"),
           'run: has our pid, and our lock, while we run; "" means none. Default: none; '
           "nvidia-toolkit: /run/nvidia/toolkit/toolkit.pid.",
           keep_empty=True),
    Option("is_host_driver", "bool", ("IS_HOST_DRIVER",),
           "True: the driver root is /, where no option names another."),
    Option("enable_nri_plugin", "bool", ("ENABLE_NRI_PLUGIN",),
           "As --no-runtime-config, except with --no-daemon; the NRI plugin itself is not "
           "served.",
           default="false", flags=("--enable-nri-plugin", "-p")),
)  # fmt: skip

OPTIONS: tuple[Option, ...] = (
    *_RUNTIME, *_CDI, *SPECS, *TOOLKIT, *_AGENT, *_OPERATOR, *_UNSUPPORTED,
)  # fmt: skip
