"""The origin of the toolkit's files: unpacked packages, an installed toolkit, or the host's
packages.

Invariant: reads only. A link in a source tree is followed inside that tree, as in a chroot.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.errors import NoToolkit, Refused, UsageError
from agent.host import trust
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import Settings
from agent.toolkit import programs, wrapper

ARTIFACTS = "/artifacts"
LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
_LIBRARY_DIRECTORIES = (
    "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
)  # fmt: skip
_NAMES = (*programs.WRAPPED, programs.CDI_HOOK)
_EXECUTABLE = 0o111
_SCRIPT = 1 << 13  # bytes at the start of a wrapper; they name its program

Kind = Literal["packages", "installed", "host"]


@dataclass(frozen=True)
class Origin:
    """A toolkit on the node. `place` is its directory, for messages. `programs` and `libraries` map
    names to agent paths without links. Programs of kind `host` are run in place, others are
    copied."""

    kind: Kind
    place: str
    programs: Mapping[str, str]
    libraries: Mapping[str, str]

    @property
    def is_usable(self) -> bool:
        """Does it have the runtime or its hook, of which the agent needs one?"""
        return programs.RUNTIME in self.programs or programs.RUNTIME_HOOK in self.programs


def find(settings: Settings, host: HostRoot, installed: HostPath) -> Origin:
    """The toolkit from the source tree, else the one in the directory `installed`, else that of the
    host's packages. The host's programs are examined only if the installed toolkit lacks the
    runtime.

    Raises Refused for an option whose directory has no toolkit, and for a program that another user
    than root can exchange; NoToolkit if no toolkit is found.
    """
    if packages := _from_source_root(settings, host):
        return packages
    first = _installed(installed)
    if first and programs.RUNTIME in first.programs:
        return first
    second = _host(host)
    if second and programs.RUNTIME in second.programs:
        return second
    if found := first or second:
        return found
    raise NoToolkit(
        f"cannot find the NVIDIA container toolkit: {programs.RUNTIME} is neither in "
        f"{settings.toolkit_install_dir}/toolkit nor in /usr/bin of the host; install the "
        "toolkit, or give --toolkit-source-root or --toolkit-install-dir"
    )


def _from_source_root(settings: Settings, host: HostRoot) -> Origin | None:
    """Unpacked packages of the host's type; None if there is no source tree. Raises Refused."""
    directory = settings.toolkit_source_root
    if directory is None:
        if host.is_host or not os.path.isdir(ARTIFACTS):
            return None
        directory = ARTIFACTS
    kind = settings.toolkit_package_type
    if kind == "auto":
        kind = "rpm" if programs.runs(host, "/usr/bin/rpm") else "deb"
    for root in (directory, os.path.join(directory, kind)):
        if os.path.isdir(root):
            found = _packages(root)
            if programs.RUNTIME in found.programs:
                return found
    raise Refused(
        f"cannot install the toolkit: there is no {programs.RUNTIME} in {directory} or in "
        f"{os.path.join(directory, kind)}; give the directory of unpacked packages with "
        "--toolkit-source-root"
    )


def _open(root: str) -> HostRoot:
    try:
        return HostRoot(root)
    except UsageError as error:
        raise Refused(f"cannot install the toolkit from {root}: {error.message}") from error


def _first_trusted(root: HostRoot, above: Sequence[str], name: str, needed: int = 0) -> str | None:
    """As `_trusted_file`, for a name in the first of the directories `above` that has it."""
    found = (_trusted_file(root, f"{directory}/{name}", needed) for directory in above)
    return next((path for path in found if path), None)


def _trusted_file(root: HostRoot, name: str, needed: int = 0) -> str | None:
    """Agent path of the regular file `name` in a tree, with one of the `needed` permissions; None
    if there is none. Links are followed inside the tree. Raises Refused if another user than root
    can exchange the file or a part of its path, because the file is copied or run by that path."""
    try:
        with trust.open_path(root, name) as file:
            mode = file.status.st_mode
            if not stat.S_ISREG(mode) or (needed and not mode & needed):
                return None
            path, why = file.path, file.distrust
    except (OSError, Refused):
        return None
    if why:
        where = "" if root.is_host else f"in {root.root}, "
        raise Refused(f"cannot use {path.agent}: {where}{why}")
    return path.agent


def _packages(place: str) -> Origin:
    root = _open(place)
    found = {name: _first_trusted(root, programs.DIRECTORIES, name, _EXECUTABLE) for name in _NAMES}
    libraries = {name: _first_trusted(root, _LIBRARY_DIRECTORIES, name) for name in LIBRARIES}
    return Origin("packages", place, _present(found), _present(libraries))


def _present(paths: Mapping[str, str | None]) -> dict[str, str]:
    return {name: path for name, path in paths.items() if path}


def _installed(directory: HostPath) -> Origin | None:
    """The toolkit that we or NVIDIA's installer put into a directory. The program of a wrapper
    `NAME` is `NAME.real`. A wrapper without its program is left out, because a copy of it would
    call itself."""
    if not os.path.isdir(directory.agent):
        return None
    root, found = _open(directory.agent), dict[str, str | None]()
    for name in _NAMES:
        found[name] = _trusted_file(root, f"/{name}.real", _EXECUTABLE)
        if not found[name] and (plain := _trusted_file(root, f"/{name}", _EXECUTABLE)):
            text = _beginning(plain)
            calls_real = text.startswith(b"#!") and f"{name}.real".encode() in text
            if not (text.startswith(wrapper.HEAD) or calls_real):
                found[name] = plain
    libraries = {name: _trusted_file(root, f"/{name}") for name in LIBRARIES}
    origin = Origin("installed", directory.host, _present(found), _present(libraries))
    return origin if origin.is_usable else None


def _host(host: HostRoot) -> Origin | None:
    """The toolkit of the host's packages. A link to a wrapper of ours is left out, because it would
    call itself."""
    found = {name: _trusted_file(host, f"/usr/bin/{name}", _EXECUTABLE) for name in _NAMES}
    own = {name: path for name, path in _present(found).items()
           if not _beginning(path).startswith(wrapper.HEAD)}  # fmt: skip
    origin = Origin("host", "/usr/bin", own, {})
    return origin if origin.is_usable else None


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_SCRIPT)
    except OSError:
        return b""
