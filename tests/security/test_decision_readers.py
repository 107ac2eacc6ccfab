"""Somebody else's status file, in the place where the device plugin looks for the decision.

The attacker can write the directory of the status file, or made it before the agent came. He wants
the plugin to start by his decision, or its pod to hang. The two scripts and `toolkit-agent wait`
must not believe him, must say why, and must go on looking.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.runtimes import ROOT
from tests.tools.shells import SHELLS, start
from tests.tools.waiting import SOON, wait_until

_SCRIPTS = ROOT / "deploy/device-plugin"
_NAME = ".toolkit-ctr-ready"
_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
_USER = 12345
_GOOD = (
    f"TOOLKIT_STATUS_VERSION=1\nTOOLKIT_BOOT_ID={_BOOT}\nTOOLKIT_CONFIG_HASH=sha256:aa\n"
    "DEVICE_LIST_STRATEGY=cdi-cri\nCDI_ANNOTATION_PREFIX=cdi.k8s.io/\n"
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")


def _good(file: Path) -> None:
    file.write_text(_GOOD, encoding="ascii")


def _text(text: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.write_bytes(text.encode("latin-1"))

    return write


def _link(file: Path) -> None:
    _good(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _writable(file: Path) -> None:
    _good(file)
    file.chmod(0o664)


def _writable_directory(file: Path) -> None:
    _good(file)
    file.parent.chmod(0o777)


def _given_away(file: Path) -> None:
    _good(file)
    os.chown(file, _USER, _USER)


def _given_away_directory(file: Path) -> None:
    _good(file)
    os.chown(file.parent, _USER, _USER)


def _device(file: Path) -> None:
    os.mknod(file, 0o020644, os.makedev(1, 5))


HOSTILE: dict[str, Callable[[Path], None]] = {
    "link": _link,
    "link to an endless file": lambda file: file.symlink_to("/dev/zero"),
    "dangling link": lambda file: file.symlink_to("nowhere"),
    "pipe": lambda file: os.mkfifo(file, 0o644),
    "directory": Path.mkdir,
    "file of the kernel": lambda file: file.symlink_to("/proc/kmsg"),
    "group can write it": _writable,
    "anybody can exchange it": _writable_directory,
    "a line of 8 MiB": _text(_GOOD + "A=" + "x" * (8 << 20) + "\n"),
    "many short lines": _text(_GOOD + "A=\n" * (1 << 20)),
    "a line without an end": _text(_GOOD + "A=" + "x" * (1 << 16)),
    "empty": _text(""),
    "zero bytes": _text(_GOOD.replace("cdi-cri", "cdi\0-cri")),
    "a command": _text(_GOOD + "A=$(touch evil)\n"),
    "no key": _text(_GOOD + "=x\n"),
    "a small key": _text(_GOOD + "path=/evil\n"),
    "a key that a letter of another alphabet ends": _text(_GOOD + "KEY\xc9=x\n"),
    "a value with such a letter": _text(_GOOD + "KEY=\xe9\n"),
    "an empty line": _text(_GOOD + "\n"),
    "a carriage return": _text(_GOOD.replace("\n", "\r\n")),
    "a newer version": _text(_GOOD.replace("VERSION=1", "VERSION=2")),
    "another boot": _text(_GOOD.replace(_BOOT, "0" * 36)),
}
HOSTILE_AS_ROOT = {
    "somebody's": _given_away,
    "in somebody's directory": _given_away_directory,
    "an endless device": _device,
}
EVERY = [
    *(pytest.param(make, id=name) for name, make in HOSTILE.items()),
    *(pytest.param(make, id=name, marks=needs_root) for name, make in HOSTILE_AS_ROOT.items()),
]
READERS = ["wait", *(shell[0] for shell in SHELLS)]


def _command(reader: str, file: Path) -> list[str]:
    if reader == "wait":
        words = [sys.executable, "-m", "agent", "wait", f"--status-dir={file.parent}"]
        return [*words, "--timeout=0.2"]
    shell = next(shell for shell in SHELLS if shell[0] == reader)
    return [*start(shell), str(_SCRIPTS / "wait.sh")]


def _read(reader: str, file: Path) -> tuple[int | None, str, str]:
    """Exit code (None: it says that it waits, and goes on), standard output and error."""
    env = {"PATH": os.environ["PATH"], "TOOLKIT_DECISION_FILE": str(file), "LC_ALL": "C.UTF-8"}
    log = file.parent.parent / "log"
    with (
        log.open("wb") as error,
        subprocess.Popen(
            _command(reader, file),
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=error,
            start_new_session=True,
        ) as process,
    ):
        wait_until(
            lambda: process.poll() is not None or (reader != "wait" and log.stat().st_size > 0),
            lambda: "it hangs",
        )
        code = process.poll()
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)  # and the sleep that it waits for
        out, _ = process.communicate()
    return code, out.decode(), log.read_text("utf-8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the decision is looked for."""
    directory = tmp_path / "validations"
    directory.mkdir(mode=0o755)
    return directory / _NAME


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_believes_the_agents_own_file(reader: str, file: Path) -> None:
    """The agent's own file is believed by all of them."""
    _good(file)
    code, out, _ = _read(reader, file)
    assert (code, out) == (0, _GOOD)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", EVERY)
def test_no_reader_believes_a_hostile_file(
    make: Callable[[Path], None], reader: str, file: Path
) -> None:
    """None of them believes it; each says why, and neither hangs nor executes anything."""
    make(file)
    code, out, error = _read(reader, file)
    assert (code, out) == (1 if reader == "wait" else None, "")
    assert str(file) in error
    assert not (ROOT / "evil").exists()
    assert "Traceback" not in error


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
def test_entrypoint_reads_by_the_same_script(shell: tuple[str, ...], file: Path) -> None:
    """The plugin does not start on what others can write; it does once the file is root's alone."""
    _good(file)
    with file.open("a", encoding="ascii") as decision:  # no plugin is started without a driver
        decision.write("NVIDIA_DRIVER_ROOT=/driver\nNVIDIA_DEV_ROOT=/driver\n")
    file.chmod(0o666)
    out = file.parent / "out"
    program = file.parent / "plugin"
    program.write_text(f'#!/bin/sh\necho "$DEVICE_LIST_STRATEGY" >{out}\n', encoding="ascii")
    program.chmod(0o755)
    command = [*start(shell), str(_SCRIPTS / "entrypoint.sh"), str(program)]
    env = {
        "PATH": os.defpath,
        "TOOLKIT_DECISION_FILE": str(file),
        "TOOLKIT_DECISION_INTERVAL": "0.1",
        "HOST_ROOT_MOUNT": str(file.parent / "host"),
    }
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert not out.exists()
        file.chmod(0o644)
        assert process.wait(SOON) == 0
        assert process.stderr is not None
        assert b"others can write it" in process.stderr.read()
    assert out.read_text(encoding="ascii") == "cdi-cri\n"
