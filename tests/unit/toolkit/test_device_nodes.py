"""The driver's control nodes are made where they are missing or wrong."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from agent.cdi.driver import majors
from agent.plan.context import Context
from agent.toolkit import device_nodes
from agent.toolkit.device_nodes import MissingNode, control_nodes
from tests.unit.support.faults import CODES, Faults, Killed, count
from tests.unit.support.made_toolkit import Host, driver_root

_NVIDIA = (("nvidiactl", 195, 255), ("nvidia-modeset", 195, 254))
_UVM = (("nvidia-uvm", 234, 0), ("nvidia-uvm-tools", 234, 1))
_BLOCK = "\nBlock devices:\n  8 sd\n195 nvidia\n234 nvidia-uvm\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (_BLOCK, ()),
        (f"Character devices:\n  1 mem\n195 nvidia\n234 nvidia-uvm\n{_BLOCK}", (*_NVIDIA, *_UVM)),
        ("Character devices:\n195 nvidia-frontend\n234 nvidia-uvm\n", (*_NVIDIA, *_UVM)),
        (f"Character devices:\n195 nvidia\n238 nvidia-caps\n{_BLOCK}", _NVIDIA),
        (f"Character devices:\n234 nvidia-uvm\n{_BLOCK}", _UVM),
        ("Character devices:\n  7 nvidia-frontend\n195 nvidia\n", _NVIDIA),
        ("Character devices:\n195 nvidiactl\n195 nvidia-modeset\n 10 nvidiafb\n", ()),
        ("x nvidia\n-1 nvidia\n² nvidia\n195\n195 nvidia x\nnvidia 195\n\0\n99999 nvidia\n", ()),
        ("  9 nvidia  ", (("nvidiactl", 9, 255), ("nvidia-modeset", 9, 254))),
    ],
)
def test_control_nodes_are_those_of_loaded_modules(
    text: str, expected: tuple[tuple[str, int, int], ...]
) -> None:
    """Those of modules that the kernel has, by the numbers that it gave them."""
    assert tuple(control_nodes(majors.parsed(text))) == expected


def can_make_nodes(directory: Path) -> bool:
    try:
        os.mknod(directory / "x", stat.S_IFCHR | 0o600, os.makedev(195, 255))
    except PermissionError:
        return False
    (directory / "x").unlink()
    return True


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A directory in which device nodes can be made."""
    found = tmp_path / "host/dev"
    found.mkdir(parents=True)
    if not can_make_nodes(found):
        pytest.skip("device nodes: run tests/run as root")
    return found


def looks(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Every name with its mode and its numbers."""

    def look(path: Path) -> tuple[int, int, int]:
        found = path.lstat()
        return found.st_mode, os.major(found.st_rdev), os.minor(found.st_rdev)

    return {path.name: look(path) for path in directory.iterdir()}


_RIGHT = (stat.S_IFCHR | 0o666, 195, 255)
_WRONG = (stat.S_IFCHR | 0o600, 1, 3)


@pytest.mark.parametrize("before", [None, _WRONG, _RIGHT])
def test_node_gets_its_mode_and_replaces_another_one(
    dev: Path, before: tuple[int, int, int] | None
) -> None:
    """The mode is not the mask's business; another node is replaced."""
    if before is not None:
        os.mknod(dev / "nvidiactl", before[0], os.makedev(*before[1:]))
    mask = os.umask(0o077)
    try:
        device_nodes.make_node(str(dev / "nvidiactl"), 195, 255, 0o666)
    finally:
        os.umask(mask)
    assert looks(dev) == {"nvidiactl": _RIGHT}


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "directory", "fifo", "block"])
def test_anything_else_stays(dev: Path, kind: str) -> None:
    """Whoever put it there has to know."""
    path = dev / "nvidiactl"
    match kind:
        case "file":
            path.write_text("mine")
        case "link" | "dangling":
            path.symlink_to("/dev/null" if kind == "link" else "/missing")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "block":
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(195, 255))
    before = looks(dev)
    with pytest.raises(OSError, match="no device node"):
        device_nodes.make_node(str(path), 195, 255, 0o666)
    assert looks(dev) == before


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("there", [False, True])
def test_failure_leaves_what_was_there(dev: Path, code: int, there: bool) -> None:
    """Whatever call it is."""
    path = dev / "nvidiactl"

    def fresh() -> dict[str, tuple[int, int, int]]:
        path.unlink(missing_ok=True)
        if there:
            os.mknod(path, _WRONG[0], os.makedev(*_WRONG[1:]))
        return looks(dev)

    fresh()
    calls = count(lambda: device_nodes.make_node(str(path), 195, 255, 0o666))
    assert calls >= 4
    for at in range(1, calls + 1):
        before = fresh()
        faults = Faults.failing(at, code)
        with faults.installed(), pytest.raises(OSError, match=os.strerror(code)):
            device_nodes.make_node(str(path), 195, 255, 0o666)
        assert looks(dev) == before, faults.calls


