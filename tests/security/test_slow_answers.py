"""Answers that trickle, never end, or have no end.

The attacker is what answers: a socket that says one byte a second, so that no single read takes too
long; a program that prints for ever, or keeps its output open; a bus that sends signals all the
time. Each question has one time for all of its answer, and one size.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.cri import client as cri
from agent.errors import Unreachable
from agent.host.paths import HostRoot
from agent.runtimes import command
from agent.runtimes.crio import config_request
from agent.systemd.dbus import Bus, NoBus

HOST = HostRoot("/")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/toml\r\n"


@contextmanager
def trickling(parts: list[bytes], pause: float) -> Iterator[str]:
    """A socket that says these parts, and then the last one again and again."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/s"
        listener.bind(path)
        listener.listen()
        listener.settimeout(20)
        ending = threading.Event()

        def talk() -> None:
            with suppress(OSError):
                client = listener.accept()[0]
                with client:
                    client.settimeout(5)
                    said = iter(parts)
                    while not ending.wait(pause):
                        client.sendall(next(said, parts[-1]))

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield path
        finally:
            ending.set()
            listener.close()
            thread.join()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is in it takes no longer."""
    before = time.monotonic()
    yield
    assert time.monotonic() - before < seconds


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD[n : n + 1] for n in range(15)] + [b"x"],
        [HEAD, b"X-More: a\r\n"],
        [HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n#\r\n"],
        [HEAD, b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"],
        [HEAD, b"\r\n", b"#"],
        [b"HTTP/1.1 100 Continue\r\n\r\n"],
    ],
    ids=["status line", "headers", "chunks", "length of a chunk", "body", "100 for ever"],
)
def test_trickling_configuration_meets_the_deadline(parts: list[bytes]) -> None:
    """Ten bytes a second, of which each comes in time."""
    with trickling(parts, 0.1) as path, within(3):
        assert config_request.effective_config(path, timeout=1.0) is None


def test_endless_configuration_is_given_up() -> None:
    """A megabyte at a time."""
    with trickling([HEAD, b"\r\n", b"#" * (1 << 20)], 0.0) as path, within(5):
        assert config_request.effective_config(path, timeout=4.0) is None


def test_trickling_cri_answer_meets_the_deadline() -> None:
    """The frames of HTTP/2 come in time, the answer does not."""
    settings, ping = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0abcdefgh"
    told = pytest.raises(Unreachable, match=r"^cannot reach")
    with trickling([settings, ping], 0.2) as path, within(6), told:
        cri.ask(path, "the runtime", timeout=1.0)


def _python(code: str, timeout: float = 10.0) -> command.Output:
    return command.run(HOST, [sys.executable, "-c", code], timeout)


def test_endless_output_ends_the_program() -> None:
    """It is ended as soon as it has said too much, not when its time is up."""
    with within(9):
        done = _python("import sys\nwhile True: sys.stdout.write('x' * 65536)", 60)
    assert done.code is None
    assert "larger than" in done.error
    assert done.out == b""


def test_endless_errors_keep_their_last_words() -> None:
    """Of that the end is kept: there is the cause."""
    done = _python("import sys\nfor _ in range(200): sys.stderr.write('x' * 65536)\n"
                   "sys.stderr.write('\\nlast'); sys.exit(3)")  # fmt: skip
    assert done.code == 3
    assert done.error.endswith("\nlast")
    assert len(done.error) <= 1 << 16


def test_trickling_program_meets_the_deadline() -> None:
    code = "import sys, time\nwhile True: print('x', flush=True); time.sleep(0.1)"
    with within(6):
        done = _python(code, 1.0)
    assert (done.code, done.error) == (None, "no answer in 1 s")


def test_output_kept_open_by_a_grandchild_meets_the_deadline(tmp_path: Path) -> None:
    """The program ends, what it started does not, and holds its output."""
    code = "import subprocess; subprocess.Popen(['sleep', '30'])"
    with within(6):
        done = _python(code, 1.0)
    assert (done.code, done.error) == (None, "no answer in 1 s")


def test_program_that_closes_its_output_meets_the_deadline() -> None:
    with within(6):
        done = _python("import os, time; os.close(1); os.close(2); time.sleep(30)", 1.0)
    assert (done.code, done.error) == (None, "no answer in 1 s")


_READ = 4096  # bytes that jeepney asks for at once


@pytest.mark.parametrize("split", [False, True], ids=["at once", "in two reads"])
def test_message_with_empty_structures_is_refused(split: bool) -> None:
    """An array of these has no end to jeepney: four bytes of nothing, read again and again."""
    message = (
        b"l\2\0\1\x24\0\0\0\1\0\0\0\x15\0\0\0\5\1u\0\1\0\0\0\x08\1g\0\7sa()s)u\0\0\0\0"
        b"\4\0\0\0text\0\0\0\0\x0e\0\0\0\1\0\0\0a\0\0\0\1\0\0\0b\0\0\0\7\0\0\0"
    )
    if split:
        short = len(_signal("")) + message.index(b"()") + 1
        message = _signal("x" * (_READ - short)) + message
        assert message[_READ - 1 : _READ + 1] == b"()"
    ours, theirs = socket.socketpair()
    theirs.sendall(message)
    told = pytest.raises(NoBus)
    with within(4), theirs, Bus(ours, private=True, timeout=1.0) as bus, told:
        bus.call("/", "org.freedesktop.DBus.Peer", "Ping")


def _signal(text: str | None = None) -> bytes:
    """A signal of D-Bus, which answers nothing."""
    from jeepney.low_level import MessageType
    from jeepney.wrappers import DBusAddress, new_signal

    body = () if text is None else ("s", (text,))
    message = new_signal(DBusAddress("/a", bus_name="a.b", interface="a.b"), "Hello", *body)
    assert message.header.message_type is MessageType.signal
    return bytes(message.serialise(serial=7))


@pytest.mark.parametrize(
    ("said", "pause"),
    [(_signal(), 0.05), (_signal() * 500, 0.0), (b"l", 0.1), (b"l\1\0\1\xff\xff\xff\x07" * 2, 0.0)],
    ids=["signals", "a flood of them", "bytes", "a message of 128 MiB"],
)
def test_bus_without_an_answer_meets_the_deadline(said: bytes, pause: float) -> None:
    """Signals all the time are no answer, and a message has a size."""
    ours, theirs = socket.socketpair()
    ending = threading.Event()

    def talk() -> None:
        with suppress(OSError), theirs:
            while not ending.wait(pause):
                theirs.sendall(said)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        with within(4), Bus(ours, private=True, timeout=1.0) as bus, pytest.raises(NoBus):
            bus.call("/", "org.freedesktop.DBus.Peer", "Ping")
    finally:
        ending.set()
        thread.join()
