"""What differs between the generations of containerd, as seen by running them.

The defaults of each are the ones that a real daemon printed (`tests/data/captures`). A generation
stands for all its patch releases. There is no capture of 2.0, 2.2 and 2.4: their rules were
observed on 2.0.11, 2.2.7 and 2.4.0-beta.0, their defaults are those of 2.1.9 and 2.3.4.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Parsed TOML or JSON: any table.
Table = dict[str, Any]

GRPC_CRI = "io.containerd.grpc.v1.cri"
CRI_RUNTIME = "io.containerd.cri.v1.runtime"
CRI_IMAGES = "io.containerd.cri.v1.images"

CAPTURES = Path(__file__).resolve().parents[2] / "data" / "captures"

# Tables that some generations read but do not print while they are so.
_UNPRINTED: Table = {"grpc": {"address": ""}, "ttrpc": {"address": ""}, "proxy_plugins": {}}


@dataclass(frozen=True)
class Generation:
    """One generation of containerd.

    `config_version` is the version of its own configuration, and of what `config dump` prints;
    `highest` is the highest that it accepts (None: any number). `deep` says whether a later file's
    plugin section is merged into an earlier one's or takes its place, `per_file` whether each file
    is brought to the newest version before it is merged. `imports` is what it prints as imports
    without reading them.
    """

    since: tuple[int, int]
    capture: str
    reported: str
    golang: str
    config_version: int
    highest: int | None
    deep: bool
    per_file: bool = False
    relative_globs: bool = True
    imports: tuple[str, ...] = ()

    @property
    def cri(self) -> str:
        """The name of the plugin section with handlers and CDI, in the newest version."""
        return CRI_RUNTIME if self.deep else GRPC_CRI

    def default_text(self) -> str:
        """What `config default` prints."""
        text = (CAPTURES / self.capture / "config-default.toml").read_text(encoding="utf-8")
        shown = ", ".join(f"'{name}'" for name in self.imports)
        return text.replace("imports = []", f"imports = [{shown}]") if shown else text

    def defaults(self) -> Table:
        """The built-in configuration."""
        return {**_UNPRINTED, **_parsed(self.default_text())}

    def unprinted(self) -> Table:
        """Top-level tables that `config dump` leaves out as long as they are like this."""
        printed = _parsed(self.default_text())
        return {key: table for key, table in _UNPRINTED.items() if key not in printed}

    def status_config(self) -> Table:
        """What a daemon without any configuration answers as `info["config"]`."""
        path = CAPTURES / self.capture / "status-info-config.json"
        config: Table = json.loads(path.read_text(encoding="utf-8"))
        return config


@functools.cache
def _parsed(text: str) -> Table:
    return tomllib.loads(text)


_CONF_D = ("/etc/containerd/conf.d/*.toml",)
_NEW, _NEWEST = "containerd-2.1.9", "containerd-2.3.4"

# Newest first.
GENERATIONS = (
    Generation((2, 4), _NEWEST, "v2.3.4", "go1.27.1", 4, 4, True, True, imports=_CONF_D),
    Generation((2, 3), _NEWEST, "v2.3.4", "go1.27.1", 4, 4, True, True, imports=_CONF_D),
    Generation((2, 2), _NEW, "2.1.9+unknown", "go1.27.1", 3, 3, deep=True, imports=_CONF_D),
    Generation((2, 0), _NEW, "2.1.9+unknown", "go1.27.1", 3, 3, deep=True),
    Generation((1, 7), "containerd-1.7.24", "1.7.24~ds1", "go1.24.4", 2, 2, deep=False),
    Generation(
        (1, 6),
        "containerd-1.6.20",
        "1.6.20~ds1",
        "go1.19.8",
        2,
        None,
        deep=False,
        relative_globs=False,
    ),
)


def generation_of(version: str) -> Generation:
    """Find the generation of a version such as "2.1.9", "v2.3.4" or "1.7.24~ds1"."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if not found:
        raise ValueError(f"not a version of containerd: {version}")
    number = (int(found[1]), int(found[2]))
    for generation in GENERATIONS:
        if number >= generation.since:
            return generation
    raise ValueError(f"containerd {version} is older than any that is known here")


def reported_version(version: str) -> str:
    """Give the version the spelling that real daemons report, where that was seen."""
    generation = generation_of(version)
    if generation.capture.endswith(f"-{version}"):
        return generation.reported
    built_from_source = generation.deep and version[0].isdigit()
    return f"v{version}" if built_from_source else version
