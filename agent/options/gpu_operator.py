"""Values that follow from other options, as in gpu-operator and NVIDIA's installer.

Invariant: each explicit value without effect has a warning. No explicit value is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.errors import UsageError
from agent.options.option import Option
from agent.options.table import OPTIONS

PID_FILE = "/run/nvidia/toolkit/toolkit.pid"
_NRI = "nri_"


def is_relevant(name: str, values: Mapping[str, Any]) -> bool:
    """Would NVIDIA's installer use this unsupported option, so that a warning makes sense? Options
    of its NRI plugin have no effect without the plugin, and gpu-operator sends one of them to every
    node."""
    return not name.startswith(_NRI) or values["enable_nri_plugin"]


def overruled_variables(
    env: Mapping[str, str],
    origins: Mapping[str, str],
    parse: Callable[[Option, str, str], object],
) -> Iterator[str]:
    """A warning for each variable that another variable of the same option overrules. `parse` is
    `settings.parse`.

    gpu-operator always sets NVIDIA_RUNTIME_SET_AS_DEFAULT=false, which makes an additional
    CONTAINERD_SET_AS_DEFAULT=true ineffective.
    """

    def value(option: Option, text: str) -> object:
        try:
            return parse(option, text, option.name)
        except UsageError:
            return text  # an invalid value without effect is no error

    for option in OPTIONS:
        first = origins[option.name]
        if not option.supported or first not in option.env:
            continue
        effective = env[first].strip()
        for name in option.env[option.env.index(first) + 1 :]:
            text = env.get(name, "").strip()
            if text and value(option, text) != value(option, effective):
                yield (
                    f"{name}={text} is ignored: {first}={effective} is set, too, and has "
                    f"precedence; set {first} instead"
                )


def complete(values: dict[str, Any], origins: dict[str, str], entry: str) -> Iterator[str]:
    """Add the values that follow from others to `values` and `origins`. Yields warnings."""
    if values["pid_file"] is None and entry == "nvidia-toolkit":
        values["pid_file"] = PID_FILE
    values["pid_file"] = values["pid_file"] or None
    # gpu-operator's validator always sets IS_HOST_DRIVER, but not always the driver root.
    if values["is_host_driver"] and values["driver_root"] is None:
        values["driver_root"], origins["driver_root"] = "/", origins["is_host_driver"]
    if values["enable_nri_plugin"]:
        yield from _complete_for_nri(values, origins)


def _complete_for_nri(values: dict[str, Any], origins: dict[str, str]) -> Iterator[str]:
    """NVIDIA's NRI mode is its mode without runtime configuration, plus an NRI plugin. In that mode
    gpu-operator mounts neither the runtime's configuration nor its socket."""
    origin = origins["enable_nri_plugin"]
    if values["no_daemon"]:
        yield f"{origin} is ignored with --no-daemon, as by NVIDIA's installer"
        return
    if not values["no_runtime_config"]:
        values["no_runtime_config"], origins["no_runtime_config"] = True, origin
    yield (
        f"{origin}: the runtime's configuration is left alone, as in NVIDIA's NRI mode, but there "
        "is no NRI plugin: unless the runtime or another plugin answers nvidia.cdi.k8s.io/ "
        "annotations, pods get no GPU, also on nodes that worked before"
    )
