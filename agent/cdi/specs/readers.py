"""The runtimes as readers of specs: the versions of CDI that each reads, and whether a spec can
crash it.

Invariant: the table has observed versions only. A version between two observed ones behaves like
one of them; nothing is known about versions before the first. Within containerd 1.7 the CDI library
changed, too: 1.7.13 went from CDI 0.5 to 0.6 (containerd #9685), and a distribution may link a
newer one. In that case the runtime's executable is the better evidence, because it contains the
names of all fields that it reads.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.cri.versions import Version, parse_version

# All versions of CDI. A library refuses a file with a version that it does not know. Every
# library knows the first two, but no current program writes them.
VERSIONS = (
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
)  # fmt: skip
EARLIEST = "0.3.0"

# (version of the runtime, highest CDI version that it surely reads, highest that it may read).
# An entry holds up to the next one. (Observed on containerd 1.7.24, 2.1.9 and 2.4.0-beta.0, and on
# CRI-O 1.37.0.)
_READ: Mapping[str, Sequence[tuple[Version, str, str | None]]] = {
    "containerd": (
        ((1, 7, 0), "0.5.0", "0.8.0"), ((1, 7, 13), "0.6.0", "0.8.0"),
        ((1, 7, 24), "0.8.0", "0.8.0"), ((2, 0, 0), "0.8.0", "1.0.0"),
        ((2, 1, 0), "1.0.0", "1.0.0"), ((2, 2, 0), "1.0.0", "1.1.0"),
        ((2, 4, 0), "1.1.0", "1.1.0"), ((2, 5, 0), "1.1.0", None),
    ),
    "cri-o": (((1, 37, 0), "1.1.0", "1.1.0"), ((1, 38, 0), "1.1.0", None)),
}  # fmt: skip


# Fields by the version of CDI that added them, as in an executable of Go: the length of the Go
# name, then the name. (OCI's specification has fields with the same JSON names.) Observed in
# containerd 1.6.20 (without CDI), 1.7.24 and 2.1.9, and in CRI-O 1.30.14 and 1.37.
_FIRST_FIELD = b"\x0eContainerEdits"
_FIELDS = (("0.7.0", b"\x0eAdditionalGIDs"), ("1.1.0", b"\x11HostInterfaceName"))


@dataclass(frozen=True)
class Reader:
    """A runtime as a reader of specs.

    `newest` is the highest version of CDI that it surely reads, `limit` the highest that it may
    read; None if unknown. `brittle`: does a vendor of one letter crash it? None if unknown. `off`
    says why it reads no specs at all, "" if it does.
    """

    name: str = ""
    newest: str | None = None
    limit: str | None = None
    brittle: bool | None = None
    off: str = ""


UNKNOWN_READER = Reader()


def reader_of(name: str, version: str, *, enabled: bool | None = None) -> Reader:
    """The reader for a version of a runtime. `enabled` is False if CDI is disabled in its
    configuration."""
    label = f"{name} {version}"
    parsed = parse_version(version)
    if parsed is None:
        return Reader(label)
    # Imported here, because `cdi generate` does not need it.
    from agent.runtimes.containerd.generations import generation

    known = [(newest, limit) for since, newest, limit in _READ.get(name, ()) if parsed >= since]
    newest, limit = known[-1] if known else (None, None)
    off = ""
    if name == "containerd" and parsed < (1, 7, 0):
        off = f"{label} knows no CDI"
    elif enabled is False:
        off = f"{label} has CDI switched off"
    brittle = generation(parsed).brittle_cdi if name == "containerd" else None
    return Reader(label, newest, limit, brittle, off)


def with_executable(reader: Reader, executable: str) -> Reader:
    """The reader, corrected by the fields that its executable (an agent path) contains; unchanged
    if the file cannot be read, or is no Go program with CDI."""
    try:
        with (
            open(executable, "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
        ):
            if data.find(_FIRST_FIELD) < 0:
                return reader
            has = [(version, data.find(field) >= 0) for version, field in _FIELDS]
    except (OSError, ValueError):  # ValueError: the file is empty
        return reader
    newest, limit = reader.newest, reader.limit
    for version, present in has:
        if present and newest is not None:
            newest = max(newest, version, key=version_index)
        if not present:
            below = VERSIONS[version_index(version) - 1]
            limit = min(limit or below, below, key=version_index)
    if newest is not None and limit is not None:
        newest = min(newest, limit, key=version_index)
    return replace(reader, newest=newest, limit=limit)


def can_read(reader: Reader, version: str) -> bool:
    """Does the reader surely read that version of CDI? True also if nothing is known about the
    reader."""
    most = reader.newest or reader.limit
    return most is None or version_index(version) <= version_index(most)


def version_index(version: str) -> int:
    """The position of a version in `VERSIONS`; -1 for an unknown version."""
    plain = version.removeprefix("v")
    return VERSIONS.index(plain) if plain in VERSIONS else -1
