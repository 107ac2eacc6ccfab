"""Where the toolkit is taken from: unpacked packages, or what is on the host.

Invariant: reads only. A link in a source tree is followed inside that tree, as if it were `/`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Literal

from agent.data import dataclass
from agent.errors import NoToolkit, Refused, UsageError
from agent.host.paths import HostPath, HostRoot
from agent.settings import Settings
from agent.toolkit import programs, wrapper

ARTIFACTS = "/artifacts"
LIBRARIES = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
_LIBRARY_DIRECTORIES = (
    "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
)  # fmt: skip
_NAMES = (*programs.WRAPPED, programs.CDI_HOOK)

Kind = Literal["packages", "installed", "host"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A toolkit that is there. `programs` and `libraries` lead from names to agent paths that have
    no link in them. Those of kind `host` are run where they are, the others are copied."""

    kind: Kind
    place: str
    programs: Mapping[str, str]
    libraries: Mapping[str, str]


def find(settings: Settings, host: HostRoot, installed: HostPath) -> Origin:
    """The toolkit: from the source tree; else what is installed; else the host's own packages.

    Raises Refused for a source tree that was asked for and is none, NoToolkit where there is none.
    """
    root = _source_root(settings, host)
    if root is not None:
        return _packages(root)
    found = _installed(installed) or _host(host)
    if found is None:
        raise NoToolkit(
            f"cannot find the NVIDIA container toolkit: {programs.RUNTIME} is neither in "
            f"{settings.toolkit_install_dir}/toolkit nor in /usr/bin of the host; install the "
            "toolkit, or give --toolkit-source-root or --toolkit-install-dir"
        )
    return found


def _source_root(settings: Settings, host: HostRoot) -> str | None:
    """The tree to install from, of the kind of packages that the host has."""
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
    candidates = (programs.runs(root, f"{above}/{name}") for above in programs.DIRECTORIES)
    return next((path for path in candidates if path), None)


def _packages(place: str) -> Origin:
    root = _open(place)
    found = {name: path for name in _NAMES if (path := _program(root, name))}
    libraries = {}
    for name in LIBRARIES:
        candidates = (_library(root, f"{above}/{name}") for above in _LIBRARY_DIRECTORIES)
        if path := next((path for path in candidates if path), None):
            libraries[name] = path
    return Origin("packages", place, found, libraries)


def _library(root: HostRoot, name: str) -> str | None:
    try:
        agent = root.resolve(name).agent
        found = os.stat(agent, follow_symlinks=False)
    except (OSError, Refused):
        return None
    return agent if stat.S_ISREG(found.st_mode) else None


def _installed(directory: HostPath) -> Origin | None:
    """What we, or NVIDIA's installer, put there: a program of which there is a wrapper has its
    own name with `.real`."""
    if not os.path.isdir(directory.agent):
        return None
    root = _open(directory.agent)

    def program(name: str) -> str | None:
        return programs.runs(root, f"/{name}.real") or programs.runs(root, f"/{name}")

    found = {name: path for name in _NAMES if (path := program(name))}
    libraries = {name: path for name in LIBRARIES if (path := _library(root, f"/{name}"))}
    main = _main(found)
    if main is None or _is_our_wrapper(main):
        return None
    return Origin("installed", directory.host, found, libraries)


def _main(found: Mapping[str, str]) -> str | None:
    """Without one of these there is nothing to work with."""
    return found.get(programs.RUNTIME) or found.get(programs.RUNTIME_HOOK)


def _is_our_wrapper(path: str) -> bool:
    """A wrapper of ours without a `.real` beside it stands before the host's own program."""
    try:
        with open(path, "rb") as file:
            return file.read(len(wrapper.HEAD)) == wrapper.HEAD
    except OSError:
        return False


def _host(host: HostRoot) -> Origin | None:
    found = {name: path for name in _NAMES if (path := programs.runs(host, f"/usr/bin/{name}"))}
    if _main(found) is None:
        return None
    return Origin("host", "/usr/bin", found, {})
