"""What builds container images, unpacked from the distribution's packages; nothing is installed.

An installed buildah would bring a container runtime into the system. Unpacked it needs only its
libraries, and with chroot isolation it runs no container.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tools.fetch_runtimes import NotHere, archive_and_suites
from tests.tools.private_apt import AptError, PrivateApt, Source, run_command
from tests.tools.runtimes import cache_directory

_PACKAGES = ("buildah", "mmdebstrap")
# What each program of the system uses already; two versions of these must not be mixed.
_SYSTEM = frozenset({"libc6", "libgcc-s1"})
# Subcommands of buildah that read images want to know whom to trust.
_TRUSTING = frozenset({"build", "from", "pull", "push"})


class Unavailable(Exception):
    """Images cannot be built here; the message says why."""


@dataclass(frozen=True)
class ImageTools:
    """The programs, unpacked in `tools`; `cache` is where what they make may be kept."""

    tools: Path
    cache: Path

    def buildah(self, *arguments: str | os.PathLike[str], timeout: float = 900) -> str:
        """Run buildah on storage of its own, with the network of this machine; what it prints."""
        own = self.cache / "buildah"
        own.mkdir(exist_ok=True)
        policy, registries = own / "policy.json", own / "registries.conf"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n', encoding="ascii")
        registries.write_text("unqualified-search-registries = []\n", encoding="ascii")
        # vfs copies where others mount, and so works on every file system.
        store = ("--root", own / "root", "--runroot", own / "run", "--storage-driver", "vfs")
        command, *rest = arguments
        trust = ("--signature-policy", policy) if command in _TRUSTING else ()
        environment = {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries(self.tools))),
            "CONTAINERS_REGISTRIES_CONF": str(registries),
            "CONTAINERS_CONF": os.devnull,
            "CONTAINERS_STORAGE_CONF": os.devnull,
            "TMPDIR": str(own),
        }
        program = self.tools / "buildah/usr/bin/buildah"
        return _run([program, *store, command, *trust, *rest], environment, timeout)

    def bootstrap(
        self, target: Path, packages: Sequence[str], suite: str = "", components: str = "main"
    ) -> None:
        """Write the distribution's smallest system, and some packages, to the tar `target`; it is
        of this machine's own suite, or of another one."""
        archive, suites = archive_and_suites()
        suite = suite or suites[0]
        unread = [f"--dpkgopt=path-exclude=/usr/share/{n}/*" for n in ("doc", "locale", "man")]
        options = ["--mode=root", "--variant=minbase", "--format=tar", *unread]
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
        program = self.tools / "mmdebstrap/usr/bin/mmdebstrap"
        include = f"--include={','.join(packages)}"
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".apt-") as folder:
            sources = PrivateApt(Path(folder), archive, [suite], components).folder
            sources /= "sources.list"
            # Its helpers lie beside it.
            path = {"PATH": f"{program.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
            _run([program, *options, include, suite, target, sources], path, 900)

    def tree(
        self, target: Path, packages: Sequence[str], suite: str, components: str = "main"
    ) -> None:
        """Such a system in a folder, which appears complete or not at all."""
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tree-") as folder:
            archive, draft = Path(folder) / "root.tar", Path(folder) / "root"
            self.bootstrap(archive, packages, suite, components)
            draft.mkdir(mode=0o755)
            _run(["tar", "-C", draft, "--numeric-owner", "-xpf", archive], {}, 600)
            draft.rename(target)


def image_tools() -> ImageTools:
    """Unpack what is not there yet; Unavailable where that cannot be done."""
    if os.geteuid() != 0:
        raise Unavailable("images are built as root only")
    if shutil.which("perl") is None:
        raise Unavailable("mmdebstrap needs perl: apt-get install perl")
    cache = cache_directory() / "image"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        try:
            archive, suites = archive_and_suites()
            tools = cache / f"tools-{suites[0]}"
            if not tools.exists():
                unpack(archive, suites[0], tools, _PACKAGES, _PACKAGES[:1])
        except (AptError, NotHere) as error:
            raise Unavailable(f"cannot unpack {' and '.join(_PACKAGES)}: {error}") from error
    return ImageTools(tools, cache)


def unpack(
    archive: Source, suite: str, target: Path, packages: Sequence[str], linked: Sequence[str]
) -> None:
    """Fill `target` with one folder a package, and the libraries of those that are `linked`; it
    appears complete or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".apt-") as folder:
        # This machine's own suite alone: the libraries go with its C library.
        apt = PrivateApt(Path(folder), archive, [suite])
        problem = next(iter(apt.catalogue(packages).problems), "")
        names = list(dict.fromkeys([*packages, *_needed_libraries(apt, linked)]))
        offers = {offer.package: offer for offer in reversed(apt.catalogue(names).offers)}
        draft = Path(folder) / target.name
        draft.mkdir(mode=0o755)
        for name in names:
            if name not in offers:
                raise AptError(problem or f"{suite} does not have {name}")
            apt.unpack(offers[name], draft / name)
        draft.rename(target)


def _needed_libraries(apt: PrivateApt, packages: Sequence[str]) -> list[str]:
    """The packages of libraries that `packages` and these libraries depend on."""
    found: set[str] = set()
    asked = set(packages)
    while asked:
        words = ["apt-cache", "-c", str(apt.configuration), "depends", "--important", *asked]
        lines = run_command(words).stdout.splitlines()
        names = {line.rpartition("Depends: ")[2] for line in lines if "Depends: " in line}
        asked = {n for n in names if n.startswith("lib")} - _SYSTEM - found
        found |= asked
    return sorted(found)


def libraries(tools: Path) -> list[Path]:
    """Where the libraries of unpacked packages are."""
    folders = [*tools.glob("*/usr/lib/*-linux-gnu*"), *tools.glob("*/lib/*-linux-gnu*")]
    return sorted(folders)


def _run(
    argv: Sequence[str | os.PathLike[str]], environment: Mapping[str, str], timeout: float
) -> str:
    result = subprocess.run(
        argv,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    if result.returncode != 0:
        said = "\n".join((result.stdout + result.stderr).strip().splitlines()[-30:])
        raise AssertionError(f"{Path(argv[0]).name} ended with {result.returncode}:\n{said}")
    return result.stdout.strip()
