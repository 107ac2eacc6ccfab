"""What options mean together, where gpu-operator or NVIDIA's installer says so.

Invariant: a value that was given and does not count is named in a warning; none is changed that
somebody gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.errors import UsageError
from agent.options.option import Option
from agent.options.table import OPTIONS

PID_FILE = "/run/nvidia/toolkit/toolkit.pid"
_NRI = "nri_"


def counts(name: str, values: Mapping[str, Any]) -> bool:
    """Would upstream look at this option, which we do not act on? Those of its NRI plugin count
    with the plugin only, and gpu-operator sends one of them to every node."""
    return not name.startswith(_NRI) or values["enable_nri_plugin"]


def silenced(
    env: Mapping[str, str],
    origins: Mapping[str, str],
    parse: Callable[[Option, str, str], object],
) -> Iterator[str]:
    """Variables that have no say beside another one with another value. gpu-operator always sends
    NVIDIA_RUNTIME_SET_AS_DEFAULT=false; whoever adds CONTAINERD_SET_AS_DEFAULT=true means it."""

    def value(option: Option, text: str) -> object:
        try:
            return parse(option, text, option.name)
        except UsageError:
            return text  # what counts for nothing need not make sense

    for option in OPTIONS:
        first = origins[option.name]
        if not option.acted or first not in option.env:
            continue
        said = env[first].strip()
        for name in option.env[option.env.index(first) + 1 :]:
            text = env.get(name, "").strip()
            if text and value(option, text) != value(option, said):
                yield (
                    f"{name}={text} is ignored: {first}={said} is set too and counts first; set "
                    f"{first} instead"
                )


def fit(values: dict[str, Any], origins: dict[str, str], entry: str) -> Iterator[str]:
    """Complete the values by what follows from others; gives warnings."""
    if values["pid_file"] is None and entry == "nvidia-toolkit":
        values["pid_file"] = PID_FILE
    values["pid_file"] = values["pid_file"] or None
    # What the validator says of the driver, where it does not say where that is.
    if values["is_host_driver"] and values["driver_root"] is None:
        values["driver_root"], origins["driver_root"] = "/", origins["is_host_driver"]
    if values["enable_nri_plugin"]:
        yield from _without_plugin(values, origins)


def _without_plugin(values: dict[str, Any], origins: dict[str, str]) -> Iterator[str]:
    """The NRI mode of upstream's installer is its mode without runtime configuration and a plugin
    beside it; gpu-operator mounts neither configuration nor socket then."""
    origin = origins["enable_nri_plugin"]
    if values["no_daemon"]:
        yield f"{origin} is ignored with --no-daemon, as by NVIDIA's installer"
        return
    if not values["no_runtime_config"]:
        values["no_runtime_config"], origins["no_runtime_config"] = True, origin
    yield (
        f"{origin}: the runtime's configuration is left alone, as in NVIDIA's NRI mode, but the "
        "NRI plugin itself is not served: nobody answers nvidia.cdi.k8s.io/ annotations of pods, "
        "unless the runtime or another plugin does; pods get no GPU then, also on nodes that were "
        "right before"
    )
