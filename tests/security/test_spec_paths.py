"""What others own does not enter a CDI spec.

The attacker is an ordinary user of the host, or a container that may write one directory. A path of
his in a spec is mounted into every GPU container, under the name that it has when the container is
made: he then puts a link to the runtime's socket there, or removes it, so that no container starts.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.cdi.driver import driver
from agent.cdi.driver.nvml import Answer, Library
from agent.cdi.make import generate
from agent.daemon.supervisor import signature
from agent.errors import DriverDistrusted, NoDevices, NoDriver
from agent.host.paths import HostRoot, is_below
from agent.options.settings import resolve
from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.beside import beside
from tests.tools.driver import LIBRARIES, VERSION, elf, make_driver
from tests.tools.kernel import make_kernel, make_node

_DEFAULTS = resolve({}, {}, "toolkit-agent")

USER = 1234
HOOK = "/usr/bin/nvidia-cdi-hook"
MANAGEMENT, GPU = "management", "gpu"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with the driver in `/`, and one thing of every kind that a spec can name."""
    make_driver(tmp_path)
    make_kernel(tmp_path, tmp_path, [FakeGpu(0)])
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    touch(tmp_path / "run/containerd/containerd.sock")
    touch(tmp_path / "run/nvidia-fabricmanager/socket")
    touch(tmp_path / HOOK[1:]).chmod(0o755)
    for name in (
        "usr/share/glvnd/egl_vendor.d/10_nvidia.json", "etc/vulkan/icd.d/nvidia_icd.json",
        "usr/lib64/xorg/modules/drivers/nvidia_drv.so", "etc/cufile.json", "run/udev/data/x",
    ):  # fmt: skip
        touch(tmp_path / name)
    for name in ("gdrdrv", "nvidia-fs0", "infiniband/uverbs0", "nvidia-nvswitch0"):
        make_node(tmp_path / "dev" / name, 240, 0)
    make_node(tmp_path / "dev/nvidia-caps-imex-channels/channel0", 241, 0)
    return tmp_path


def told(*_: object) -> Answer:
    """NVML's word, without NVML."""
    raise AssertionError("a library that was not judged is asked")


def make(host: Path, mode: str = MANAGEMENT, **options: str) -> tuple[dict[str, Any], str]:
    """A spec, and its warnings."""
    hook = HOOK if (host / HOOK[1:]).exists() else None
    text, warnings = generate.spec_text(
        mode, resolve(options, {}, "toolkit-agent"), HostRoot(str(host)), "json", hook=hook
    )
    data: dict[str, Any] = json.loads(text)
    return data, "\n".join(warnings)


def named(data: dict[str, Any]) -> set[str]:
    """Host paths that a spec names."""
    found: set[str] = set()
    for edits in (data["containerEdits"], *(one["containerEdits"] for one in data["devices"])):
        found |= {one["hostPath"] for one in edits.get("mounts", ())}
        found |= {one.get("hostPath", one["path"]) for one in edits.get("deviceNodes", ())}
        found |= {one["path"] for one in edits.get("hooks", ())}
    return found


def given(path: Path) -> None:
    os.chown(path, USER, USER, follow_symlinks=False)


