"""What gpu-operator v26.7 puts into the toolkit's pod: variables, mounts, and what is run.

Facts of its assets/state-container-toolkit and of TransformToolkit in controllers/, told in our own
words; the values are those of the tables in controllers/transforms_test.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Env = Mapping[str, str]

# In the manifest, whatever the policy says.
ALWAYS: Env = {
    "ROOT": "/usr/local/nvidia",
    "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND": "management.nvidia.com/gpu",
    "NVIDIA_VISIBLE_DEVICES": "void",
    "TOOLKIT_PID_FILE": "/run/nvidia/toolkit/toolkit.pid",
    "NRI_NAMESPACE": "gpu-operator",
}
CDI: Env = {
    "CDI_ENABLED": "true",
    "NVIDIA_RUNTIME_SET_AS_DEFAULT": "false",
    "NVIDIA_CONTAINER_RUNTIME_MODE": "cdi",
    "CRIO_CONFIG_MODE": "config",
}
HOOK: Env = {"CRIO_CONFIG_MODE": "hook"}  # CDI off on CRI-O
NRI: Env = {"ENABLE_NRI_PLUGIN": "true", "NRI_SOCKET": "/runtime/nri-sock-dir/nri.sock"}
HOST_ROOT: Env = {"HOST_ROOT": "/"}  # where hostPaths.rootFS is set: the name on the host
CONTAINERD: Env = {
    "RUNTIME": "containerd",
    "CONTAINERD_RUNTIME_CLASS": "nvidia",
    "RUNTIME_CONFIG": "/runtime/config-dir/config.toml",
    "CONTAINERD_CONFIG": "/runtime/config-dir/config.toml",
    "RUNTIME_DROP_IN_CONFIG": "/runtime/config-dir.d/99-nvidia.toml",
    "RUNTIME_DROP_IN_CONFIG_HOST_PATH": "/etc/containerd/conf.d/99-nvidia.toml",
    "RUNTIME_SOCKET": "/runtime/sock-dir/containerd.sock",
    "CONTAINERD_SOCKET": "/runtime/sock-dir/containerd.sock",
}
NRI_CONTAINERD: Env = {"RUNTIME": "containerd", "CONTAINERD_RUNTIME_CLASS": "nvidia"}
# The user's toolkit.env for k3s; the rest is as for containerd, the drop-in's place included.
K3S: Env = {**CONTAINERD, "CONTAINERD_SET_AS_DEFAULT": "true"}
CRIO: Env = {
    "RUNTIME": "crio",
    "RUNTIME_CONFIG": "/runtime/config-dir/config.toml",
    "CRIO_CONFIG": "/runtime/config-dir/config.toml",
    "RUNTIME_DROP_IN_CONFIG": "/runtime/config-dir.d/99-nvidia.conf",
    "RUNTIME_DROP_IN_CONFIG_HOST_PATH": "/etc/crio/crio.conf.d/99-nvidia.conf",
}

# What the validator writes for a driver container and for a driver on the host.
DRIVER_CONTAINER: Env = {
    "IS_HOST_DRIVER": "false",
    "NVIDIA_DRIVER_ROOT": "/run/nvidia/driver",
    "DRIVER_ROOT_CTR_PATH": "/driver-root",
    "NVIDIA_DEV_ROOT": "/run/nvidia/driver",
    "DEV_ROOT_CTR_PATH": "/driver-root",
}
HOST_DRIVER: Env = {
    "IS_HOST_DRIVER": "true",
    "NVIDIA_DRIVER_ROOT": "/",
    "DRIVER_ROOT_CTR_PATH": "/host",
    "NVIDIA_DEV_ROOT": "/",
    "DEV_ROOT_CTR_PATH": "/host",
}


@dataclass(frozen=True)
class Bind:
    """A directory of the host in the pod."""

    host: str
    pod: str


MOUNTS = (
    Bind("/run/nvidia/toolkit", "/run/nvidia/toolkit"),
    Bind("/run/nvidia/validations", "/run/nvidia/validations"),
    Bind("/usr/local/nvidia", "/usr/local/nvidia"),
    Bind("/run/nvidia/driver", "/driver-root"),
    Bind("/var/run/cdi", "/var/run/cdi"),
)
HOOKS = Bind("/usr/share/containers/oci/hooks.d", "/usr/share/containers/oci/hooks.d")
CONTAINERD_MOUNTS = (
    Bind("/etc/containerd", "/runtime/config-dir"),
    Bind("/etc/containerd/conf.d", "/runtime/config-dir.d"),
    Bind("/run/containerd", "/runtime/sock-dir"),
)
K3S_MOUNTS = (
    Bind("/var/lib/rancher/k3s/agent/etc/containerd", "/runtime/config-dir"),
    Bind("/etc/containerd/conf.d", "/runtime/config-dir.d"),
    Bind("/run/k3s/containerd", "/runtime/sock-dir"),
)
CRIO_MOUNTS = (
    Bind("/etc/crio", "/runtime/config-dir"),
    Bind("/etc/crio/crio.conf.d", "/runtime/config-dir.d"),
)
NRI_MOUNTS = (Bind("/var/run/nri", "/runtime/nri-sock-dir"),)

# What the script does: wait, take over what the validator says, wait again, become the program.
SCRIPT = """\
#!/bin/bash
until [[ -f /run/nvidia/validations/driver-ready ]]; do
  echo "no driver yet"
  sleep 5
done
set -o allexport
cat /run/nvidia/validations/driver-ready
. /run/nvidia/validations/driver-ready
sleep 5
exec nvidia-toolkit
"""


def driver_ready(env: Env) -> str:
    """The file of that name: what is to be sourced."""
    return "".join(f"{key}={value}\n" for key, value in env.items())
