"""Plant faults in the product, one at a time, and show which tests catch each.

It checks that a faster suite is no weaker. Run it by hand, because it takes long:

    tests/tools/setup
    .venv/bin/python tests/bench/mutants.py [OPTIONS] [MUTANT...]

    --list           the mutants, and the tests that are likely to catch each
    --all-catchers   run the likely tests to their end, and note every one that fails
    --tests PATH     tests to run instead of the likely ones; repeatable
    --no-whole       do not run the whole suite where the likely tests catch nothing
    --json FILE      write the results as JSON after each mutant
    -n NUMBER        processes that run tests (2)

The faults are in `planted.py`. It works on a copy of the checkout with a copy of .venv, so that the
checkout stays as it is; what is not committed yet is copied too. Tests run as they do by default,
without --long. First all likely tests run without any fault. If one fails, or all of a mutant's are
skipped, the script stops.

Exit code 1: a mutant was caught by nothing. 2: the script could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.bench.planted import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]

# Variables that would select another Python, other pytest options or another repository.
_FOREIGN = re.compile(r"PYTHON.*|PYTEST_.*|VIRTUAL_ENV|TOOLKIT_AGENT_.*|GIT_.*")
_LINE = re.compile(r"(FAILED|ERROR|PASSED) (\S+?\.py(?:::\w+)*(?:\[.*?\](?= - |$))?)", re.MULTILINE)
_CAUSE = re.compile(r"^E +(.+)$", re.MULTILINE)
_PROOF = 97  # exit code of a program that has the fault by which the copy is recognised


class CannotRun(Exception):
    """Nothing can be said about the tests; the message says why."""


@dataclass(frozen=True)
class Run:
    """One run of pytest: ids of tests that failed and that passed, the first failure's cause."""

    code: int
    failed: tuple[str, ...]
    passed: tuple[str, ...]
    cause: str
    seconds: float
    output: str


@dataclass(frozen=True)
class Result:
    """What became of a mutant. `failed` are the tests that caught it, none where nothing did;
    `whole`: only the whole suite could tell."""

    mutant: Mutant
    failed: tuple[str, ...]
    cause: str
    whole: bool
    seconds: float


