"""What each runtime makes of specs: which versions it reads, and whether it can die of one.

Invariant: only what was seen of a version of a runtime; between two that were seen it is one or the
other, and of what is older than the first nothing is said. Within 1.7 the library grew too: 1.7.13
went from CDI 0.5 to 0.6 (containerd #9685), and what a distribution links may be newer. There the
runtime's own executable tells more: it has the names of all fields that it reads.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.runtimes.versions import Version, parse_version

# Every version that there is. An older library refuses a whole file for a number that it does not
# know; the first two it knows, and everything in them is older than what it can read.
VERSIONS = (
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
)  # fmt: skip
EARLIEST = "0.3.0"

# From which version of a runtime on which version of CDI is read for sure, and which one is the
# highest possible (1.7.24, 2.1.9, 2.4.0-beta.0 and CRI-O 1.37.0 were seen).
_READ: Mapping[str, Sequence[tuple[Version, str, str | None]]] = {
    "containerd": (
        ((1, 7, 0), "0.5.0", "0.8.0"), ((1, 7, 13), "0.6.0", "0.8.0"),
        ((1, 7, 24), "0.8.0", "0.8.0"), ((2, 0, 0), "0.8.0", "1.0.0"),
        ((2, 1, 0), "1.0.0", "1.0.0"), ((2, 2, 0), "1.0.0", "1.1.0"),
        ((2, 4, 0), "1.1.0", "1.1.0"), ((2, 5, 0), "1.1.0", None),
    ),
    "cri-o": (((1, 37, 0), "1.1.0", "1.1.0"), ((1, 38, 0), "1.1.0", None)),
}  # fmt: skip


# Fields by the version that they came with, as an executable of Go has them: the length of the name
# before it. OCI's specification has fields of the same JSON names. Seen in containerd 1.6.20 (which
# knows no CDI), 1.7.24 and 2.1.9, and in CRI-O 1.30.14 and 1.37.
_FIRST_FIELD = b"\x0eContainerEdits"
_FIELDS = (("0.7.0", b"\x0eAdditionalGIDs"), ("1.1.0", b"\x11HostInterfaceName"))


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
    from agent.runtimes.containerd.generations import (
        generation,  # which who only writes specs has no use for
    )

    newest, limit = _limits(name, parsed)
    off = ""
    if name == "containerd" and parsed < (1, 7, 0):
        off = f"{label} knows no CDI"
    elif enabled is False:
        off = f"{label} has CDI switched off"
    brittle = generation(parsed).brittle_cdi if name == "containerd" else None
    return Reader(label, newest, limit, brittle, off)


def _limits(name: str, version: Version) -> tuple[str | None, str | None]:
    known = [(newest, limit) for since, newest, limit in _READ.get(name, ()) if version >= since]
    return known[-1] if known else (None, None)


def sharpened(who: Reader, executable: str) -> Reader:
    """The reader with what its executable (an agent path) shows; the same where that is no program
    of Go with CDI in it, or not to be read."""
    try:
        with open(executable, "rb") as file, _mapped(file.fileno()) as data:
            if data.find(_FIRST_FIELD) < 0:
                return who
            has = [(version, data.find(field) >= 0) for version, field in _FIELDS]
    except (OSError, ValueError):  # ValueError: it is empty
        return who
    newest, limit = who.newest, who.limit
    for version, there in has:
        if there and newest is not None:
            newest = max(newest, version, key=index)
        if not there:
            below = VERSIONS[index(version) - 1]
            limit = min(limit or below, below, key=index)
    if newest is not None and limit is not None:
        newest = min(newest, limit, key=index)
    return replace(who, newest=newest, limit=limit)


def _mapped(fd: int) -> mmap.mmap:
    return mmap.mmap(fd, 0, prot=mmap.PROT_READ)


def takes(who: Reader, version: str) -> bool:
    """Does it read that version of CDI for sure, or is nothing known of it?"""
    most = who.newest or who.limit
    return most is None or index(version) <= index(most)


def index(version: str) -> int:
    """The place of a version among all, -1 where there is no such version."""
    plain = version.removeprefix("v")
    return VERSIONS.index(plain) if plain in VERSIONS else -1
