"""The wrappers run their program with the right words and environment in every shell of a node."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.toolkit import wrapper
from tests.doubles.toolkit import modules
from tests.tools.shells import SHELLS, shellcheck, start
from tests.tools.waiting import SOON, wait_until

KMSG = Path("/dev/kmsg")
_USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG = "NVIDIA_CTK_CONFIG_FILE_PATH"
_ODD = 'it\'s a "dir" $HOME `x` \\ *'
_PRINTF = shutil.which("printf", path=_USUAL) or ""
_PROGRAM = f"""\
#!/bin/sh
printf '%s\\0' "$0" "$$" "$#" "$@"
{shutil.which("cat", path=_USUAL)} "/proc/$$/environ"
exit 3
"""


@dataclass(frozen=True)
class Ran:
    """What came of a call. `program` is the name by which it was run, in process `pid`."""

    program: str
    pid: int
    argv: list[str]
    environment: dict[str, str]
    said: str
    code: int


class Bench:
    """One shell, and programs that say how they were called."""

    def __init__(self, directory: Path, shell: list[str]) -> None:
        self.directory, self.shell = directory, shell
        self.toolkit = directory / _ODD
        self.toolkit.mkdir()
        self.program = make_program(self.toolkit / "program.real")
        self.plain = partial(wrapper.text, program=str(self.program), directory=str(self.toolkit))

    def write(self, wanted: Callable[[], bytes]) -> Path:
        """The wrapper as it lies on a node."""
        path = self.toolkit / "program"
        path.write_bytes(wanted())
        path.chmod(0o755)
        return path

    def run(
        self,
        wanted: Callable[[], bytes],
        *argv: str,
        env: Mapping[str, str],
        before: tuple[str, ...] = (),
    ) -> Ran:
        """Call it; `before` are words that make way for the shell."""
        words = [*before, *self.shell, str(self.write(wanted)), *argv]
        with subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.directory
        ) as process:
            out, said = process.communicate(timeout=20)
        name, pid, number, *rest = os.fsdecode(out).split("\0") if out else ["", "0", "0"]
        count = int(number)
        pairs = (item.partition("=") for item in rest[count:] if item)
        assert int(pid) in (process.pid, 0), "another process than the one that was started"
        return Ran(name, int(pid), rest[:count], {key: value for key, _, value in pairs},
                   said.decode(), process.returncode)  # fmt: skip


def make_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PROGRAM, encoding="ascii")
    path.chmod(0o755)
    return path


@pytest.fixture(params=SHELLS, ids=lambda words: words[0])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(tmp_path, start(request.param))


def test_becomes_the_program(bench: Bench) -> None:
    """No shell is left, the words are the same, and so is the exit code."""
    argv = ["", "a b", "it's", '"$HOME"', "line\nline", "*", "--", "-n", "\\0", "", "%s"]
    ran = bench.run(bench.plain, *argv, env={"PATH": _USUAL, "IFS": "/", "OTHER": "a\nb "})
    assert (ran.program, ran.argv, ran.code, ran.said) == (str(bench.program), argv, 3, "")
    assert ran.environment["OTHER"] == "a\nb "


@pytest.mark.parametrize("path", [None, "", "/a b:/c"], ids=["unset", "empty", "set"])
def test_path_has_the_toolkit_first_and_the_nodes_always(bench: Bench, path: str | None) -> None:
    """The toolkit's own programs are found first, and those of the node always."""
    ran = bench.run(bench.plain, env={} if path is None else {"PATH": path})
    first, _, rest = ran.environment["PATH"].partition(":")
    assert first == str(bench.toolkit)
    if path is None:  # a shell may have a path of its own then
        assert {"/usr/sbin", "/usr/bin", "/sbin", "/bin"} <= set(rest.split(":"))
    else:
        assert rest == (path or _USUAL)
    assert not {_CONFIG, "LD_LIBRARY_PATH"} & set(ran.environment)


@pytest.mark.parametrize("given", [None, "", "/x y:/z"], ids=["unset", "empty", "set"])
def test_library_path_has_no_empty_part(bench: Bench, given: str | None) -> None:
    """An empty part of LD_LIBRARY_PATH would be the working directory."""
    config = f"{bench.toolkit}/config.toml"
    wanted = partial(bench.plain, libraries=True, config=config)
    env = {"PATH": _USUAL, _CONFIG: "/other"}
    ran = bench.run(wanted, env=env if given is None else {**env, "LD_LIBRARY_PATH": given})
    rest = f":{given}" if given else ""
    assert ran.environment["LD_LIBRARY_PATH"] == f"{bench.toolkit}{rest}"
    assert ran.environment[_CONFIG] == config


