"""The origin of the toolkit's files: unpacked packages, an installed toolkit, or the host's
packages.

Invariant: reads only. A link in a source tree is followed inside that tree, as if it were `/`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
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
_RUNS = 0o111
_SCRIPT = 1 << 13  # bytes; the start of a wrapper, which names its program

Kind = Literal["packages", "installed", "host"]


@dataclass(frozen=True)
class Origin:
    """A toolkit on the node. `programs` and `libraries` map names to agent paths without links.
    Programs of kind `host` are run where they are, the others are copied."""

    kind: Kind
    place: str
    programs: Mapping[str, str]
    libraries: Mapping[str, str]


def find(settings: Settings, host: HostRoot, installed: HostPath) -> Origin:
    """The toolkit: from the source tree, else the installed one, else that of the host's packages.

    Raises Refused for an option whose directory has no toolkit, and for a program that another user
    than root can exchange; NoToolkit if no toolkit is found.
    """
    root = _source_root(settings, host)
    if root is not None:
        return _packages(root)
    found = []
    for origin in _on_the_host(host, installed):
        if programs.RUNTIME in origin.programs:
            return origin
        found.append(origin)
    if not found:
        raise NoToolkit(
            f"cannot find the NVIDIA container toolkit: {programs.RUNTIME} is neither in "
            f"{settings.toolkit_install_dir}/toolkit nor in /usr/bin of the host; install the "
            "toolkit, or give --toolkit-source-root or --toolkit-install-dir"
        )
    return found[0]


def _on_the_host(host: HostRoot, installed: HostPath) -> Iterator[Origin]:
    """Toolkits on the host; the second one is read, and judged, only if the first one lacks the
    runtime."""
    if found := _installed(installed):
        yield found
    if found := _host(host):
        yield found


def _source_root(settings: Settings, host: HostRoot) -> str | None:
    """The tree to install from, of the package type of the host; None if there is none."""
    asked = settings.toolkit_source_root
    if asked is None:
        if host.is_host or not os.path.isdir(ARTIFACTS):
            return None
        asked = ARTIFACTS
    kind = settings.toolkit_package_type
    if kind == "auto":
        kind = "rpm" if programs.runs(host, "/usr/bin/rpm") else "deb"
    for root in (asked, os.path.join(asked, kind)):
        if os.path.isdir(root) and _program(_open(root), programs.RUNTIME):
            return root
    raise Refused(
        f"cannot install the toolkit: there is no {programs.RUNTIME} in {asked} or in "
        f"{os.path.join(asked, kind)}; give the directory of unpacked packages with "
        "--toolkit-source-root"
    )


def _open(root: str) -> HostRoot:
    try:
        return HostRoot(root)
    except UsageError as error:
        raise Refused(f"cannot install the toolkit from {root}: {error.message}") from error


def _program(root: HostRoot, name: str) -> str | None:
    candidates = (_judged(root, f"{above}/{name}", _RUNS) for above in programs.DIRECTORIES)
    return next((path for path in candidates if path), None)


def _judged(root: HostRoot, name: str, needed: int = 0) -> str | None:
    """Agent path of a regular file at a path of a tree, with one of the `needed` permissions; links
    are followed inside the tree. None if there is none. Raises Refused if another user than
    root can exchange the file or a part of its path, because it is copied, or named, by the
    path."""
    try:
        with trust.open_path(root, name) as file:
            mode = file.found.st_mode
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
    found = {name: path for name in _NAMES if (path := _program(root, name))}
    libraries = {}
    for name in LIBRARIES:
        candidates = (_judged(root, f"{above}/{name}") for above in _LIBRARY_DIRECTORIES)
        if path := next((path for path in candidates if path), None):
            libraries[name] = path
    return Origin("packages", place, found, libraries)


def _installed(directory: HostPath) -> Origin | None:
    """What we, or NVIDIA's installer, installed. The program behind a wrapper has the wrapper's
    name and `.real`. A wrapper without its program is left out, because a copy of it calls
    itself."""
    if not os.path.isdir(directory.agent):
        return None
    root = _open(directory.agent)

    def program(name: str) -> str | None:
        real = f"{name}.real"
        path = _judged(root, f"/{real}", _RUNS)
        if path is None and (plain := _judged(root, f"/{name}", _RUNS)):
            path = None if _is_ours(plain) or _mentions(plain, real) else plain
        return path

    found = {name: path for name in _NAMES if (path := program(name))}
    libraries = {name: path for name in LIBRARIES if (path := _judged(root, f"/{name}"))}
    return Origin("installed", directory.host, found, libraries) if _is_usable(found) else None


def _host(host: HostRoot) -> Origin | None:
    """What a package installed. A link to our own wrapper is left out, because it calls itself."""
    runs = ((name, _judged(host, f"/usr/bin/{name}", _RUNS)) for name in _NAMES)
    found = {name: path for name, path in runs if path and not _is_ours(path)}
    return Origin("host", "/usr/bin", found, {}) if _is_usable(found) else None


def _is_usable(found: Mapping[str, str]) -> bool:
    """Is one of the two programs there that the agent needs?"""
    return programs.RUNTIME in found or programs.RUNTIME_HOOK in found


def _is_ours(path: str) -> bool:
    """Is this file a wrapper that we wrote?"""
    return _beginning(path).startswith(wrapper.HEAD)


def _mentions(path: str, name: str) -> bool:
    """Is this a script that calls a program of this name?"""
    text = _beginning(path)
    return text.startswith(b"#!") and name.encode() in text


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_SCRIPT)
    except OSError:
        return b""
