"""Configurations to try, and what the scripted containerd's rules make of them without a daemon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.containerd.generation import Table, generation_of
from tests.doubles.containerd.load import Node, RefusedError, load
from tests.doubles.containerd.populate import effective
from tests.doubles.containerd.status import config_info, why_dead

VERSIONS = ("1.6.20", "1.7.24", "2.1.9", "2.3.4")
SECTIONS = {
    1: "plugins.cri",
    2: 'plugins."io.containerd.grpc.v1.cri"',
    3: 'plugins."io.containerd.cri.v1.runtime"',
}
DEAD = "dead"  # the daemon lives, the CRI does not


@dataclass(frozen=True)
class Seen:
    """What Status shows of a configuration, as far as it is decisive."""

    handlers: set[str]
    default: str
    cdi: bool | None
    spec_dirs: list[str]


def handler(name: str, section: str) -> str:
    """Give the tables of one handler."""
    return f"""
[{section}.containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
  [{section}.containerd.runtimes.{name}.options]
    BinaryName = "/opt/{name}"
"""


def compute(version: str, files: Mapping[str, str], root: Path) -> Table | str:
    """Give the effective configuration of these files; "dead", or the message of a refusal."""
    generation = generation_of(version)
    for name, text in files.items():
        path = root / "etc/containerd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    try:
        loaded = load(generation, "/etc/containerd/config.toml", Node(str(root)))
        if loaded.missing:
            return loaded.missing
        document = effective(generation, loaded)
    except RefusedError as error:
        return str(error)
    return DEAD if why_dead(generation, document) else document


def see(version: str, files: Mapping[str, str], root: Path) -> Seen | str:
    """Give what Status shows of these files."""
    document = compute(version, files, root)
    if isinstance(document, str):
        return document
    config = config_info(generation_of(version), document)
    return Seen(
        handlers=set(config["containerd"]["runtimes"]),
        default=config["containerd"]["defaultRuntimeName"],
        cdi=config.get("enableCDI"),
        spec_dirs=config.get("cdiSpecDirs", []),
    )


def head(version: int | None, *imports: str) -> str:
    """Give the first lines of a root file."""
    first = "" if version is None else f"version = {version}\n"
    return first + f"imports = {json.dumps(list(imports))}\n"
