"""The status directory is nobody's but root's, and no link leads to another one.

The attacker is a container that mounts /run/nvidia and writes it as root, or a user of the host who
made the directory first. He puts a link in the place of the directory, or of one above it, so that
root writes into a directory of his choice; or he owns it, and tells the device plugin what he
likes.

What must hold: nothing is written through a link, nor into a directory that is not root's alone;
`apply` ends with 3 and has touched nothing; and no reader believes what lies there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent import status
from agent.daemon import pid_file
from agent.errors import Refused
from agent.host import trees, trust
from agent.host.paths import HostRoot
from agent.status import ERROR, READY, TWIN, Publisher
from tests.cli.cli_node import CliNode, fails
from tests.conformance import checks
from tests.conformance.trees import touched
from tests.tools.beside import beside
from tests.unit.support.published import BOOT, lines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")

_USER = 1000
HOST = HostRoot("/")


def _link(directory: Path, victim: Path) -> None:
    directory.rmdir()
    directory.symlink_to(victim)


def _link_above(directory: Path, victim: Path) -> None:
    directory.rmdir()
    directory.parent.rmdir()
    (victim / directory.name).mkdir()
    directory.parent.symlink_to(victim)


def _dangling(directory: Path, victim: Path) -> None:
    directory.rmdir()
    directory.symlink_to(victim / "new")


def _given(directory: Path, _: Path) -> None:
    os.chown(directory, _USER, _USER)


def _given_above(directory: Path, _: Path) -> None:
    os.chown(directory.parent, _USER, _USER)


def _open(directory: Path, _: Path) -> None:
    directory.chmod(0o777)


def _sticky(directory: Path, _: Path) -> None:
    directory.chmod(0o1777)


def _to_be_made(directory: Path, _: Path) -> None:
    directory.rmdir()
    os.chown(directory.parent, _USER, _USER)


ATTACKS = {
    "link": (_link, "leads through a link"),
    "link above": (_link_above, "leads through a link"),
    "link to nothing": (_dangling, "leads through a link"),
    "of a user": (_given, "belongs to user 1000"),
    "below a user's": (_given_above, "belongs to user 1000"),
    "writable": (_open, "can be written by others (mode 0777)"),
    "sticky": (_sticky, "can be written by others (mode 1777)"),
    "to be made below a user's": (_to_be_made, "belongs to user 1000"),
}
attacks = pytest.mark.parametrize(("attack", "why"), ATTACKS.values(), ids=ATTACKS.keys())
Attack = Callable[[Path, Path], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A status directory like the usual one."""
    path = tmp_path / "run/nvidia/validations"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of root's in which nothing of ours has any business."""
    path = tmp_path / "victim"
    path.mkdir()
    return path


def _shape(root: Path) -> list[tuple[str, int]]:
    return sorted((str(p.relative_to(root)), p.lstat().st_ino) for p in root.rglob("*"))


@attacks
def test_nothing_is_written(attack: Attack, why: str, directory: Path, victim: Path) -> None:
    """Not by any of the operations; reads find nothing."""
    publisher = Publisher(str(directory))
    for name in (TWIN, READY, ERROR):
        (victim / name).write_text("somebody's\n")
    attack(directory, victim)
    before = _shape(directory.parents[2])
    for operation in (
        lambda: publisher.publish(lines()),
        lambda: publisher.publish_error(Refused("cannot x: y")),
        lambda: publisher.restore({TWIN: b"a", READY: b"b"}),
        publisher.withdraw,
        publisher.check_writable,
    ):
        with pytest.raises(Refused) as told:
            operation()
        assert told.value.message.startswith(f"cannot write the status file in {directory}: ")
        assert why in told.value.message
    publisher.sweep()
    assert publisher.save() == {}
    assert _shape(directory.parents[2]) == before


@pytest.mark.parametrize(
    "attack",
    [attack for name, (attack, _) in ATTACKS.items() if name != "sticky"],  # root's file is root's
    ids=lambda attack: attack.__name__,
)
def test_no_reader_believes_a_status_in_a_directory_of_others(
    attack: Attack, directory: Path, victim: Path
) -> None:
    """Although the file itself is root's and as it should be."""
    for place in (directory, victim, victim / "validations"):
        Publisher(str(place)).publish(lines())
    assert status.read_valid(HOST, str(directory), BOOT)
    for name in (TWIN, READY):
        (directory / name).unlink()
        (victim / "validations" / name).rename(victim / f".{name}")
    (victim / "validations").rmdir()
    attack(directory, victim)
    for name in (TWIN, READY):  # where the name leads to
        with suppress(OSError):
            (victim / f".{name}").rename(directory / name)
    with pytest.raises(Refused):
        status.read_valid(HOST, str(directory), BOOT)


