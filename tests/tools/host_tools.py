"""The programs that the tests need beyond Python: which, from which package, and where they are.

    python3 -m tests.tools.host_tools      # look for all; fetch what is missing, say what stays so
    python3 -m tests.tools.host_tools pip  # pip too, for a Python without it: prints the wheel

What the machine has is taken. What it lacks is unpacked from the distribution's packages into the
cache, by anybody and without a change to the system; what cannot be had is said in one line each,
with the package to install. Any Python from 3.11 on will do, without root and without other
packages. Tests ask `tool("kubectl")`, and skip with `reason("kubectl")` where that is None.
"""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tools.fetch_runtimes import NotHere, archive_and_suites, one_line
from tests.tools.private_apt import AptError, Catalogue, PrivateApt, last_line, run_command
from tests.tools.runtimes import ROOT, cache_directory


@dataclass(frozen=True)
class Tool:
    """A program by its `names`, the `package` to install for it, and what it is `needed` for.

    `file` is where it lies in one of the packages that are unpacked, which are `package` alone
    unless `parts` are named; without it the program is not fetched. It has to accept `trial`.
    `suites` are asked where the machine's own does not have it.
    """

    names: tuple[str, ...]
    package: str
    needed: str
    file: str = ""
    parts: tuple[str, ...] = ()
    trial: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the tests call it."""
        return self.names[0]

    @property
    def packages(self) -> tuple[str, ...]:
        """What is unpacked."""
        return self.parts or (self.package,)


# A wheel, and no program: it is asked for by name only.
_PIP = Tool(("pip",), "python3-venv", "the virtual environment",
            "usr/share/python-wheels/pip-*.whl", ("python3-pip-whl",))  # fmt: skip
_TOOLS = (
    Tool(("cc", "gcc"), "gcc", "the made-up libnvidia-ml",
         "usr/bin/tcc", ("tcc", "libc6-dev", "linux-libc-dev"), ("-v",)),
    # Old ones know no components.
    Tool(("kubectl",), "kubectl", "the manifests", "usr/bin/kubectl",
         trial=("kustomize", str(ROOT / "tests/deploy/plugin")), suites=("trixie", "resolute")),
    Tool(("busybox",), "busybox", "its shell", "**/bin/busybox", trial=("sh", "-c", ":")),
    Tool(("dash",), "dash", "this shell", "**/bin/dash", trial=("-c", ":")),
    Tool(("bash",), "bash", "this shell", "**/bin/bash", trial=("-c", ":")),
    Tool(("zsh",), "zsh", "completion in it", "**/bin/zsh", ("zsh", "zsh-common"), ("-fc", ":")),
    Tool(("fish",), "fish", "completion in it", "usr/bin/fish",
         ("fish", "fish-common", "libpcre2-32-0")),
    Tool(("perl",), "perl", "images, and systems that are booted"),
    Tool(("tar",), "tar", "images, and systems that are booted"),
    Tool(("mount",), "mount", "nodes with mounts of their own"),
    Tool(("unshare",), "util-linux", "nodes with mounts of their own"),
    Tool(("nsenter",), "util-linux", "nodes with mounts of their own"),
    Tool(("setpriv",), "util-linux", "nodes with mounts of their own"),
)  # fmt: skip
_BY_NAME = {known.name: known for known in (_PIP, *_TOOLS)}


@dataclass(frozen=True)
class Answer:
    """Why a program was not to be had; `final` says that asking again would not help."""

    why: str
    final: bool


def tool(name: str) -> Path | None:
    """Where a program of the table is, unpacked or the machine's own; None where there is none."""
    wanted = _BY_NAME[name]
    return _unpacked(wanted) or _installed(wanted)


def unpacked(name: str, package: str) -> Path:
    """The folder of one of the packages that a program was unpacked from."""
    assert package in _BY_NAME[name].packages
    return _folder() / package


def reason(name: str) -> str:
    """Why there is no such program, and how to get one."""
    answer = _answers().get(name)
    why = answer.why if answer else "not fetched, run tests/run"
    return f"no {name}: {why}; on Debian and Ubuntu: apt-get install {_BY_NAME[name].package}"


