"""What an install of the toolkit is looked at by, and what it is made from.

Invariant: a tree of packages here has the same programs in each version but for some, and none of
them is ever run.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.cli.cli_node import CliNode
from tests.conformance.trees import Contents, contents, snapshot
from tests.doubles.toolkit.source import make_tree

LIST = ".toolkit-agent.json"  # what the program under test notes of the toolkit
BEFORE = ".toolkit.before"  # and where it keeps a directory of somebody else's
CONFIG = ".config/nvidia-container-runtime/config.toml"
RUNTIME = "nvidia-container-runtime"
FOREIGN = {
    RUNTIME: "theirs",
    f"{RUNTIME}.real": "their program",
    f"{RUNTIME}-hook": "their hook",
    "notes/a.txt": "a note",
}


def release(directory: Path, version: str) -> Path:
    """A tree of packages of that version; some of its files are the same in all of them."""
    source = directory / f"source-{version}"
    if not source.exists():
        make_tree(source, version)
        for name in ("nvidia-ctk", "nvidia-cdi-hook"):
            (source / "usr/bin" / name).write_text(f"#!/bin/sh\n# {name}\n", encoding="ascii")
    return source


def put_foreign(toolkit: Path) -> None:
    """A toolkit of somebody else's, with things that are none."""
    for name, text in FOREIGN.items():
        path = toolkit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        path.chmod(0o750)
    (toolkit / "nvidia-container-toolkit").symlink_to(f"{RUNTIME}-hook")


def installed(toolkit: Path) -> Contents:
    """What is in there but for our list, which has times in it; empty where it is not there."""
    if not toolkit.exists():
        return {}
    found = contents(snapshot(toolkit))
    return {path: (*entry[:3], b"" if path == LIST else entry[3]) for path, entry in found.items()}


def beside(toolkit: Path) -> list[str]:
    """What lies beside it, and the directory itself."""
    above = toolkit.parent
    return sorted(os.listdir(above)) if above.exists() else []


class SourceNode(CliNode):
    """A node without a toolkit, for which there is a tree of packages."""

    def __init__(self, directory: Path, version: str = "2.1.9", text: str | None = None) -> None:
        super().__init__(directory, version, text)
        self._remove_toolkit()
        self.source: Path | None = release(directory, "1.19.0")

    def _remove_toolkit(self) -> None:
        for path in sorted(self.toolkit.iterdir()):
            path.unlink()
        self.toolkit.rmdir()
        self.toolkit.parent.rmdir()

    def options(self) -> list[str]:
        source = [f"--toolkit-source-root={self.source}"] if self.source else []
        return [*super().options(), *source]
