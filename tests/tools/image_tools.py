"""What builds container images, unpacked from the distribution's packages; nothing is installed.

An installed buildah would bring a container runtime into the system. Unpacked it needs only its
libraries, and with chroot isolation it runs no container. It starts itself anew with an empty
environment, so that LD_LIBRARY_PATH does not last: it runs among mounts of its own, where the
loader's cache knows the unpacked libraries too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.tools.fetch_runtimes import NotHere, archive_and_suites
from tests.tools.private_apt import AptError, PrivateApt, Source, run_command
from tests.tools.runtimes import cache_directory

_PACKAGES = ("buildah", "mmdebstrap")
# What each program of the system uses already; two versions of these must not be mixed.
_SYSTEM = frozenset({"libc6", "libgcc-s1"})
# Subcommands of buildah that read images want to know whom to trust.
_TRUSTING = frozenset({"build", "from", "pull", "push"})
_LOADER_CACHE = Path("/etc/ld.so.cache")
# Among mounts of its own: a file over another one, then the program.
_COVERED = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
# Whether a directory can be the upper one of an overlay.
_LAYERS = 'mount -t overlay overlay -o "lowerdir=$1/low,upperdir=$1/up,workdir=$1/work" "$1/all"'
_PRIVATELY = ("unshare", "--mount", "--propagation", "private", "--")


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
        containers = own / "containers.conf"
        containers.write_text(f'[engine]\nhelper_binaries_dir = ["{own}"]\n', encoding="utf-8")
        # Newer versions look for it, and call it for networks: what is built here uses this
        # machine's own, and none is made.
        (own / "netavark").write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
        (own / "netavark").chmod(0o755)
        driver = "overlay" if self.layered else "vfs"
        store = ("--root", own / driver, "--runroot", own / "run", "--storage-driver", driver)
        command, *rest = arguments
        trust = ("--signature-policy", policy) if command in _TRUSTING else ()
        environment = {
            "CONTAINERS_REGISTRIES_CONF": str(registries),
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": os.devnull,
            "TMPDIR": str(own),
        }
        words: list[str | os.PathLike[str]] = [
            *_PRIVATELY,
            *("sh", "-c", _COVERED, "sh", self._loader_cache(), _LOADER_CACHE),
            *(self.tools / "buildah/usr/bin/buildah", *store, command, *trust, *rest),
        ]
        return _run(words, environment, timeout, "buildah")

    @property
    def layered(self) -> bool:
        """Whether the storage mounts layers over each other, which makes them cheap to keep. No
        file system of a container can hold such: there each layer is a copy of all below it."""
        return _holds_overlays(self.cache)

    def _loader_cache(self) -> Path:
        """The loader's cache of this machine, with the unpacked libraries."""
        target = self.cache / "ld.so.cache"
        folders = [*map(str, libraries(self.tools)), "include /etc/ld.so.conf"]
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.cache) as file:
            file.write("".join(f"{line}\n" for line in folders))
            file.flush()
            _run(["ldconfig", "-X", "-C", target, "-f", file.name], {"PATH": _path()}, 60)
        return target

    def bootstrap(
        self,
        target: Path,
        packages: Sequence[str],
        suite: str = "",
        components: str = "main",
        unread: Sequence[str] = (),
    ) -> None:
        """Write the distribution's smallest system, and some packages, to the tar `target`; it is
        of this machine's own suite, or of another one. What the patterns `unread` match goes
        once all is set up."""
        archive, suites = archive_and_suites()
        suite = suite or suites[0]
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{n}/*" for n in ("doc", "locale", "man")]
        options = ["--mode=root", "--variant=minbase", "--format=tar", *excluded]
        # The word of a hook is a script of the shell's, with the new root as its first argument.
        options += [f'--customize-hook=rm -rf "$1"{pattern}' for pattern in unread]
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
        program = self.tools / "mmdebstrap/usr/bin/mmdebstrap"
        include = f"--include={','.join(packages)}"
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".apt-") as folder:
            sources = PrivateApt(Path(folder), archive, [suite], components).folder
            sources /= "sources.list"
            # It calls programs of its own package by their names.
            path = {"PATH": _path(program.parent)}
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


@cache
def _holds_overlays(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name in ("low", "up", "work", "all"):
            (Path(place) / name).mkdir()
        words = [*_PRIVATELY, "sh", "-c", _LAYERS, "sh", place]
        tried = subprocess.run(words, capture_output=True, check=False, timeout=60)
    return tried.returncode == 0


def _path(*first: Path) -> str:
    """Where programs are looked for; those of the system's own folders may not be on PATH."""
    return os.pathsep.join([*map(str, first), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def libraries(tools: Path) -> list[Path]:
    """Where the libraries of unpacked packages are."""
    folders = [*tools.glob("*/usr/lib/*-linux-gnu*"), *tools.glob("*/lib/*-linux-gnu*")]
    return sorted(folders)


def _run(
    argv: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str],
    timeout: float,
    name: str = "",
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
        raise AssertionError(
            f"{name or Path(argv[0]).name} ended with {result.returncode}:\n{said}"
        )
    return result.stdout.strip()
