"""What each runtime makes of specs: which versions it reads, and whether it can die of one.

Invariant: only what was seen of a version of a runtime; between two that were seen it is one or the
other, and of what is older than the first nothing is said.
"""

from __future__ import annotations

from agent.data import dataclass
from agent.runtimes.versions import parse_version

# Every version that there is. An older library refuses a whole file for a number that it does not
# know; the first two it knows, and everything in them is older than what it can read.
VERSIONS = (
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
)  # fmt: skip
EARLIEST = "0.3.0"

# The highest version that a runtime reads, from that version on (1.7.24, 2.1.9, 2.4.0-beta.0 and
# CRI-O 1.37.0 were seen).
_NEWEST = {
    "containerd": (((1, 7), "0.8.0"), ((2, 1), "1.0.0"), ((2, 4), "1.1.0")),
    "cri-o": (((1, 37), "1.1.0"),),
}


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads the specs; nobody in particular where nothing answers.

    `newest` is a version of CDI that it reads for sure, `limit` the one that it cannot exceed,
    None where that is not known. `brittle`: does it die of a vendor of one letter, None: who
    knows. `off` is why it reads none at all.
    """

    name: str = ""
    newest: str | None = None
    limit: str | None = None
    brittle: bool | None = None
    off: str = ""


NOBODY = Reader()


def reader(name: str, version: str, *, enabled: bool | None = None) -> Reader:
    """What is known of a runtime; `enabled` is False where its CDI is switched off."""
    label = f"{name} {version}"
    parsed = parse_version(version)
    if parsed is None:
        return Reader(label)
    from agent.runtimes.generations import generation  # which who only writes specs has no use for

    newest, limit = _limits(name, (parsed[0], parsed[1]))
    off = ""
    if name == "containerd" and parsed < (1, 7, 0):
        off = f"{label} knows no CDI"
    elif enabled is False:
        off = f"{label} has CDI switched off"
    brittle = generation(parsed).brittle_cdi if name == "containerd" else None
    return Reader(label, newest, limit, brittle, off)


def _limits(name: str, version: tuple[int, int]) -> tuple[str | None, str | None]:
    newest: str | None = None
    for since, read in _NEWEST.get(name, ()):
        if version == since:
            return read, read
        if version < since:
            return newest, read if newest else None
        newest = read
    return newest, None


def index(version: str) -> int:
    """The place of a version among all, -1 where there is no such version."""
    plain = version.removeprefix("v")
    return VERSIONS.index(plain) if plain in VERSIONS else -1