class Copy:
    """A checkout of its own with an environment of its own, in a temporary directory."""

    def __init__(self, place: Path, processes: int) -> None:
        self.root = place / "checkout"
        self.processes = processes
        self._planted = 0

    def make(self) -> None:
        """Copy everything, and see that programs run what was copied. Raises CannotRun."""
        _git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(self.root))
        _git("-C", str(self.root), "reset", "--quiet")
        wanted = ("--cached", "--others", "--exclude-standard")
        listed = _git("-C", str(ROOT), "ls-files", "-z", *wanted)
        stubs = [str(path.relative_to(ROOT)) for path in ROOT.glob("agent/_cri/api_pb2*")]
        for name in (*listed.split("\0"), *stubs):
            if os.path.lexists(ROOT / name) and name:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name, follow_symlinks=False)
        if (ROOT / ".cache").exists():
            (self.root / ".cache").symlink_to(ROOT / ".cache")
        shutil.copytree(ROOT / ".venv", self.root / ".venv", symlinks=True)
        self._retarget()
        self._compile()
        self._recognise()

    def _retarget(self) -> None:
        """Let the environment name the copy where it named the checkout."""
        venv = self.root / ".venv"
        programs = (path for path in (venv / "bin").iterdir() if not path.is_symlink())
        named = (venv / "pyvenv.cfg", venv / "setup-base", *venv.glob("lib/*/site-packages/*.pth"),
                 *venv.glob("lib/*/site-packages/*.dist-info/direct_url.json"))  # fmt: skip
        for path in (*programs, *named):
            data = path.read_bytes()
            if str(ROOT).encode() in data and b"\0" not in data:
                path.write_bytes(data.replace(str(ROOT).encode(), str(self.root).encode()))

    def _compile(self) -> None:
        """Else every program that a test starts as another user would do it for itself."""
        words = [str(self.program("python")), "-m", "compileall", "-q", "agent"]
        subprocess.run(words, cwd=self.root, env=_environment(), check=True)

    def _recognise(self) -> None:
        """See that every way to start the program runs the copy's. Raises CannotRun."""
        python = str(self.program("python"))
        nested = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'agent'])"
        ways = [
            [python, "-m", "agent", "--help"],
            [python, "-c", f"{nested}.returncode)"],
            [str(self.program("toolkit-agent")), "--help"],
        ]
        version = f'\nif __name__ == "agent":\n    raise SystemExit({_PROOF})\n'
        text = (self.root / "agent/__init__.py").read_text(encoding="utf-8")
        with self.planted(Mutant("", "", "agent/__init__.py", text, text + version, ())):
            for way in ways:
                done = subprocess.run(
                    way, cwd="/", env=_environment(), stdin=subprocess.DEVNULL,
                    capture_output=True, check=False,
                )  # fmt: skip
                if done.returncode != _PROOF:
                    raise CannotRun(f"{' '.join(way)} does not run the copy; run tests/tools/setup")

    def program(self, name: str) -> Path:
        """A program of the copy's environment."""
        return self.root / ".venv/bin" / name

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """The copy with a fault, for as long as this takes."""
        path = self.root / mutant.file
        text, found = path.read_text(encoding="utf-8"), path.stat()
        self._planted += 1
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        # Bytecode is taken for that of a file with the same size and second: each has its own.
        moment = found.st_mtime_ns + self._planted * 10**9
        os.utime(path, ns=(moment, moment))
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    def pytest(self, *words: str) -> Run:
        """Run tests. Raises CannotRun where pytest itself does not work."""
        share = ["-n", str(self.processes), "--dist", "worksteal"]
        began = time.monotonic()
        done = subprocess.run(
            [str(self.program("pytest")), "-q", *share, "-p", "no:cacheprovider", "-r", "fEp",
             *words],
            cwd=self.root, env=_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        failed: dict[str, None] = {}
        passed = []
        for kind, name in _LINE.findall(done.stdout):
            if kind == "PASSED":
                passed.append(name)
            else:
                failed[name] = None
        if done.returncode not in (0, 1, 2) or (done.returncode and not failed):
            raise CannotRun(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}")
        cause = _CAUSE.search(done.stdout)
        return Run(done.returncode, tuple(failed), tuple(passed), cause[1] if cause else "",
                   time.monotonic() - began, done.stdout)  # fmt: skip


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not _FOREIGN.fullmatch(key)}


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotRun(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def check_table(mutants: Iterable[Mutant]) -> None:
    """See that every mutant can be planted. Raises CannotRun that names those that cannot be."""
    wrong = []
    for mutant in mutants:
        try:
            count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        except OSError as error:
            wrong.append(f"{mutant.name}: {mutant.file}: {error.strerror}")
            continue
        if count != 1:
            wrong.append(f"{mutant.name}: its text is {count} times in {mutant.file}, not once")
        paths = (path.partition("::")[0] for path in mutant.likely)
        wrong += [f"{mutant.name}: there is no {p}" for p in paths if not (ROOT / p).exists()]
    if wrong:
        raise CannotRun("the table does not fit this product:\n" + "\n".join(wrong))


def check_sound(copy: Copy, mutants: Sequence[Mutant]) -> None:
    """See that the likely tests pass without a fault. Raises CannotRun."""
    paths = tuple(dict.fromkeys(path for mutant in mutants for path in mutant.likely))
    run = copy.pytest(*paths)
    if run.failed:
        names = "\n".join(run.failed)
        raise CannotRun(f"these tests fail without any fault:\n{names}\n{run.output[-3000:]}")
    for mutant in mutants:
        if not any(_is_in(test, path) for test in run.passed for path in mutant.likely):
            raise CannotRun(f"{mutant.name}: all of its likely tests are skipped here")
    print(f"{len(run.passed)} likely tests pass without a fault in {run.seconds:.0f} s", flush=True)


def _is_in(test: str, path: str) -> bool:
    path = path.rstrip("/")
    return test == path or test.startswith((f"{path}/", f"{path}::", f"{path}["))


def judge(copy: Copy, mutant: Mutant, *, every: bool, whole: bool) -> Result:
    """Plant a mutant, and run tests until one fails, or all of the likely ones (`every`)."""
    stop = () if every else ("-x",)
    with copy.planted(mutant):
        run = copy.pytest(*stop, *mutant.likely)
    if run.failed or not whole:
        return Result(mutant, run.failed, run.cause, False, run.seconds)
    failed, cause, seconds = _in_the_whole(copy, mutant)
    return Result(mutant, failed, cause, True, run.seconds + seconds)


def _in_the_whole(copy: Copy, mutant: Mutant) -> tuple[tuple[str, ...], str, float]:
    """What fails of the whole suite. A test that fails without the fault too does not count."""
    passed_over: list[str] = []
    seconds = 0.0
    while True:
        with copy.planted(mutant):
            run = copy.pytest("-x", *(f"--deselect={name}" for name in passed_over))
        seconds += run.seconds
        if not run.failed:
            return (), "", seconds
        always = copy.pytest(*run.failed).failed
        caught = tuple(name for name in run.failed if name not in always)
        if caught:
            return caught, run.cause, seconds
        passed_over += always


def row(result: Result, widths: tuple[int, int]) -> str:
    """A line of the table: tests that failed are counted by folder."""
    folders = Counter(name.split("/")[1] for name in result.failed)
    counted = ", ".join(f"{folder} {number}" for folder, number in sorted(folders.items()))
    first = result.failed[0] if result.failed else "NOTHING"
    if result.whole and result.failed:
        first += " (not likely)"
    name, area = result.mutant.name.ljust(widths[0]), result.mutant.area.ljust(widths[1])
    return f"{name} | {area} | {first} | {counted or '-'} | {result.seconds:.0f}"


def to_json(results: Sequence[Result]) -> str:
    """All that is known, as data."""
    return json.dumps([asdict(result) for result in results], indent=1) + "\n"


def plant_all(mutants: Sequence[Mutant], options: argparse.Namespace) -> list[Result]:
    """The table, line by line. Raises CannotRun."""
    widths = (max(len(m.name) for m in mutants), max(len(m.area) for m in mutants))
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        os.chmod(place, 0o755)  # noqa: S103 - some tests run the program as another user
        copy = Copy(Path(place).resolve(), options.n)
        copy.make()
        check_sound(copy, mutants)
        heads = ("mutant".ljust(widths[0]), "area".ljust(widths[1]), "caught by", "failed", "s")
        print(" | ".join(heads), flush=True)
        for mutant in mutants:
            every, whole = options.all_catchers, not options.no_whole
            results.append(judge(copy, mutant, every=every, whole=whole))
            print(row(results[-1], widths), flush=True)
            if options.json:
                options.json.write_text(to_json(results), encoding="utf-8")
    return results


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mutant", nargs="*", help="names of mutants; all, where none is given")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--all-catchers", action="store_true")
    parser.add_argument("--tests", action="append", metavar="PATH")
    parser.add_argument("--no-whole", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("-n", type=int, default=2, metavar="NUMBER")
    return parser.parse_args()


def choose(options: argparse.Namespace) -> list[Mutant]:
    """The mutants that were asked for. Raises CannotRun for a name that none has."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in options.mutant if name not in known]:
        raise CannotRun(f"there is no mutant {', '.join(unknown)}; --list shows them")
    mutants = [known[name] for name in options.mutant] or list(MUTANTS)
    return [replace(m, likely=tuple(options.tests)) for m in mutants] if options.tests else mutants


def main() -> int:
    """Run the script; returns the exit code that is described above."""
    options = arguments()
    os.umask(0o022)
    try:
        mutants = choose(options)
        check_table(mutants if options.tests else MUTANTS)
        if options.list:
            for one in mutants:
                kind = "black box" if one.black_box else "-"
                print(f"{one.name} | {one.area} | {kind} | {one.file} | {' '.join(one.likely)}")
            return 0
        results = plant_all(mutants, options)
    except CannotRun as error:
        print(f"cannot plant faults: {error}", file=sys.stderr)
        return 2
    missed = [result.mutant.name for result in results if not result.failed]
    seconds = sum(result.seconds for result in results)
    print(f"{len(results) - len(missed)} of {len(results)} mutants caught in {seconds:.0f} s")
    if missed:
        print(f"CAUGHT BY NOTHING: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