def main(arguments: Sequence[str]) -> int:
    """Find or fetch all and the named ones; print where these are, and fail without them."""
    wanted = [*_TOOLS, *(_BY_NAME[name] for name in arguments)]
    missing = [t for t in wanted if not _unpacked(t) and not _serves(t)]
    if missing:
        fetch(missing)
    for t in missing:
        if not _unpacked(t):
            print(f"host_tools: {reason(t.name)} (for {t.needed})", file=sys.stderr)
    found = [tool(name) for name in arguments]
    print(*(path for path in found if path), sep="\n", end="\n" if any(found) else "")
    return int(None in found)


def fetch(missing: Sequence[Tool]) -> None:
    """Unpack what the distribution has of them, and note why the others are not to be had."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        answers = _answers()
        final = {name for name, answer in answers.items() if answer.final}
        asked = [t for t in missing if t.file and not _unpacked(t) and t.name not in final]
        answers |= {t.name: Answer("not on this machine", True) for t in missing if not t.file}
        if asked:
            names = " ".join(t.name for t in asked)
            print(f"host_tools: asking the distribution for {names}", file=sys.stderr)
            answers |= _ask(asked, folder)
        draft = folder / ".missing.json"
        draft.write_text(json.dumps({n: [a.why, a.final] for n, a in answers.items()}, indent=2))
        draft.rename(folder / "missing.json")


def _ask(asked: Sequence[Tool], folder: Path) -> dict[str, Answer]:
    """Unpack them one after the other; why some cannot be."""
    for leftover in folder.glob(".apt-*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        archive, (own, *_) = archive_and_suites()
        with tempfile.TemporaryDirectory(dir=folder, prefix=".apt-") as work:
            suites = dict.fromkeys([own, *(suite for t in asked for suite in t.suites)])
            apt = PrivateApt(Path(work), archive, list(suites))
            catalogue = apt.catalogue([package for t in asked for package in t.packages])
            found = {t.name: _take(t, apt, catalogue, own) for t in asked}
    except NotHere as error:
        return {t.name: Answer(one_line(error), True) for t in asked}
    except (AptError, OSError) as error:
        return {t.name: Answer(one_line(error), False) for t in asked}
    return {name: answer for name, answer in found.items() if answer}


def _take(wanted: Tool, apt: PrivateApt, catalogue: Catalogue, own: str) -> Answer | None:
    """Unpack the packages of one program and try it; what was wrong, if anything."""
    for package in wanted.packages:
        # What another suite has may need a newer C library.
        offers = sorted(catalogue.of(package), key=lambda offer: offer.suite != own)
        if not offers:
            problem = next(iter(catalogue.problems), "")
            return Answer(problem or f"the distribution has no {package}", not problem)
        folder = _folder() / package
        try:
            if not folder.exists():
                apt.unpack(offers[0], folder)
        except (AptError, OSError) as error:
            return Answer(one_line(error), False)
    program = _unpacked(wanted)
    problem = "it is not in its package" if program is None else _trial(wanted, program)
    if problem:
        shutil.rmtree(_folder() / wanted.packages[0])
    return Answer(problem, True) if problem else None


def _serves(wanted: Tool) -> bool:
    """Whether the machine has it, and it is good enough."""
    program = _installed(wanted)
    return program is not None and not _trial(wanted, program)


def _trial(wanted: Tool, program: Path) -> str:
    """What is wrong with a program; empty where it works here."""
    if not wanted.trial:
        return ""
    try:
        result = run_command([str(program), *wanted.trial])
    except AptError as error:
        return one_line(error)
    return "" if result.returncode == 0 else f"it does not work: {last_line(result.stderr)}"


def _unpacked(wanted: Tool) -> Path | None:
    folders = [_folder() / package for package in wanted.packages]
    if not wanted.file or not all(folder.is_dir() for folder in folders):
        return None
    return next((path for folder in folders for path in folder.glob(wanted.file)), None)


def _installed(wanted: Tool) -> Path | None:
    paths = (shutil.which(name) for name in wanted.names)
    return next((Path(path) for path in paths if path), None)


def _folder() -> Path:
    """Of this release only: a program of another one may need another C library."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return cache_directory() / f"tools-{release.get('VERSION_CODENAME', 'none')}"


def _answers() -> dict[str, Answer]:
    path = _folder() / "missing.json"
    if not path.is_file():
        return {}
    return {n: Answer(why, final) for n, (why, final) in json.loads(path.read_text()).items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
