"""The project's image, built from its Containerfile on a base of the distribution's packages.

No image can be pulled: the base, and a stand-in for the one with NVIDIA's programs, are made here.
All is kept in the cache, under names that change with what it was made of.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools.fetch_runtimes import archive_and_suites
from tests.tools.image_tools import ImageTools
from tests.tools.runtimes import ROOT

CONTAINERFILE = ROOT / "Containerfile"
NAME = "localhost/toolkit-agent:test"

_BASE_PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates")
# Half of the bytes, and nothing that runs in the image needs them: Debian's scripts have perl-base.
_UNREAD = ("/usr/lib/*/perl", "/usr/share/perl", "/usr/lib/*/gconv")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PROGRAMS = (
    *("nvidia-container-runtime", "nvidia-container-runtime.cdi"),
    *("nvidia-container-runtime.legacy", "nvidia-cdi-hook", "nvidia-ctk"),
)
# Where pip may be told to look for packages, and what it needs to get there.
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
# What no image depends on, besides all that is hidden.
_NOT_SOURCES = frozenset({"tests", "__pycache__"})


@dataclass(frozen=True)
class Image:
    """The image NAME in the archive `path`."""

    path: Path

    @property
    def config(self) -> Mapping[str, Any]:
        """Entry point, environment, labels and so on."""
        with tarfile.open(self.path) as archive:
            manifest = json.loads(_read(archive, "manifest.json"))[0]
            config: Mapping[str, Any] = json.loads(_read(archive, manifest["Config"]))["config"]
        return config

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that it sets."""
        return dict(word.split("=", 1) for word in self.config["Env"])

    @property
    def size(self) -> int:
        """Its bytes, which are not compressed."""
        return self.path.stat().st_size


def build(tools: ImageTools) -> Image:
    """Build the image, unless the cache has it as it would become; of what changed only the layers
    that it is in, and those on top of them."""
    with (tools.cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test may be at it
        own = Path(__file__).read_text(encoding="utf-8")
        key = _key(own, _suite(), *_BASE_PACKAGES, *_contents(ROOT))
        target = tools.cache / f"image-{key}.tar"
        if not target.exists():
            _remove(tools.cache.glob("image-*.tar"))
            _build(tools, target)
    return Image(target)


def _suite() -> str:
    return archive_and_suites()[1][0]


def _base(tools: ImageTools, work: Path) -> str:
    """The name of the image of the distribution's packages, made where the storage lacks it."""
    name = f"localhost/base:{_key(_suite(), *_BASE_PACKAGES, *_UNREAD, _BASE)}"
    if not _is_there(tools, name):
        tools.bootstrap(work / "base.tar", _BASE_PACKAGES, unread=_UNREAD)
        _make(tools, name, _BASE, work)
        (work / "base.tar").unlink()
    return name


def _toolkit(tools: ImageTools, work: Path) -> str:
    """The name of the stand-in for NVIDIA's image."""
    name = f"localhost/toolkit:{_key(*_PROGRAMS, _TOOLKIT)}"
    if not _is_there(tools, name):
        _make_toolkit(work / "toolkit")
        _make(tools, name, _TOOLKIT, work)
    return name


def _is_there(tools: ImageTools, name: str) -> bool:
    return tools.buildah("images", "--quiet", "--filter", f"reference={name}") != ""


def _make(tools: ImageTools, name: str, lines: str, work: Path) -> None:
    path = work / "Containerfile"
    path.write_text(lines, encoding="ascii")
    tools.buildah("build", "--tag", name, "--file", path, work)


def _build(tools: ImageTools, target: Path) -> None:
    draft = target.with_name("draft-image.tar")
    draft.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=tools.cache, prefix=".build-") as folder:
        work = Path(folder)
        arguments = {"BASE_IMAGE": _base(tools, work), "TOOLKIT_IMAGE": _toolkit(tools, work)}
        pip = work / "pip.conf"
        pip.write_text(_pip_configuration(), encoding="utf-8")
        pip.chmod(0o644)
        # What a build here needs and an image must not have.
        mounts = {pip: Path("/etc/pip.conf"), _CERTIFICATES: _CERTIFICATES}
        words: list[str | Path] = [
            *("build", "--isolation=chroot", "--network=host"),
            f"--layers={str(tools.layered).lower()}",
            # Newer versions set limits of their own, which may be above what this machine allows.
            *(f"--ulimit={name}={_limits(name)}" for name in _LIMITED),
            *(f"--volume={here}:{there}:ro" for here, there in mounts.items()),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            *("--file", CONTAINERFILE),
        ]
        tools.buildah(*words, "--tag", NAME, ROOT)
        if tools.layered:
            # The stage that installs packages is no ancestor of the image: what has no name goes.
            tools.buildah(*words, "--target", "build", "--tag", "localhost/build", ROOT)
    tools.buildah("push", NAME, f"docker-archive:{draft}:{NAME}")
    tools.buildah("rmi", "--prune", "--force")
    draft.rename(target)


_LIMITED = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
_PID_MAX = Path("/proc/sys/kernel/pid_max")


def _limits(name: str) -> str:
    """What holds for this process; -1 is no limit. buildah lowers that of processes to the kernel's
    own first, and what is above that is refused then (observed on 1.28 with a pid_max of 32768)."""
    limits = list(resource.getrlimit(_LIMITED[name]))
    if name == "nproc":
        most = int(_PID_MAX.read_text("ascii"))
        limits = [most if limit == -1 else min(limit, most) for limit in limits]
    return ":".join(map(str, limits))


_BASE = 'FROM scratch\nADD base.tar /\nCMD ["/bin/sh"]\n'
_TOOLKIT = "FROM scratch\nCOPY toolkit /\n"


def _make_toolkit(root: Path) -> None:
    """What the Containerfile takes out of NVIDIA's image: here programs that do nothing."""
    for packages in ("deb", "rpm"):
        programs = root / "artifacts" / packages / "usr/bin"
        programs.mkdir(parents=True)
        for name in _PROGRAMS:
            (programs / name).write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
            (programs / name).chmod(0o755)


def _pip_configuration() -> str:
    """What this machine's pip is told about where packages are, for the pip of the build."""
    words = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = configparser.ConfigParser(interpolation=None)
    found["global"] = {"cert": str(_CERTIFICATES)}
    for line in lines:
        # `global.index-url='https://...'`, with `:env:` for what the environment says, at the end.
        name, _, value = line.partition("=")
        setting = name.rpartition(".")[2]
        # A folder of this machine is not there in the build.
        places = [word for word in value.strip("'").split() if not word.startswith("file:")]
        if setting in _PIP_SETTINGS and places:
            found["global"][setting] = " ".join(places)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        found.write(file)
        file.seek(0)
        return file.read()


def _contents(root: Path) -> Iterator[str]:
    """Each file that an image may be made of, and what is in it."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(n for n in folders if n not in _NOT_SOURCES and not n.startswith("."))
        for path in sorted(Path(folder) / name for name in names):
            yield f"{path.relative_to(root)} {path.stat().st_mode}"
            yield hashlib.sha256(path.read_bytes()).hexdigest()


def _key(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _remove(paths: Iterator[Path]) -> None:
    for path in paths:
        path.unlink()


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()
