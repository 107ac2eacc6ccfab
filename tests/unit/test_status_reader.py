"""A reader believes only a trustworthy status, and waits no longer than told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import status
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.status import TWIN, Publisher
from tests.unit.support.published import BOOT, lines

HOST = HostRoot("/")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "nvidia/validations"


@pytest.fixture
def ours(directory: Path) -> Publisher:
    """A publisher that owns both files."""
    return Publisher(str(directory))


def test_reader_gets_what_was_published(ours: Publisher, directory: Path) -> None:
    """The same pairs in the same order."""
    ours.publish(lines())
    assert tuple(status.read_valid(HOST, str(directory), BOOT).items()) == lines()


def _edit(old: bytes, new: bytes) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (Path.unlink, "no decision is published yet"),
        (_edit(BOOT.encode(), b"another"), "before this boot"),
        (_edit(b"VERSION=1\n", b"VERSION=2\n"), "version 2"),
        (_edit(b"VERSION=1\n", b"VERSION=x\n"), "version x"),
        (_edit(b"TOOLKIT_STATUS_VERSION=1\n", b""), "version missing"),
        (lambda path: path.chmod(0o664), "can be written by others"),
        (lambda path: path.chmod(0o646), "can be written by others"),
        (lambda path: path.write_bytes(b""), "^cannot (read|use)"),
        (lambda path: path.write_bytes(b"\x00\xff garbage"), "not KEY=value"),
        (lambda path: path.write_bytes(b"A=1\n" * 70000), "larger"),
    ],
)
def test_reader_rejects(
    spoil: Callable[[Path], None], cause: str, ours: Publisher, directory: Path
) -> None:
    """What may not be believed is refused with its reason."""
    ours.publish(lines())
    spoil(directory / TWIN)
    with pytest.raises(Refused, match=cause):
        status.read_valid(HOST, str(directory), BOOT)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away: run tests/run as root")
def test_reader_rejects_a_file_that_is_not_roots(ours: Publisher, directory: Path) -> None:
    """Else any user could send the device plugin anywhere."""
    ours.publish(lines())
    os.chown(directory / TWIN, 65534, 65534)
    with pytest.raises(Refused, match="belongs to user 65534"):
        status.read_valid(HOST, str(directory), BOOT)


def test_reader_does_not_follow_a_link(ours: Publisher, directory: Path) -> None:
    """A link to a trusted file elsewhere is not that file."""
    ours.publish(lines())
    (directory / TWIN).rename(directory / "real")
    (directory / TWIN).symlink_to("real")
    with pytest.raises(Refused, match=r"^cannot use .* leads through a link"):
        status.read_valid(HOST, str(directory), BOOT)


class Clock:
    """Time that passes only while somebody sleeps; `events` happen at their second."""

    def __init__(self, **events: Callable[[], object]) -> None:
        self.now = 0.0
        self._events: Iterator[tuple[float, Callable[[], object]]] = iter(
            sorted((float(name.removeprefix("at_")), event) for name, event in events.items())
        )
        self._next = next(self._events, None)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass time."""
        assert 0 <= seconds <= 1
        self.now += max(seconds, 1e-6)
        while self._next and self._next[0] <= self.now:
            self._next[1]()
            self._next = next(self._events, None)


def test_wait_returns_as_soon_as_it_is_ready(ours: Publisher, directory: Path) -> None:
    """Half a second late at most; `None` waits for ever."""
    clock = Clock(at_30=lambda: ours.publish(lines()))
    found = status.wait(HOST, str(directory), BOOT, None, clock, clock.sleep)
    assert found["TOOLKIT_CDI_ENABLED"] == "true"
    assert 30 <= clock.now <= 30.5


def test_wait_skips_what_may_not_be_believed(ours: Publisher, directory: Path) -> None:
    """The file of the boot before is not an answer."""
    ours.publish(lines(boot="old"))
    clock = Clock(at_3=lambda: ours.publish(lines()))
    status.wait(HOST, str(directory), BOOT, 10, clock, clock.sleep)
    assert clock.now >= 3


@pytest.mark.parametrize("timeout", [0.0, 0.2, 7.3])
def test_wait_gives_up_in_time_with_the_last_reason(timeout: float, directory: Path) -> None:
    """Neither early nor late."""
    clock = Clock()
    with pytest.raises(Refused, match=r"^cannot read .*no decision is published"):
        status.wait(HOST, str(directory), BOOT, timeout, clock, clock.sleep)
    assert timeout <= clock.now <= timeout + 0.01
