"""Somebody who is not root, on a Tegra or in WSL2, has a say in a file that decides what containers
get: the list of paths, a path in it, Windows' library. What must hold: nothing that is not root's
alone enters a spec, or is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.cdi.driver import dxcore
from agent.cdi.make import generate, tegra
from agent.errors import NoDriver
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from tests.doubles.nvml import dxcore as made_dxcore
from tests.tools.kernel import make_node
from tests.unit.support import other_hosts
from tests.unit.support.gpu_node import MARKS
from tests.unit.support.other_hosts import ADAPTERS, CSV, NVGPU, STORE

pytestmark = MARKS

USER = 1000


def spec(host: Path, mode: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    settings = resolve({}, {}, "toolkit-agent")
    root = HostRoot(str(host))
    text, warnings = generate.spec_text(
        mode, settings, root, "json", hook="/usr/bin/nvidia-cdi-hook"
    )
    data: dict[str, Any] = json.loads(text)
    return data, warnings


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    return other_hosts.make_tegra(tmp_path)


@pytest.mark.parametrize("how", ["owner", "mode", "directory", "link"])
def test_list_that_others_can_write_is_not_read(how: str, orin: Path) -> None:
    """She adds the host's shadow file to the list; every container would have it."""
    (orin / "etc/shadow").write_text("secret")
    (orin / CSV / "l4t.csv").write_text("lib, /etc/shadow\n")
    file = orin / CSV / "l4t.csv"
    if how == "owner":
        os.chown(file, USER, USER)
    elif how == "mode":
        file.chmod(0o666)
    elif how == "directory":
        (orin / CSV).chmod(0o777)
    else:
        home = orin / "home/her"
        home.mkdir(parents=True)
        os.chown(home, USER, USER)
        file.rename(home / "l4t.csv")
        file.symlink_to("/home/her/l4t.csv")
    if how == "directory":
        with pytest.raises(NoDriver, match="another user than root can change it"):
            spec(orin, "csv")
        return
    data, warnings = spec(orin, "csv")
    assert "/etc/shadow" not in json.dumps(data)
    assert any("l4t.csv is not read: another user than root can change it" in w for w in warnings)


def test_listed_link_is_followed_inside_the_host_root(orin: Path) -> None:
    """A path of the list that is a link is followed inside the host root; `..` leads nowhere."""
    outside = orin.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").touch()
    (orin / NVGPU / "libaway.so").symlink_to(outside / "secret")
    (orin / NVGPU / "libup.so").symlink_to("../" * 20 + str(outside / "secret"))
    up = "../" * 9
    (orin / CSV / "l4t.csv").write_text(
        f"lib, /{NVGPU}/libaway.so\nsym, /{NVGPU}/libup.so\nlib, /{NVGPU}/{up}outside/secret\n"
        f"dir, /{up}\ndir, /{up}outside*\ndev, /{up}outside/*\n"
    )
    data, _ = spec(orin, "csv")
    mounts = [one["hostPath"] for one in data["containerEdits"]["mounts"]]
    assert not [path for path in mounts if "secret" in path or "outside" in path]


@pytest.mark.parametrize(
    "line",
    ["lib, /etc/a\tb", "lib, /etc/a\x1b[2J", "dir, /etc/\x7f", "dev, /dev/\u2028x", "sym, /a\x00b"],
)
def test_path_with_control_characters_is_passed_over(line: str, orin: Path) -> None:
    """It is none, and never in a spec or a message."""
    (orin / CSV / "l4t.csv").write_text(f"{line}\n")
    found, _, _ = tegra.read(HostRoot(str(orin)), [f"/{CSV}/l4t.csv"])
    assert not any(found.values())


def test_endless_list_is_not_read(orin: Path) -> None:
    """One that is larger than any, a pipe, a device: none makes us wait, or fills the memory."""
    (orin / CSV / "l4t.csv").write_text("lib, /etc/x\n" * 50_000)
    (orin / CSV / "more.csv").write_text("\n" * 6_000)
    (orin / CSV / "drivers.csv").unlink()
    os.mkfifo(orin / CSV / "drivers.csv")
    make_node(orin / CSV / "zero.csv", 1, 5)
    names = [f"/{CSV}/{name}.csv" for name in ("l4t", "more", "drivers", "zero")]
    found, warnings, _ = tegra.read(HostRoot(str(orin)), names)
    assert not any(found.values())
    assert [text.partition(" is not read: ")[2] for text in warnings] == [
        "it is larger than 524288 bytes", "it has more than 5000 lines",
        "it is not a regular file", "it is not a regular file",
    ]  # fmt: skip


def test_many_wildcards_are_bounded(orin: Path) -> None:
    """A line cannot make us walk the whole disk for ever."""
    (orin / CSV / "l4t.csv").write_text("lib, /" + "*/" * 2000 + "x\nlib, /" + "a/" * 3000 + "\n")
    assert spec(orin, "csv")[0]["devices"]


def test_libdxcore_that_others_can_write_is_not_loaded(tmp_path: Path) -> None:
    """It would run as root. It is not loaded, and the only driver needs no answer."""
    other_hosts.make_wsl(tmp_path)
    library = made_dxcore.place(tmp_path, ADAPTERS)
    asked: list[int] = []
    for owner, mode in ((USER, 0o755), (0, 0o777)):
        os.chown(library, owner, 0)
        library.parent.chmod(mode)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dxcore, "ask", asked.append)
            data, warnings = spec(tmp_path, "wsl")
        assert f"/{STORE}/libcuda.so.1.1" in json.dumps(data)
        assert any("others than root can change it" in text for text in warnings)
    assert asked == []


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF" + bytes(60)])
def test_broken_libdxcore_is_reported(content: bytes, tmp_path: Path) -> None:
    """A reason, and no traceback."""
    path = tmp_path / "libdxcore.so"
    path.write_bytes(content)
    with open(path, "rb") as file:
        assert dxcore.ask(file.fileno()).error.startswith("it cannot be used")


def test_path_that_is_no_driver_of_windows_is_passed_over(tmp_path: Path) -> None:
    """Windows tells any path: only what is there, and has NVIDIA's library, counts."""
    other_hosts.make_wsl(tmp_path)
    for odd in ("/../../etc", "relative", "/etc/shadow", "/" + "x" * 250):
        made_dxcore.place(tmp_path, [(3100, odd)])
        with pytest.raises(NoDriver, match=r"there is no libcuda\.so\.1\.1 in"):
            spec(tmp_path, "wsl")