def test_shell_reports_a_missing_program(bench: Bench) -> None:
    """The shell says so."""
    wanted = partial(bench.plain, program="/not/there")
    ran = bench.run(wanted, env={"PATH": _USUAL})
    assert (ran.code, "/not/there" in ran.said) == (127, True)


def test_signals_reach_the_program(bench: Bench) -> None:
    """There is nobody between it and whoever started it."""
    sleep = shutil.which("sleep", path=_USUAL)
    assert sleep is not None
    path = bench.write(partial(bench.plain, program=sleep))
    with subprocess.Popen([*bench.shell, str(path), "60"], env={"PATH": _USUAL}) as process:
        command = Path(f"/proc/{process.pid}/cmdline")
        words = f"{sleep}\0".encode() + b"60\0"
        wait_until(lambda: command.read_bytes() == words, command.read_bytes)
        process.terminate()
        assert process.wait(SOON) == -signal.SIGTERM


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(st.binary(max_size=12).map(lambda text: text.replace(b"\0", b"")), max_size=6))
@example(argv=[bytes(range(1, 256))])
@example(argv=[b"\x01", b"\x7f", b"\x81\x88", b"\xff", b"-"])
def test_words_arrive_as_they_are(bench: Bench, argv: list[bytes]) -> None:
    """Bytes that are no text too. What prints them here is no shell."""
    path = bench.write(partial(bench.plain, program=_PRINTF))
    words = [*map(os.fsencode, bench.shell), os.fsencode(path), b"%s\\0", *argv]
    done = subprocess.run(words, env={"PATH": _USUAL}, capture_output=True, check=True)
    assert done.stdout == b"".join(word + b"\0" for word in argv or [b""])


# Without a driver.


