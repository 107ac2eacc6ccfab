"""A failing disk or a damaged state directory is refused before anything is changed."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, tells
from tests.cli.namespace import Namespace
from tests.conformance import checks, statusfile
from tests.conformance.trees import touched

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root: run tests/run as root")


@as_root
def test_read_only_configuration_is_refused_without_a_journal(
    node: CliNode, namespace: Namespace
) -> None:
    """Exit 3 with what to do; nothing of the journal is left over either."""
    namespace.read_only(node.etc)
    refuses(
        node,
        Refusal(3, "read-only file system"),
        prefix=namespace.prefix,
        commands=("apply", "apply"),
    )
    assert not (node.state / "journal.json").exists()
    checks.done(node.agent("apply"))
    assert node.ready()


@as_root
def test_read_only_state_directory_refuses_every_change(
    node: CliNode, namespace: Namespace
) -> None:
    """Without a journal nothing is changed."""
    node.state.mkdir()
    namespace.read_only(node.state)
    refuses(
        node,
        Refusal(3, str(node.state)),
        prefix=namespace.prefix,
        commands=("apply", "apply"),
    )


def test_file_as_state_directory_refuses_every_change(node: CliNode) -> None:
    """Without a journal nothing is changed."""
    node.state.touch()
    refuses(node, Refusal(3, str(node.state)), commands=("apply", "apply", "plan"))


@as_root
def test_read_only_status_directory_refuses_every_change(
    node: CliNode, namespace: Namespace
) -> None:
    """A node whose readiness cannot be told is not touched: exit 3 means that nothing was."""
    namespace.read_only(node.validations)
    refuses(
        node,
        Refusal(3, str(node.validations), told=None),
        prefix=namespace.prefix,
        commands=("apply", "apply"),
    )


def test_file_as_status_directory_refuses_every_change(node: CliNode) -> None:
    """A node whose readiness cannot be told is not touched: exit 3 means that nothing was."""
    node.validations.rmdir()
    node.validations.touch()
    refuses(node, Refusal(3, str(node.validations), told=None), commands=("apply", "apply"))


@as_root
def test_full_disk_leaves_no_half_written_file(node: CliNode, namespace: Namespace) -> None:
    """No space for the new files: exit 3, and nothing half-written stays."""
    namespace.mount("-t", "tmpfs", "-o", "size=64k,mode=755", "etc", str(node.etc))
    copy = Path(f"/proc/{namespace.prefix[1].split('/')[2]}/root{node.etc}")
    shutil.copy(node.config, copy / "config.toml")
    with pytest.raises(OSError, match="No space"):
        (copy / "filler").write_bytes(bytes(1 << 17))
    was = sorted(path.name for path in copy.iterdir())
    text = (copy / "config.toml").read_bytes()
    refuses(
        node,
        Refusal(3, "no space left on device"),
        prefix=namespace.prefix,
        commands=("apply", "apply"),
    )
    assert sorted(path.name for path in copy.iterdir()) == was
    assert (copy / "config.toml").read_bytes() == text


def set_immutable(path: Path, *, on: bool) -> None:
    """What chattr does; OSError where the file system has no such attribute."""
    get, put, immutable = 0x80086601, 0x40086602, 0x10  # of <linux/fs.h>
    with path.open("rb") as file:
        (flags,) = struct.unpack("i", fcntl.ioctl(file, get, bytes(4)))
        flags = flags | immutable if on else flags & ~immutable
        fcntl.ioctl(file, put, struct.pack("i", flags))


@as_root
def test_immutable_file_undoes_the_drop_in(node: CliNode) -> None:
    """The drop-in that was written before it goes again."""
    try:
        set_immutable(node.config, on=True)
    except OSError as error:
        pytest.skip(f"this file system knows no immutable files: {error}")
    try:
        before = node.tree()
        for _ in range(2):
            fails(node.agent("apply"), 3, "config.toml", "immutable")
            after = node.tree()
            assert set(touched(before, after)) <= {"."}  # a drop-in came and went
            assert before.keys() == after.keys()
        tells(node, 3, "REFUSED", "config.toml")
        assert node.supervisor.starts == 1
    finally:
        set_immutable(node.config, on=False)


def test_held_lock_refuses_writers_only(node: CliNode) -> None:
    """Exit 7 for whoever would write, while looking is free."""
    checks.done(node.agent("apply"))
    with (node.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refuses(node, Refusal(7, "lock", None), commands=("apply", "revert", "apply"))
        checks.done(node.agent("plan"))
        checks.done(node.agent("status"))
    checks.done(node.agent("apply"))


@pytest.mark.parametrize("name", ["journal.json", "memory.json", "failed.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', "\udcff"])
def test_damaged_state_is_refused_by_its_name(same_node: CliNode, name: str, text: str) -> None:
    """Whatever is in it, it is refused by its name rather than believed or thrown away."""
    same_node.state.mkdir()
    path = same_node.state / name
    path.write_text(text, "utf-8", "surrogateescape")
    refuses(same_node, Refusal(3, str(path)), commands=("apply",))
    assert path.read_text("utf-8", "surrogateescape") == text


@pytest.mark.parametrize("name", ["journal.json", "memory.json"])
def test_incomplete_state_is_refused_by_its_name(same_node: CliNode, name: str) -> None:
    """Neither is a file that lacks what it has to say."""
    same_node.state.mkdir()
    (same_node.state / name).write_text('{"format": 1}')
    refuses(same_node, Refusal(3, name), commands=("apply",))


def test_damaged_original_is_refused_before_the_revert(node: CliNode) -> None:
    """A revert that cannot restore the bytes refuses before it touches anything."""
    checks.done(node.agent("apply"))
    (saved,) = (node.state / "originals").iterdir()
    saved.write_bytes(saved.read_bytes()[:-1])
    refuses(node, Refusal(3, saved.name), commands=("revert", "revert"))


def test_wait_believes_no_status_that_others_can_write(node: CliNode) -> None:
    """`wait` believes no file that others can write, and no other one than today's."""
    fails(node.agent("wait", "--timeout=0.1"), 1, "no decision is published")
    checks.done(node.agent("apply"))
    checks.done(node.agent("wait", "--timeout=0.1"))
    twin = node.validations / statusfile.TWIN
    twin.chmod(0o666)
    fails(node.agent("wait", "--timeout=0.1"), 1, "it can be written by others")
    twin.chmod(0o644)
    text = twin.read_text()
    twin.write_text(text.replace("BOOT_ID=", "BOOT_ID=x"))
    fails(node.agent("wait", "--timeout=0.1"), 1, "before this boot")
    twin.write_text(text.replace("VERSION=1", "VERSION=2", 1))
    fails(node.agent("wait", "--timeout=0.1"), 1, "version 2")
    twin.write_text("export A='b c'\n")
    fails(node.agent("wait", "--timeout=0.1"), 1, "KEY=value")
