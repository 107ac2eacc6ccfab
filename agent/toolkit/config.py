"""config.toml of NVIDIA's container runtime, for a decision.

Invariant: pure; the file has every key of NVIDIA's defaults (nvidia-container-toolkit 1.20,
api/config/v1/config.go), so that it is complete by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.toml import write

_HEAD = "# Written by toolkit-agent, which overwrites it.\n"
_CAPABILITIES = "compat32,compute,display,graphics,ngx,utility,video"
_CSV = "/etc/nvidia-container-runtime/host-files-for-container.d"


@dataclass(frozen=True)
class Config:
    """The values that differ between nodes. All paths are the host's. `programs` are the paths of
    nvidia-container-cli, nvidia-ctk and nvidia-container-runtime-hook by name; `runtimes` are the
    low-level runtimes, tried in this order; `features` are switched on."""

    mode: str
    prefixes: tuple[str, ...]
    default_kind: str
    spec_dirs: tuple[str, ...]
    runtimes: tuple[str, ...]
    driver_root: str
    ldconfig: str
    programs: Mapping[str, str]
    accept_envvar: bool
    accept_mounts: bool
    skip_mode_detection: bool = True
    debug: str = "/dev/null"
    log_level: str = "info"
    cli_debug: str = ""
    user: str = ""
    features: tuple[str, ...] = ()


def render(config: Config) -> bytes:
    """The content of the file."""
    return (_HEAD + write.render(data(config))).encode()


def data(config: Config) -> dict[str, Any]:
    """The content as data. `@` before ldconfig's path means the host's ldconfig."""
    features = {"features": dict.fromkeys(config.features, True)} if config.features else {}
    return {
        "accept-nvidia-visible-devices-as-volume-mounts": config.accept_mounts,
        "accept-nvidia-visible-devices-envvar-when-unprivileged": config.accept_envvar,
        "disable-require": False,
        "supported-driver-capabilities": _CAPABILITIES,
        "swarm-resource": "",
        **features,
        "nvidia-container-cli": {
            "debug": config.cli_debug,
            "environment": [],
            "ldcache": "",
            "ldconfig": f"@{config.ldconfig}",
            "load-kmods": True,
            "no-cgroups": False,
            "path": config.programs["nvidia-container-cli"],
            "root": config.driver_root,
            "user": config.user,
        },
        "nvidia-container-runtime": {
            "debug": config.debug,
            "log-level": config.log_level,
            "mode": config.mode,
            "runtimes": list(config.runtimes),
            "modes": {
                "cdi": {
                    "annotation-prefixes": list(config.prefixes),
                    "default-kind": config.default_kind,
                    "spec-dirs": list(config.spec_dirs),
                },
                "csv": {"mount-spec-path": _CSV},
                "legacy": {"cuda-compat-mode": "ldconfig"},
            },
        },
        "nvidia-container-runtime-hook": {
            "path": config.programs["nvidia-container-runtime-hook"],
            "skip-mode-detection": config.skip_mode_detection,
        },
        "nvidia-ctk": {"path": config.programs["nvidia-ctk"]},
    }
