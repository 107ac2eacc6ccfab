"""Shells complete commands, options, values and names of files, with the script that we print."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.host_tools import reason, tool, unpacked

PROGRAM = Path(sys.executable).with_name("toolkit-agent")
# What is typed before the tabulator, and what has to be there then.
CASES = {
    "a command": ("rev", "revert"),
    "a command of a group": ("cdi val", "cdi validate"),
    "an option": ("apply --restart-m", "apply --restart-mode"),
    "an option of a command alone": ("apply --dry", "apply --dry-run"),
    "a value": ("apply --restart-mode sig", "apply --restart-mode signal"),
    "a value that is joined": ("apply --restart-mode=sig", "apply --restart-mode=signal"),
    "a boolean": ("apply --set-as-default=f", "apply --set-as-default=false"),
    "a form of output": ("plan -o j", "plan -o json"),
    "a file": ("cdi validate {}/gpu-sp", "cdi validate {}/gpu-spec.yaml"),
    "the file of an option": ("apply --config {}/gpu-sp", "apply --config {}/gpu-spec.yaml"),
}


def environment(home: Path) -> dict[str, str]:
    """What a shell gets."""
    return {
        "PATH": f"{PROGRAM.parent}:{os.defpath}", "TERM": "dumb", "HOME": str(home),
        "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def shell(name: str) -> Path:
    """Where a shell is; the test is skipped where there is none."""
    path = tool(name)
    if path is None:
        pytest.skip(reason(name))
    return path


def typed(command: list[str], setup: list[str], text: str, wanted: str, home: Path) -> str:
    """What a shell shows at a terminal after a text and a tabulator: until it shows `wanted`, for
    20 seconds at most."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment(home),
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        try:
            os.write(master, "\n".join([*setup, "echo rea''dy", ""]).encode())
            shown = _until(master, lambda seen: "\nready\r" in seen)
            assert "\nready\r" in shown, shown
            os.write(master, f"{text}\t".encode())
            return _until(master, lambda seen: wanted in seen)
        finally:
            process.kill()
            os.close(master)


def _until(fd: int, enough: Callable[[str], bool]) -> str:
    seen, end = b"", time.monotonic() + 20
    while not enough(seen.decode(errors="replace")) and time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            seen += os.read(fd, 65536)
    return seen.decode(errors="replace")


@pytest.fixture
def case(request: pytest.FixtureRequest, place: Path) -> tuple[str, str]:
    """A case of the table, with a file in a directory of the test's."""
    (place / "gpu-spec.yaml").touch()
    before, after = (text.format(place) for text in CASES[request.param])
    return f"toolkit-agent {before}", f"toolkit-agent {after}"


every = pytest.mark.parametrize("case", CASES, indirect=True)


@every
def test_bash_completes(case: tuple[str, str], place: Path) -> None:
    """As the README says."""
    command = [str(shell("bash")), "--norc", "--noprofile", "-i"]
    setup = ["source <(toolkit-agent completion bash)"]
    assert case[1] in typed(command, setup, *case, place)


@every
def test_zsh_completes(case: tuple[str, str], place: Path) -> None:
    """One from the distribution's package is told where its modules and functions are."""
    path = shell("zsh")
    setup = ["autoload -Uz compinit; compinit -u -D", "source <(toolkit-agent completion zsh)"]
    folder = unpacked("zsh", "zsh")
    if path.is_relative_to(folder):
        modules = next(folder.glob("usr/lib/*/zsh/*"))
        functions = unpacked("zsh", "zsh-common") / "usr/share/zsh/functions"
        setup = [f"module_path=({modules})", f"fpath=({functions}/**/*(/))", *setup]
    assert case[1] in typed([str(path), "-f", "-i"], setup, *case, place)


@every
def test_fish_completes(case: tuple[str, str], place: Path) -> None:
    """It is asked for what it would put in the place of the last word."""
    path, variables = shell("fish"), environment(place)
    lines = ["toolkit-agent completion fish | source", f"complete -C '{case[0]}'"]
    if path.is_relative_to(unpacked("fish", "fish")):
        variables["LD_LIBRARY_PATH"] = str(
            next(unpacked("fish", "libpcre2-32-0").glob("usr/lib/*-linux-gnu"))
        )
        functions = unpacked("fish", "fish-common") / "usr/share/fish/functions"
        lines.insert(0, f"set -p fish_function_path {functions}")
    done = subprocess.run(
        [str(path), "--no-config", "-c", "\n".join(lines)],
        env=variables, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    words = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert case[1].rpartition(" ")[2] in words, done.stdout


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_script_is_printed_without_a_shell(name: str) -> None:
    """Not even where there is no program to be found."""
    done = subprocess.run(
        [PROGRAM, "completion", name], env={"PATH": ""}, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert "toolkit-agent" in done.stdout
    assert done.stderr == ""
