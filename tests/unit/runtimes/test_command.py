"""The host's programs run without a shell and with a deadline; every failure is an answer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.host.paths import HostRoot
from agent.runtimes import command

HOST = HostRoot("/")


def script(path: Path, text: str) -> str:
    """An executable script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_words_are_no_shell_text(tmp_path: Path) -> None:
    """Blanks, `;` and `$()` reach the program as they are; nothing is on its stdin."""
    program = script(tmp_path / "p", 'for word; do echo "<$word>"; done; cat; echo err >&2; exit 3')
    done = command.run(HOST, [program, "a b", "; touch x", "$(touch y)"])
    assert done.out == b"<a b>\n<; touch x>\n<$(touch y)>\n"
    assert (done.code, done.error) == (3, "err\n")


def test_environment_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the container mean nothing to the host's programs."""
    monkeypatch.setenv("CONTAINERD_SECRET", "x")
    done = command.run(HOST, [script(tmp_path / "p", "env")])
    names = {line.partition(b"=")[0] for line in done.out.splitlines()}
    assert names <= {b"PATH", b"LC_ALL", b"PWD", b"SHLVL", b"_", b"OLDPWD"}


def test_program_that_hangs_is_ended(tmp_path: Path) -> None:
    """With the time that it was given."""
    began = time.monotonic()
    done = command.run(HOST, ["sleep", "60"], timeout=0.2)
    assert (done.code, done.error) == (None, "no answer in 0.2 s")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("mode", "cause"), [(None, "no such file"), (0o644, "permission denied")])
def test_program_that_cannot_be_run_gives_its_cause(
    mode: int | None, cause: str, tmp_path: Path
) -> None:
    """An answer with its cause, not an exception."""
    path = tmp_path / "p"
    if mode is not None:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    done = command.run(HOST, [str(path)])
    assert done.code is None
    assert cause in done.error


def test_descriptors_keep_their_numbers(tmp_path: Path) -> None:
    """They are handed on, others are not."""
    with (tmp_path / "f").open("w+b") as file, (tmp_path / "g").open("wb") as other:
        file.write(b"staged")
        file.flush()
        text = f"cat /proc/self/fd/{file.fileno()}; ls /proc/self/fd/{other.fileno()} 2>&1"
        done = command.run(HOST, [script(tmp_path / "p", text)], descriptors=[file.fileno()])
    assert done.out.startswith(b"staged")
    assert b"No such file" in done.out


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot: run tests/run as root")
def test_failure_of_chroot_is_no_verdict(tmp_path: Path) -> None:
    """chroot's own failure is not the runtime's verdict on a configuration."""
    dump = command.config_dump(HostRoot(str(tmp_path)), "/usr/bin/containerd", "/x")
    assert dump.data is None
    assert not dump.rejected


def test_dump_is_asked_for_as_containerd_wants_it(tmp_path: Path) -> None:
    """`-c` before the sub-command; without a file the built-in configuration."""
    program = script(tmp_path / "containerd", 'printf \'words = "%s"\\n\' "$*"')
    assert command.config_dump(HOST, program, "/x").data == {"words": "-c /x config dump"}
    assert command.config_dump(HOST, program, None).data == {"words": "config default"}


@pytest.mark.parametrize(
    ("text", "rejected", "error"),
    [
        ("echo noise >&2; echo 'containerd: bad file' >&2; exit 1", True, "containerd: bad file"),
        ("exit 2", True, "exit code 2"),
        ("echo '= ='", False, "not valid TOML"),
        ("printf '\\377\\376a'", False, "UTF-16"),
    ],
)
def test_refused_dump_is_told_from_an_unknown_command(
    text: str, rejected: bool, error: str, tmp_path: Path
) -> None:
    """Turned down is told apart from not understood."""
    dump = command.config_dump(HOST, script(tmp_path / "containerd", text), "/x")
    assert dump.data is None
    assert dump.rejected is rejected
    assert error in dump.error


def test_dump_that_cannot_be_had_is_no_verdict(tmp_path: Path) -> None:
    """The executable was not run at all."""
    dump = command.config_dump(HOST, str(tmp_path / "none"), "/x")
    assert (dump.data, dump.rejected) == (None, False)
    assert "no such file" in dump.error