def opened_up(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def parent_given(path: Path) -> None:
    given(path.parent)


def parent_opened(path: Path) -> None:
    opened_up(path.parent)


def led_away(path: Path) -> None:
    """It is a link of the user's in a directory where anybody can make one."""
    away = path.parent / "away"
    path.rename(away)
    path.symlink_to("away")
    path.parent.chmod(0o1777)
    given(path)


SOURCES = {
    "library": (MANAGEMENT, f"{LIBRARIES}/libcuda.so.{VERSION}"),
    "vdpau": (MANAGEMENT, f"{LIBRARIES}/vdpau/libvdpau_nvidia.so.{VERSION}"),
    "program": (MANAGEMENT, "usr/bin/nvidia-smi"),
    "firmware": (MANAGEMENT, f"lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"),
    "hook": (MANAGEMENT, HOOK[1:]),
    "graphics": (GPU, "usr/share/glvnd/egl_vendor.d/10_nvidia.json"),
    "vulkan": (GPU, "etc/vulkan/icd.d/nvidia_icd.json"),
    "xorg": (GPU, "usr/lib64/xorg/modules/drivers/nvidia_drv.so"),
    "cufile": ("gds", "etc/cufile.json"),
}
ATTACKS = (given, opened_up, parent_given, parent_opened, led_away)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("source", SOURCES)
def test_file_that_others_decide_is_left_out(
    host: Path, source: str, attack: Callable[[Path], None]
) -> None:
    """Whoever owns a file, or can write it, its directory or a link to it, decides what it is: it
    is left out, and the rest is as before."""
    mode, name = SOURCES[source]
    before, _ = make(host, mode)
    assert f"/{name}" in named(before)
    attack(host / name)
    if source == "library" and attack in (parent_given, parent_opened):
        with pytest.raises(NoDriver, match=f"/{LIBRARIES} "):  # all of the driver's are there
            make(host, mode)
        return
    data, warnings = make(host, mode)
    gone = named(before) - named(data)
    assert f"/{name}" in gone
    above = os.path.dirname(f"/{name}")
    assert all(is_below(path, above) for path in gone)
    assert named(data) < named(before)
    assert above in warnings
    assert "chown" in warnings or "chmod" in warnings


@pytest.mark.parametrize("name", ["run/nvidia-fabricmanager/socket", "run/udev"])
def test_socket_of_others_is_left_out(host: Path, name: str) -> None:
    """Here the owner counts, and who can write the directory above."""
    mode = "gds" if name == "run/udev" else MANAGEMENT
    assert f"/{name}" in named(make(host, mode)[0])
    given(host / name)
    data, warnings = make(host, mode)
    assert f"/{name}" not in named(data)
    assert f"/{name} belongs to user {USER}" in warnings


def of_root(path: Path) -> None:
    """A socket, for everybody: who connects to it changes nothing of what is mounted."""
    os.mknod(path, 0o140666)
    path.chmod(0o666)


def of_user(path: Path) -> None:
    of_root(path)
    given(path)


def link_of_user(path: Path) -> None:
    path.symlink_to("/run/containerd/containerd.sock")
    given(path)


def link_to_user(path: Path) -> None:
    """Root's own link, to a directory of the user's."""
    (path.parent / "his").mkdir()
    given(path.parent / "his")
    of_root(path.parent / "his/mps")
    path.symlink_to("his/mps")


@pytest.mark.parametrize(
    ("plant", "there"),
    [(of_root, True), (of_user, False), (link_of_user, False), (link_to_user, False)],
)
@pytest.mark.parametrize("mode", [MANAGEMENT, GPU])
def test_mps_directory_of_a_user_is_left_out(
    host: Path, plant: Callable[[Path], None], there: bool, mode: str
) -> None:
    """A user makes /tmp/nvidia-mps before root's MPS daemon does: his own, or a link to the
    runtime's socket. Only root's own entry in the sticky directory counts."""
    plant(host / "tmp/nvidia-mps")
    data, warnings = make(host, mode)
    assert ("/tmp/nvidia-mps" in named(data)) is there
    assert not any("containerd" in path or "his" in path for path in named(data))
    assert ("/tmp/nvidia-mps" in warnings) is not there


def test_open_tmp_is_nobodys(host: Path) -> None:
    """Without the sticky bit even root's entry can be exchanged."""
    (host / "tmp").chmod(0o777)
    of_root(host / "tmp/nvidia-mps")
    assert "/tmp/nvidia-mps" not in named(make(host)[0])


@contextmanager
def swapping(path: Path) -> Iterator[None]:
    """The user swaps his own socket for a link to the socket, as fast as he can."""
    own, link = path.with_name("d"), path.with_name("l")
    of_user(own)
    link.symlink_to("/run/containerd/containerd.sock")
    given(link)

    def swap(ended: threading.Event) -> None:
        while not ended.is_set():
            for other in (own, link):
                os.rename(other, path)
                os.rename(path, other)

    with beside(swap):
        yield


def test_swapped_link_is_left_out(host: Path) -> None:
    """Between two looks at one name it can be two things: none of them is taken."""
    with swapping(host / "tmp/nvidia-mps"):
        for _ in range(20):
            assert not {
                path for path in named(make(host)[0]) if path.startswith(("/tmp", "/run/c"))
            }


def test_cached_library_of_a_user_is_passed_over(host: Path) -> None:
    """A directory of a user's in ld.so.cache: a file with the driver's name decides neither the
    version nor what is mounted."""
    from tests.unit.support.ld_cache import make_cache

    shutil.rmtree(host / LIBRARIES)
    his = host / "opt/his"
    his.mkdir(parents=True)
    (his / "libcuda.so.999.1").write_bytes(elf("libcuda.so.1"))
    given(his)
    (host / "etc/ld.so.cache").write_bytes(make_cache(["/opt/his/libcuda.so.999.1"]))
    with pytest.raises(
        NoDriver, match=r"/opt/his/libcuda.so.999.1 does not count: /opt/his belongs"
    ):
        driver.find(HostRoot(str(host)), _DEFAULTS)
    os.chown(his, 0, 0)
    assert driver.find(HostRoot(str(host)), _DEFAULTS).version == "999.1"


ROOT = "run/nvidia/driver"


@pytest.mark.parametrize("attacked", ["run", "run/nvidia", ROOT])
@pytest.mark.parametrize("attack", [given, opened_up])
def test_driver_root_of_others_gets_no_spec(
    tmp_path: Path, attacked: str, attack: Callable[[Path], None]
) -> None:
    """Who can write a directory above the driver root can exchange all of it: there is no spec, and
    the error says why."""
    make_driver(tmp_path / ROOT)
    make(tmp_path)
    attack(tmp_path / attacked)
    for options in ({}, {"driver_root": f"/{ROOT}"}):
        with pytest.raises(
            DriverDistrusted, match=rf"changed by others than root: /{attacked} (belongs|can)"
        ):
            make(tmp_path, **options)


def test_driver_root_of_a_user_does_not_hide_the_hosts_driver(host: Path) -> None:
    """A driver root of a user's does not keep the host's own driver away, and is told."""
    (host / ROOT).mkdir(parents=True)
    given(host / ROOT)
    data, warnings = make(host)
    assert f"/{LIBRARIES}/libcuda.so.{VERSION}" in named(data)
    assert f"/{ROOT} belongs to user {USER}" in warnings


def test_absolute_link_stays_inside_the_driver_root(tmp_path: Path) -> None:
    """A container that is root in its driver root makes absolute links: they stay inside it."""
    root = make_driver(tmp_path / ROOT)
    touch(tmp_path / "run/containerd/containerd.sock")
    touch(root / "run/containerd/containerd.sock")
    (root / "tmp").mkdir()
    (root / "tmp/nvidia-mps").symlink_to("/run/containerd/containerd.sock")
    assert f"/{ROOT}/run/containerd/containerd.sock" in named(make(tmp_path)[0])
    assert "/run/containerd/containerd.sock" not in named(make(tmp_path)[0])


NODES = {
    "dev/nvidia0": (MANAGEMENT, GPU), "dev/nvidiactl": (MANAGEMENT, GPU),
    "dev/nvidia-caps/nvidia-cap1": (MANAGEMENT,), "dev/dri/card1": (GPU,),
    "dev/gdrdrv": ("gdrcopy",), "dev/nvidia-fs0": ("gds",), "dev/infiniband/uverbs0": ("mofed",),
    "dev/nvidia-nvswitch0": ("nvswitch",), "dev/nvidia-caps-imex-channels/channel0": ("imex",),
}  # fmt: skip


@pytest.mark.parametrize("attack", [given, parent_given, parent_opened])
@pytest.mark.parametrize("name", NODES)
def test_device_of_others_is_left_out(
    host: Path, name: str, attack: Callable[[Path], None]
) -> None:
    """Who owns a node can let anybody open it, who can write its directory can exchange it."""
    for mode in NODES[name]:
        assert f"/{name}" in named(make(host, mode)[0])
    attack(host / name)
    for mode in NODES[name]:
        try:
            data, warnings = make(host, mode)
        except (NoDriver, NoDevices):
            continue  # it was the only one
        assert f"/{name}" not in named(data)
        assert "/dev" in warnings


def test_hook_in_a_directory_of_a_user_is_refused(host: Path) -> None:
    """It is not there yet, and the directory in which it will be is a user's."""
    place = host / "opt/nvidia"
    place.mkdir(parents=True)
    name = "/opt/nvidia/toolkit/nvidia-cdi-hook"
    settings, root = resolve({}, {}, "toolkit-agent"), HostRoot(str(host))
    text, _ = generate.spec_text(MANAGEMENT, settings, root, "json", hook=name)
    assert name in named(json.loads(text))
    for mode in (0o777, 0o1777):
        place.chmod(mode)
        text, warnings = generate.spec_text(MANAGEMENT, settings, root, "json", hook=name)
        assert name not in named(json.loads(text))
        assert any("no hooks" in warning and "/opt/nvidia" in warning for warning in warnings)


def test_nvml_of_others_is_not_loaded(host: Path) -> None:
    """It would run as root, in a process of ours."""
    given(host / LIBRARIES / f"libnvidia-ml.so.{VERSION}")
    settings = resolve({}, {}, "toolkit-agent")
    made = generate.build("nvml", settings, HostRoot(str(host)), hook=None, ask=told)
    assert any("libnvidia-ml" in warning for warning in made.warnings)


def test_library_that_was_judged_is_the_one_loaded(host: Path) -> None:
    """What was judged is what is loaded: another file of that name does not count any more."""
    path = host / LIBRARIES / f"libnvidia-ml.so.{VERSION}"
    judged = path.stat()
    asked: list[bool] = []

    def ask(library: Library) -> Answer:
        path.rename(path.with_name("old"))
        path.write_bytes(b"another")
        asked.append(os.path.samestat(os.fstat(library.fd), judged))
        asked.append(os.path.samestat(os.stat(f"/proc/self/fd/{library.fd}"), judged))
        return Answer(error="not today")

    generate.build(
        "nvml", resolve({}, {}, "toolkit-agent"), HostRoot(str(host)), hook=None, ask=ask
    )
    assert asked == [True, True]


def test_what_decides_is_watched(host: Path) -> None:
    """Every file, directory and link on which it depends; a change of hands shows, and what others
    do in /tmp does not."""
    of_root(host / "tmp/nvidia-mps")
    root = HostRoot(str(host))
    made = generate.build("management", resolve({}, {}, "toolkit-agent"), root, hook=HOOK)
    names = {path.removeprefix(str(host)) or "/" for path in made.judged_paths}
    library = f"/{LIBRARIES}/libcuda.so.{VERSION}"
    assert {library, f"/{LIBRARIES}", "/usr", "/", "/tmp", "/tmp/nvidia-mps", HOOK} <= names
    watched = (host / "tmp", host / "tmp/nvidia-mps", host / library[1:])
    before = [signature(b"=" + os.fsencode(path)) for path in watched]
    touch(host / "tmp/noise")
    assert [signature(b"=" + os.fsencode(path)) for path in watched] == before
    for path in watched:
        given(path)
        path.chmod(0o1755)
    after = [signature(b"=" + os.fsencode(path)) for path in watched]
    assert all(one != other for one, other in zip(before, after, strict=True))
