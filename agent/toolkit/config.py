"""config.toml of NVIDIA's container runtime: its content for a decision, and its present settings.

Invariant: the file that we write has every key of NVIDIA's defaults (nvidia-container-toolkit 1.20,
api/config/v1/config.go), so that it depends on no default of the installed version.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.decide import DEFAULT_DIRS, Decision
from agent.errors import Refused
from agent.host import files
from agent.options.settings import Settings
from agent.toml import document, write
from agent.toml.document import Data, get

HOSTS_CONFIG = "/etc/nvidia-container-runtime/config.toml"
CONFIG = ".config/nvidia-container-runtime/config.toml"  # below the toolkit's directory

_HEAD = "# Written by toolkit-agent, which overwrites it.\n"
_CAPABILITIES = "compat32,compute,display,graphics,ngx,utility,video"
_CSV = "/etc/nvidia-container-runtime/host-files-for-container.d"


def render(content: Mapping[str, Any]) -> bytes:
    """The file's text for its content as plain data."""
    return (_HEAD + write.render(content)).encode()


def data(
    settings: Settings, decision: Decision, runtimes: tuple[str, ...], programs: Mapping[str, str],
    driver_root: str, ldconfig: str, user: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The content of the file, with host paths only. `runtimes` are the low-level runtimes in the
    order of use, `programs` the paths of NVIDIA's CLI, nvidia-ctk and the runtime's hook by name.
    `user` (USER:GROUP, "" is root) runs nvidia-container-cli."""
    # An empty list is right with native CDI on CRI-O only; without CDI, NVIDIA's default is used.
    prefixes = decision.prefixes if decision.native else decision.prefixes or ("cdi.k8s.io/",)
    features = settings.opt_in_features
    by_variable = accepts_variables(settings) or decision.variables
    return {
        "accept-nvidia-visible-devices-as-volume-mounts": settings.accept_mounts,
        "accept-nvidia-visible-devices-envvar-when-unprivileged": by_variable,
        "disable-require": False,
        "supported-driver-capabilities": _CAPABILITIES,
        "swarm-resource": "",
        **({"features": dict.fromkeys(features, True)} if features else {}),
        "nvidia-container-cli": {
            "debug": settings.cli_debug,
            "environment": [],
            "ldcache": "",
            "ldconfig": f"@{ldconfig}",  # @: a path on the host
            "load-kmods": True,
            "no-cgroups": False,
            "path": programs["nvidia-container-cli"],
            "root": driver_root,
            "user": user,
        },
        "nvidia-container-runtime": {
            "debug": settings.runtime_debug,
            "log-level": settings.runtime_log_level,
            "mode": "auto" if decision.hook else decision.mode,
            "runtimes": list(runtimes),
            "modes": {
                "cdi": {
                    "annotation-prefixes": list(prefixes),
                    "default-kind": settings.cdi_default_kind,
                    "spec-dirs": list(decision.spec_dirs or DEFAULT_DIRS),
                },
                "csv": {"mount-spec-path": _CSV},
                "legacy": {"cuda-compat-mode": "ldconfig"},
            },
        },
        "nvidia-container-runtime-hook": {
            "path": programs["nvidia-container-runtime-hook"],
            "skip-mode-detection": settings.hook_skip_mode_detection,
        },
        "nvidia-ctk": {"path": programs["nvidia-ctk"]},
    }


def accepts_variables(settings: Settings) -> bool:
    """Do the options let an unprivileged container request GPUs by environment variable?"""
    option = settings.accept_envvar
    return not settings.cdi_enabled if option is None else option


@dataclass(frozen=True)
class ToolkitConfig:
    """The settings of nvidia-container-runtime in config.toml, with NVIDIA's default for a missing
    key.

    `runtimes` are the low-level runtimes in the order in which they are tried; () means runc, then
    crun. `prefixes` are the annotation prefixes that are answered. `variables`: an unprivileged
    container may request GPUs by environment variable.
    """

    runtimes: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("cdi.k8s.io/",)
    variables: bool = True


def read_config(directory: str) -> ToolkitConfig | None:
    """The settings in the config.toml of a toolkit's directory (an agent path); None if there is no
    such file or it cannot be read."""
    return read_config_file(os.path.join(directory, CONFIG))


def config_beside(program: str) -> str:
    """Host path of the config.toml that belongs to a program (host path) of a toolkit. If that file
    does not exist, the program reads HOSTS_CONFIG."""
    return os.path.join(os.path.dirname(program), CONFIG)


def read_config_file(path: str) -> ToolkitConfig | None:
    """As `read_config`, for the config.toml at an agent path."""
    try:
        found = files.read(path)
        data: Any = document.parse(found.data, path) if found else None
    except (Refused, ValueError, RecursionError):
        return None
    return None if data is None else config_of(data)


def config_of(data: Data) -> ToolkitConfig:
    """The settings in the data of a config.toml."""
    runtime, defaults = ("nvidia-container-runtime",), ToolkitConfig()
    prefixes = get(data, (*runtime, "modes", "cdi", "annotation-prefixes"))
    return ToolkitConfig(
        _strings(get(data, (*runtime, "runtimes"))),
        defaults.prefixes if prefixes is None else _strings(prefixes),
        get(data, ("accept-nvidia-visible-devices-envvar-when-unprivileged",), True) is True,
    )


def _strings(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else ()
    return tuple(item for item in items if isinstance(item, str))