# As a run does it.


@pytest.fixture
def node(tmp_path: Path, dev: Path) -> Host:
    """A node whose kernel has the driver; nobody made its nodes."""
    (tmp_path / "host").rename(tmp_path / "made")
    found = Host(tmp_path)
    (tmp_path / "made/dev").rename(found.at("/dev"))
    found.make({"/proc/self/x": "text", "/proc/devices": "195 nvidia\n234 nvidia-uvm\n"})
    found.make({"/usr/lib64/libcuda.so.550.54.15": "text"})
    return found


def missing(ctx: Context) -> tuple[MissingNode, ...]:
    return device_nodes.missing(ctx.settings, ctx.host, driver_root(ctx))


_ALL = {"nvidiactl": (195, 255), "nvidia-modeset": (195, 254), "nvidia-uvm": (234, 0),
        "nvidia-uvm-tools": (234, 1)}  # fmt: skip
_MADE = {name: (stat.S_IFCHR | 0o666, *numbers) for name, numbers in _ALL.items()}


def test_missing_nodes_are_made(node: Host) -> None:
    """Once."""
    ctx = node.context()
    wanted = missing(ctx)
    assert str(wanted[0]) == "/dev/nvidiactl (195:255)"
    assert device_nodes.create(wanted, ctx.log) == tuple(f"/dev/{name}" for name in _ALL)
    assert looks(node.at("/dev")) == _MADE
    assert missing(ctx) == ()


@pytest.mark.parametrize(
    ("env", "asked"),
    [
        ({}, True),
        ({"CREATE_DEVICE_NODES": "control"}, True),
        ({"CREATE_DEVICE_NODES": ""}, False),
        ({"CREATE_DEVICE_NODES": "none"}, False),
        ({"CREATE_DEVICE_NODES": "control,none"}, False),
        ({"CDI_ENABLED": "false"}, False),
    ],
)
def test_only_where_they_are_asked_for(node: Host, env: dict[str, str], asked: bool) -> None:
    assert (missing(node.context(env)) != ()) == asked


def test_only_what_is_wrong_is_touched(node: Host) -> None:
    """Whoever has the mode otherwise meant it."""
    os.mknod(node.at("/dev/nvidiactl"), stat.S_IFCHR | 0o640, os.makedev(195, 255))
    os.mknod(node.at("/dev/nvidia-uvm"), stat.S_IFCHR | 0o666, os.makedev(511, 0))
    ctx = node.context()
    made = device_nodes.create(missing(ctx), ctx.log)
    assert made == ("/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
    assert looks(node.at("/dev")) == {**_MADE, "nvidiactl": (stat.S_IFCHR | 0o640, 195, 255)}


def test_what_cannot_be_made_is_a_warning(node: Host) -> None:
    """The others are made."""
    node.make({"/dev/nvidiactl": "text"})
    ctx = node.context()

    def refuse(_: int, name: str, args: tuple[object, ...]) -> OSError | None:
        refused = name == "mknod" and "uvm-tools" in str(args[0])
        return PermissionError(errno.EPERM, "no") if refused else None

    faults = Faults(refuse)
    with faults.installed():
        made = device_nodes.create(missing(ctx), ctx.log)
    assert made == ("/dev/nvidia-modeset", "/dev/nvidia-uvm")
    texts = [line.data["error"] for line in node.log.lines if line.level == "warning"]
    assert [text.rpartition(": ")[0] for text in texts] == [
        "cannot make the device node /dev/nvidiactl (195:255)",
        "cannot make the device node /dev/nvidia-uvm-tools (234:1)",
    ]


def test_node_known_to_be_impossible_is_not_tried(
    node: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told without trying."""
    node.make({"/dev/nvidiactl": "text"})
    ctx = node.context()
    wanted = missing(ctx)
    those, told = device_nodes.possible(wanted)
    assert [item.name for item in those] == [name for name in _ALL if name != "nvidiactl"]
    (text,) = told
    assert text.startswith("cannot make the device node /dev/nvidiactl (195:255): it is no device")
    monkeypatch.setattr(os, "access", lambda *_: False)
    those, told = device_nodes.possible(wanted[1:])
    assert (those, len(told)) == ((), 3)
    assert all(text.endswith(": its directory cannot be written") for text in told)


def test_next_run_makes_the_rest_of_the_nodes(node: Host) -> None:
    """The next run makes the rest, and nothing is left over."""
    ctx = node.context()
    wanted = missing(ctx)
    number = count(lambda: device_nodes.create(wanted, ctx.log))
    for at in range(1, number + 1):
        for path in node.at("/dev").iterdir():
            path.unlink()
        with Faults.killed(at).installed(), pytest.raises(Killed):
            device_nodes.create(missing(ctx), ctx.log)
        device_nodes.create(missing(ctx), ctx.log)
        assert looks(node.at("/dev")) == _MADE, at