@attacks
def test_apply_refuses(attack: Attack, why: str, node: CliNode, tmp_path: Path) -> None:
    """With 3, nothing touched; `wait` believes nothing; put right, all is well."""
    directory, victim = tmp_path / "made/nvidia/validations", tmp_path / "victim"
    directory.mkdir(parents=True)
    victim.mkdir()
    node.validations = directory
    attack(directory, victim)
    before, outside = node.tree(), [_shape(tmp_path / "made"), _shape(victim)]
    for command in ("apply", "apply", "apply --retry"):
        fails(node.agent(command), 3, str(directory), why)
    assert touched(before, node.tree()) == []
    assert [_shape(tmp_path / "made"), _shape(victim)] == outside
    assert node.supervisor.starts == 1
    assert why in node.agent("plan").stdout
    assert node.agent("wait", "--timeout=0").returncode == 1


def test_wait_believes_only_files_of_root(node: CliNode) -> None:
    """Of the very same files."""
    checks.done(node.agent("apply"))
    assert node.agent("wait", "--timeout=0").returncode == 0
    os.chown(node.validations, _USER, _USER)
    result = node.agent("wait", "--timeout=0")
    assert result.returncode == 1
    assert "belongs to user 1000" in result.stderr


@pytest.mark.parametrize("name", [TWIN, READY, ERROR])
@pytest.mark.parametrize("kind", ["link", "pipe", "zero"])
def test_link_or_pipe_in_the_place_of_a_file_is_replaced(
    name: str, kind: str, directory: Path, victim: Path
) -> None:
    """A link or a pipe in the place of a file is replaced, not followed and not waited for."""
    (victim / name).write_text("somebody's\n")
    path, publisher = directory / name, Publisher(str(directory))
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim / name if kind == "link" else "/dev/zero")
    assert publisher.save() == {}
    publisher.publish(lines())
    publisher.publish_error(Refused("cannot x: y"))
    assert (victim / name).read_text() == "somebody's\n"
    assert path.is_file()
    assert not path.is_symlink()


@contextmanager
def _flipping(directory: Path, victim: Path) -> Iterator[None]:
    """A container that has /run/nvidia: the directory is a link to the victim half of the time."""
    aside = directory.with_name("aside")
    aside.symlink_to(victim)

    def flip(ended: threading.Event) -> None:
        while not ended.is_set():
            trees.exchange(str(directory), str(aside))
            trees.exchange(str(directory), str(aside))

    with beside(flip):
        yield


def test_links_in_a_race_never_reach_the_victim(directory: Path, victim: Path) -> None:
    """It succeeds now and then, and the victim never gets a file."""
    publisher, done = Publisher(str(directory)), 0
    with _flipping(directory, victim):
        for number in range(300):
            with suppress(Refused):
                publisher.publish(lines(boot=str(number)))
                done += 1
            with suppress(Refused):
                publisher.publish_error(Refused(f"cannot x: {number}"))
            publisher.sweep()
            publisher.save()
    assert done
    assert _shape(victim) == []
    publisher.publish(lines())
    assert status.read_valid(HOST, str(directory), BOOT)


def test_link_of_the_system_is_followed(tmp_path: Path) -> None:
    """/var/run is a link on every system; /run/nvidia/x is none of the system's."""
    root = tmp_path / "host"
    (root / "run/nvidia").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    host = HostRoot(str(root))
    publisher = Publisher(trust.system_name(host, "/var/run/nvidia/validations"), host=host)
    publisher.publish(lines())
    assert (root / "run/nvidia/validations" / READY).is_file()
    (root / "run/nvidia/far").symlink_to("/run/nvidia/validations")
    name = trust.system_name(host, "/run/nvidia/far")
    with pytest.raises(Refused, match="leads through a link to /run/nvidia/validations"):
        Publisher(name, host=host).publish(lines())
    with pytest.raises(Refused, match="leads out of the host root"):
        trust.system_name(host, "/run/../../etc")


# --- the pid file, which lies below /run/nvidia too ---------------------------------------------


@attacks
def test_pid_file_of_others_is_refused_and_untouched(
    attack: Attack, why: str, directory: Path, victim: Path
) -> None:
    """No directory and no file is made, and none is removed."""
    attack(directory, victim)
    before = _shape(directory.parents[2])
    if attack is _sticky:  # where others cannot touch a file of root's
        with pid_file.held(HOST, str(directory / "toolkit.pid")):
            assert (directory / "toolkit.pid").is_file()
    else:
        with (
            pytest.raises(Refused, match="cannot use the pid file") as told,
            pid_file.held(HOST, str(directory / "toolkit.pid")),
        ):
            pass
        assert why in told.value.message
    assert _shape(directory.parents[2]) == before


def test_directory_of_the_pid_file_is_made(tmp_path: Path) -> None:
    """As on a fresh node; /run is empty at a boot."""
    path = tmp_path / "run/nvidia/toolkit/toolkit.pid"
    with pid_file.held(HOST, str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.parent.stat().st_mode & 0o777 == 0o755
    assert not path.exists()