class Kernel:
    """A mount namespace in which the driver is loaded or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        modules.make(folder)
        (folder / "sys").mkdir()
        (folder / "sys-loaded/nvidia").mkdir(parents=True)
        self.log = folder / "kmsg"
        self.log.touch()

    def words(self, driver: str) -> tuple[str, ...]:
        """A prefix of commands: there the driver is seen in `sys`, in `proc`, or not at all."""
        modules.load(self.folder, loaded=driver == "proc")
        seen = self.folder / ("sys-loaded" if driver == "sys" else "sys")
        mounts = [("/sys/module", str(seen))]
        if modules.PROC.exists():
            mounts.append((str(modules.PROC), str(self.folder / modules.FILE)))
        if KMSG.exists():  # never this machine's
            mounts.append((str(KMSG), str(self.log)))
        binds = [shlex.join(["/bin/mount", "--bind", source, at]) for at, source in mounts]
        script = "\n".join(["set -e", "/bin/mount --make-rprivate /", *binds, 'exec "$@"'])
        unshare = shutil.which("unshare", path=_USUAL)
        assert unshare is not None
        return (unshare, "-m", "/bin/sh", "-c", script, "sh")

    def environment(self, path: Path | str) -> dict[str, str]:
        return {"PATH": str(path), **modules.variables(self.folder)}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    if os.geteuid() != 0:
        pytest.skip("mounts: run tests/run as root")
    if reason := modules.reason_against():
        pytest.skip(reason)
    return Kernel(tmp_path_factory.mktemp("kernel"))


@pytest.mark.parametrize("driver", ["sys", "proc"])
def test_driver_is_seen_in_either_place(bench: Bench, kernel: Kernel, driver: str) -> None:
    """It is seen in either place."""
    wanted = partial(bench.plain, runtimes=("runc",))
    make_program(bench.directory / "bin/runc")
    env = kernel.environment(bench.directory / "bin")
    ran = bench.run(wanted, "create", env=env, before=kernel.words(driver))
    assert (ran.program, ran.said) == (str(bench.program), "")


@pytest.mark.parametrize(
    ("runtimes", "chosen"),
    [
        (("/it's mine/runc", "runc"), "it's mine/runc"),
        (("/missing/runc", "runc"), "bin/runc"),
        (("runc", "/it's mine/runc"), "bin/runc"),
        (("none", "crun"), "bin/crun"),
        (("/bin", "crun"), "bin/crun"),
        (("/text", "crun"), "bin/crun"),
        (("text", "crun"), "bin/crun"),
        (("cd", "crun"), "bin/crun"),
    ],
    ids=lambda item: item if isinstance(item, str) else " ".join(item),
)
def test_without_a_driver_the_first_runtime_that_is_there_goes_on(
    bench: Bench, kernel: Kernel, runtimes: tuple[str, ...], chosen: str
) -> None:
    """Named by its path or found in PATH; what cannot be run is not there. Nothing of ours is in
    its environment."""
    for name in ("bin/runc", "bin/crun", "it's mine/runc"):
        make_program(bench.directory / name)
    for name in ("text", "bin/text"):
        (bench.directory / name).write_text("no program")
    names = [f"{bench.directory}{name}" if name[0] == "/" else name for name in runtimes]
    wanted = partial(bench.plain, runtimes=tuple(names), config="/config", libraries=True)
    env = kernel.environment(bench.directory / "bin")
    ran = bench.run(wanted, "state", "a b", env=env, before=kernel.words("none"))
    assert (ran.program, ran.argv) == (f"{bench.directory}/{chosen}", ["state", "a b"])
    assert (ran.code, ran.said) == (3, "")
    assert not {_CONFIG, "LD_LIBRARY_PATH"} & set(ran.environment)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--root /r --log /l create --bundle /b id", True),
        ("run id", True),
        ("--version", False),
        ("features", False),
        ("--root /r state id", False),
        ("delete --force id", False),
        ("kill id 15", False),
    ],
)
def test_only_making_a_container_says_something(
    bench: Bench, kernel: Kernel, words: str, says: bool
) -> None:
    """To the kernel's log, never to a stream: that of a container's start lands in its own log, and
    containerd takes what is said in other calls for the answer."""
    kernel.log.write_text("")
    runc = make_program(bench.directory / "bin/runc")
    wanted = partial(bench.plain, runtimes=("runc",))
    env = kernel.environment(runc.parent)
    ran = bench.run(wanted, *words.split(), env=env, before=kernel.words("none"))
    assert (ran.argv, ran.program) == (words.split(), str(runc))
    assert ran.said == ""
    said = kernel.log.read_text()
    assert (said != "") == (says and KMSG.exists())
    assert not said or said == (
        f"<4>toolkit-agent: the NVIDIA driver is not loaded: {runc} runs without it\n"
    )


@pytest.mark.parametrize("log", ["missing", "directory"])
def test_node_without_a_log_gets_no_message(
    bench: Bench, kernel: Kernel, log: str, tmp_path: Path
) -> None:
    """Nothing is said, and nothing is made there."""
    runc = make_program(bench.directory / "bin/runc")
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "null").touch()
    if log == "directory":
        (dev / "kmsg").mkdir()
    script = f'mount --bind /dev/null {dev}/null && mount --rbind {dev} /dev && exec "$@"'
    before = (*kernel.words("none"), "/bin/sh", "-c", f"PATH={_USUAL}:$PATH; {script}", "sh")
    wanted = partial(bench.plain, runtimes=(str(runc),))
    ran = bench.run(wanted, "create", env=kernel.environment(_USUAL), before=before)
    assert (ran.program, ran.said) == (str(runc), "")
    assert {path.name for path in dev.iterdir()} == {"null"} | (
        {"kmsg"} if log == "directory" else set()
    )


def test_missing_runtime_is_reported_with_a_shells_exit_code(bench: Bench, kernel: Kernel) -> None:
    """It says so, and gives what a shell gives for what is not there."""
    wanted = partial(bench.plain, runtimes=("/missing/runc", "runc", "crun"))
    env = kernel.environment("/nowhere")
    ran = bench.run(wanted, "create", env=env, before=kernel.words("none"))
    assert (ran.program, ran.code) == ("", 127)
    assert ran.said.startswith("cannot start a container: ")


def test_wrappers_pass_shellcheck(tmp_path: Path) -> None:
    """Finds nothing in any of them."""
    paths = []
    for number, place in enumerate(("/usr/local/nvidia/toolkit", "/opt/a b/toolkit")):
        plain = partial(wrapper.text, program=f"{place}/x.real", directory=place)
        both = partial(plain, config=f"{place}/c", libraries=True)
        several = partial(both, runtimes=(f"{place}/runc", "runc", "crun"))
        for kind, item in enumerate((plain, both, several, partial(several, runtimes=("runc",)))):
            paths.append(tmp_path / f"{number}-{kind}")
            paths[-1].write_bytes(item())
    assert shellcheck(*paths) == ""
