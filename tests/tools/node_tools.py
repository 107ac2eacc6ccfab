"""Whole systems with systemd as PID 1: what boots them, and what is booted.

Nothing is installed: systemd-nspawn is unpacked where the machine has none, and a system is the
distribution's smallest with systemd and containerd, unpacked once and kept in the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.tools.fetch_runtimes import NotHere, archive_and_suites
from tests.tools.image_tools import Unavailable, image_tools, libraries, unpack
from tests.tools.private_apt import AptError
from tests.tools.runtimes import cache_directory

# The suites of Debian that have these generations of containerd, with systemd 257 and later.
SUITES = {"1.7": "trixie", "2.1": "forky"}
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "containerd", "runc")
_UNREAD = "it is made with mmdebstrap from the distribution's packages; run tests/run as root"


@dataclass(frozen=True)
class NodeTools:
    """`nspawn` with the environment that it needs, and the read-only system `tree` for it.
    `unified`: its systemd knows the second version of cgroups only."""

    nspawn: Path
    environment: dict[str, str]
    tree: Path
    unified: bool


def node_tools(generation: str) -> NodeTools:
    """Make what is not there yet; Unavailable where that cannot be done."""
    if os.geteuid() != 0:
        raise Unavailable("a system is booted as root only")
    _try_namespace()
    suite = SUITES[generation]
    cache = cache_directory() / "nodes"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        try:
            nspawn, environment = _nspawn(cache)
            mark = hashlib.sha256(" ".join(_PACKAGES).encode()).hexdigest()[:8]
            tree = cache / f"{suite}-{mark}"
            if not tree.exists():
                image_tools().tree(tree, _PACKAGES, suite)
        except (AptError, NotHere, AssertionError) as error:
            raise Unavailable(f"no system of {suite}: {error}; {_UNREAD}") from error
    return NodeTools(nspawn, environment, tree, unified=generation != "1.7")


def _try_namespace() -> None:
    """A machine that lets nobody mount, a container perhaps, boots no other."""
    done = subprocess.run(["unshare", "-mpf", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"no namespaces here: {done.stderr.strip()}; run on a machine of its own")
    if not os.access("/sys/fs/cgroup", os.W_OK) and not any(
        os.access(folder, os.W_OK) for folder in Path("/sys/fs/cgroup").iterdir()
    ):
        raise Unavailable("no cgroups can be made here; run on a machine of its own")


def _nspawn(cache: Path) -> tuple[Path, dict[str, str]]:
    installed = shutil.which("systemd-nspawn")
    if installed:
        return Path(installed), {}
    archive, suites = archive_and_suites()
    tools = cache / f"tools-{suites[0]}"
    package = "systemd-container"
    program = Path(package, "usr/bin/systemd-nspawn")
    if not tools.exists():
        unpack(archive, suites[0], tools, [package], [])
    if _runs(tools / program, {}):  # with the libraries of the machine's own systemd
        return tools / program, {}
    tools = cache / f"tools-{suites[0]}-whole"
    if not tools.exists():
        packages = (package, "systemd")
        unpack(archive, suites[0], tools, packages, packages)
    folders = [*libraries(tools), *tools.glob("*/**/*-linux-gnu*/systemd")]
    return tools / program, {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}


def _runs(program: Path, environment: dict[str, str]) -> bool:
    done = subprocess.run([program, "--version"], env=environment, capture_output=True, check=False)
    return done.returncode == 0
