"""config.toml of NVIDIA's container runtime: what it says, and what it is to say for a decision.

Invariant: the file that we write has every key of NVIDIA's defaults (nvidia-container-toolkit 1.20,
api/config/v1/config.go), so that it is complete by itself.
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
    """The text of the file."""
    return (_HEAD + write.render(content)).encode()


def data(
    settings: Settings, decision: Decision, runtimes: tuple[str, ...], programs: Mapping[str, str],
    driver_root: str, ldconfig: str, user: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The content of the file. All paths are the host's. `runtimes` are the low-level runtimes,
    tried in this order; `programs` are the paths of nvidia-container-cli, nvidia-ctk and
    nvidia-container-runtime-hook by name; `user` runs nvidia-container-cli, "" for root."""
    # The runtime's own default without CDI; none with native CDI on CRI-O.
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
            "ldconfig": f"@{ldconfig}",  # the host's
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
    """Do these options let an unprivileged container ask for GPUs by environment variable?"""
    given = settings.accept_envvar
    return not settings.cdi_enabled if given is None else given


@dataclass(frozen=True)
class ToolkitConfig:
    """The settings of nvidia-container-runtime in config.toml: the low-level runtimes that it tries
    in this order, the annotation prefixes that it answers, and whether an unprivileged container
    may ask by environment variable (NVIDIA's defaults if a key is missing)."""

    runtimes: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("cdi.k8s.io/",)
    variables: bool = True


def read_config(directory: str) -> ToolkitConfig | None:
    """The settings in config.toml of a directory (an agent path), whether or not it is ours. None
    if there is no file, or one that cannot be read."""
    return read_config_file(os.path.join(directory, CONFIG))


def config_beside(program: str) -> str:
    """Host path of the config.toml beside a program, where NVIDIA's installer and this agent put
    it. A program without one reads the host's own (HOSTS_CONFIG)."""
    return os.path.join(os.path.dirname(program), CONFIG)


def read_config_file(path: str) -> ToolkitConfig | None:
    """As `read_config`, of a config.toml at an agent path."""
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
