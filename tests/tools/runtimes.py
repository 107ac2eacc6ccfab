"""The real container runtimes that tests may use, as `fetch_runtimes` left them in the cache.

inventory = load()
inventory.find("1.7")  # a Runtime, or None and then inventory.reason("1.7") says why
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

CACHE_VARIABLE = "TOOLKIT_AGENT_TEST_CACHE"
ROOT = Path(__file__).resolve().parents[2]

# What the program has to be right on, besides whatever newer generation the distribution has.
WANTED = ("1.6", "1.7", "2.1")


@dataclass(frozen=True)
class Runtime:
    """One unpacked runtime; `runc` is an OCI runtime that runs on this machine."""

    name: str
    version: str
    generation: str
    executable: Path
    runc: Path

    def for_root(self, directory: Path) -> Runtime:
        """The same as on a node. Root's agent does not run a program that another user could
        exchange: of a checkout that is another user's, the programs are copied to `directory`."""
        if os.geteuid() != 0 or all(_is_roots(path) for path in self.executable.parents):
            return self
        place = directory / "programs"
        shutil.copytree(self.executable.parent, place, copy_function=shutil.copy)
        return replace(self, executable=place / self.executable.name)

    @property
    def usable(self) -> bool:
        """Whether the files are still there."""
        return self.executable.is_file() and self.runc.is_file()


def _is_roots(path: Path) -> bool:
    found = path.stat()
    return found.st_uid == 0 and (not found.st_mode & 0o022 or bool(found.st_mode & stat.S_ISVTX))


@dataclass(frozen=True)
class Inventory:
    """All runtimes, oldest generation first, and why wanted ones are missing.

    `final` says that asking the distribution again would give the same answer.
    """

    runtimes: tuple[Runtime, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    final: bool = False

    def find(self, generation: str) -> Runtime | None:
        """Return the runtime of a generation ("1.7"), or None."""
        return next((r for r in self.runtimes if r.generation == generation and r.usable), None)

    def reason(self, generation: str) -> str:
        """Say why there is no runtime of that generation and how to get one."""
        why = self.unavailable.get(generation, "not fetched, run tests/run")
        return f"no containerd {generation}: {why}"

    def to_json(self, cache: Path) -> str:
        """Write what `load` reads; paths are relative, so that the cache can move."""
        runtimes = [
            {
                "name": r.name,
                "version": r.version,
                "generation": r.generation,
                "executable": str(r.executable.relative_to(cache)),
                "runc": str(r.runc.relative_to(cache)),
            }
            for r in self.runtimes
        ]
        unavailable = [{"generation": g, "reason": why} for g, why in self.unavailable.items()]
        data = {"runtimes": runtimes, "unavailable": unavailable, "final": self.final}
        return json.dumps(data, indent=2) + "\n"


def cache_directory() -> Path:
    """Return where runtimes are unpacked: the environment's choice, or `.cache/runtimes`."""
    chosen = os.environ.get(CACHE_VARIABLE, "")
    return Path(chosen).absolute() if chosen else ROOT / ".cache" / "runtimes"


def load(cache: Path | None = None) -> Inventory:
    """Read the inventory; an empty one where nothing was fetched."""
    cache = cache or cache_directory()
    path = cache / "runtimes.json"
    if not path.is_file():
        return Inventory()
    data = json.loads(path.read_text(encoding="utf-8"))
    runtimes = tuple(
        Runtime(
            name=r["name"],
            version=r["version"],
            generation=r["generation"],
            executable=cache / r["executable"],
            runc=cache / r["runc"],
        )
        for r in data["runtimes"]
    )
    unavailable = {u["generation"]: u["reason"] for u in data["unavailable"]}
    return Inventory(runtimes, unavailable, data["final"])
