"""`run` keeps the specs fresh when GPUs, nodes and drivers come, go or change."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.daemon import running
from tests.cli.gpu_host import GPU, MANAGEMENT, GpuHost
from tests.conformance.foreign_specs import spec
from tests.doubles.nvml.nvml import FakeGpu, FakePart
from tests.tools.driver import LIBRARIES, UVM, VERSION, make_driver, remove_driver
from tests.tools.kernel import make_node
from tests.unit.support.gpu_node import MARKS

pytestmark = MARKS

ONE, TWO = FakeGpu(0), FakeGpu(1)
BEFORE, AFTER = FakePart(0, 1), FakePart(0, 1, uuid="MIG-after")
NEWER = "560.28.03"


@pytest.fixture
def node(place: Path) -> Iterator[GpuHost]:
    with GpuHost(place, ONE) as found:
        yield found


def split(node: GpuHost, part: FakePart) -> None:
    """Make one MIG device, as the kernel shows it: anew, also where there is one of its number
    with the same device nodes."""
    top = node.host / "proc/driver/nvidia/capabilities/gpu0/mig"
    shutil.rmtree(top, ignore_errors=True)
    node.set(FakeGpu(0, mig=1, parts=(part,)))
    (top / f"gi{part.gi}/ci{part.ci}").mkdir(parents=True)


def whole(node: GpuHost) -> None:
    """Put it together again."""
    node.set(ONE)
    shutil.rmtree(node.host / "proc/driver/nvidia/capabilities/gpu0/mig/gi1")


def gone(node: GpuHost) -> None:
    """The second GPU is pulled."""
    (node.host / "dev/nvidia1").unlink()
    shutil.rmtree(node.host / f"proc/driver/nvidia/gpus/{TWO.bus}")
    node.say(ONE)


def upgraded(node: GpuHost, version: str, old: str) -> None:
    """Another version of the driver, whose NVML cannot be loaded here."""
    make_driver(node.host, version)
    remove_driver(node.host, old)
    node.say(ONE)


def has(*names: str) -> Callable[[GpuHost], bool]:
    return lambda node: node.names() == sorted([*names, "all"])


def there(name: str, *, yes: bool = True) -> Callable[[GpuHost], bool]:
    return lambda node: (name in node.specs()) is yes


def says(pattern: str, name: str = GPU) -> Callable[[GpuHost], bool]:
    """A word of a spec."""
    return lambda node: re.search(pattern, node.text(name)) is not None


def device(name: str, minor: int) -> Callable[[GpuHost], object]:
    return lambda node: make_node(node.host / "dev" / name, 240, minor)


def lacks(pattern: str, name: str = GPU) -> Callable[[GpuHost], bool]:
    """There is a spec, without that."""
    return lambda node: bool(node.text(name)) and re.search(pattern, node.text(name)) is None


def mps(node: GpuHost) -> None:
    """The socket of root's MPS daemon."""
    (node.host / "tmp").mkdir(exist_ok=True)
    (node.host / "tmp").chmod(0o1777)
    make_node(node.host / "tmp/nvidia-mps", 240, 6)


def given(name: str, user: int = 1234) -> Callable[[GpuHost], object]:
    return lambda node: os.chown(node.host / name, user, user)


def with_mode(name: str, mode: int) -> Callable[[GpuHost], object]:
    return lambda node: (node.host / name).chmod(mode)


Step = tuple[Callable[[GpuHost], object], Callable[[GpuHost], bool]]

STEPS: dict[str, Step] = {
    "GPU added": (lambda node: node.set(ONE, TWO), has("0", "1", ONE.name, TWO.name)),
    "GPU gone": (gone, has("0", ONE.name)),
    "GPU split": (lambda node: split(node, BEFORE), has("0:0", BEFORE.name(0))),
    "split anew": (lambda node: split(node, AFTER), has("0:0", "MIG-after")),
    "GPU whole": (whole, has("0", ONE.name)),
    "group of a node": (
        lambda node: (node.host / "dev/nvidia0").chmod(0o640), says("fileMode: 416\n"),
    ),
    "spec gone": (lambda node: (node.cdi / GPU).unlink(), has("0", ONE.name)),
    "spec spoilt": (lambda node: (node.cdi / GPU).write_bytes(b""), has("0", ONE.name)),
    "somebody else's": (
        lambda node: (node.cdi / "nvidia.yaml").write_text(spec("nvidia.com/gpu")),
        there(GPU, yes=False),
    ),
    "somebody else's gone": (
        lambda node: (node.cdi / "nvidia.yaml").unlink(), has("0", ONE.name),
    ),
    "somebody else's, elsewhere": (
        lambda node: (node.cdi_etc / "gpus.json").write_text(spec("nvidia.com/gpu")),
        there(GPU, yes=False),
    ),
    "somebody else's, of no use": (
        lambda node: (node.cdi_etc / "gpus.json").write_text('{"kind": "nvidia.com/gpu"}'),
        has("0", ONE.name),
    ),
    "another kind's by now": (
        lambda node: (node.cdi_etc / "gpus.json").write_text('{"kind": "vendor.example/gp"}'),
        has("0", ONE.name),
    ),
    "socket": (
        lambda node: make_node(node.host / "run/nvidia-persistenced/socket", 240, 5),
        says("nvidia-persistenced/socket"),
    ),
    "socket gone": (
        lambda node: (node.host / "run/nvidia-persistenced/socket").unlink(),
        lambda node: not says("nvidia-persistenced/socket")(node),
    ),
    "card": (
        lambda node: make_node(node.host / "dev/dri/card1", 226, 7, 0o660, 45), says("minor: 7\n"),
    ),
    "MPS": (mps, says("nvidia-mps", MANAGEMENT)),
    "MPS of a user's": (given("tmp/nvidia-mps"), lacks("nvidia-mps", MANAGEMENT)),
    "MPS of root's again": (given("tmp/nvidia-mps", 0), says("nvidia-mps", MANAGEMENT)),
    "MPS gone": (
        lambda node: (node.host / "tmp/nvidia-mps").unlink(), lacks("nvidia-mps", MANAGEMENT),
    ),
    "program that others can write": (with_mode("usr/bin/nvidia-smi", 0o777), lacks("nvidia-smi")),
    "program that is root's alone": (with_mode("usr/bin/nvidia-smi", 0o755), says("nvidia-smi")),
    "library of a user's": (given(f"{LIBRARIES}/libnvidia-ptxjitcompiler.so.{VERSION}"),
                            lacks("ptxjitcompiler")),
    "library of root's": (given(f"{LIBRARIES}/libnvidia-ptxjitcompiler.so.{VERSION}", 0),
                          says("ptxjitcompiler")),
    "firmware of a user's": (given("lib/firmware/nvidia"), lacks("gsp_ga10x")),
    "firmware of root's": (given("lib/firmware/nvidia", 0), says("gsp_ga10x")),
    "gdrcopy": (device("gdrdrv", 0), there("nvidia.com-gdrcopy.yaml")),
    "gdrcopy gone": (
        lambda node: (node.host / "dev/gdrdrv").unlink(),
        there("nvidia.com-gdrcopy.yaml", yes=False),
    ),
    "gds": (device("nvidia-fs0", 2), there("nvidia.com-gds.yaml")),
    "mofed": (device("infiniband/uverbs0", 1), there("nvidia.com-mofed.yaml")),
    "nvswitch": (device("nvidia-nvswitch0", 3), there("nvidia.com-nvswitch.yaml")),
    "channel": (
        device("nvidia-caps-imex-channels/channel0", 4), there("nvidia.com-imex-channel.yaml"),
    ),
    "driver upgraded": (
        lambda node: upgraded(node, NEWER, VERSION), says(rf"libcuda\.so\.{NEWER}"),
    ),
    "and back": (
        lambda node: upgraded(node, VERSION, NEWER), says(rf"libcuda\.so\.{VERSION}"),
    ),
}  # fmt: skip


def test_specs_are_kept_fresh(node: GpuHost) -> None:
    """Each of these, while readiness stays and nothing is restarted."""
    ready = node.validations / "toolkit-ready"
    with running(node) as daemon:
        daemon.until(ready.exists)
        starts = node.supervisor.starts
        for name, (disturb, holds) in STEPS.items():
            disturb(node)
            try:
                daemon.until(functools.partial(holds, node))
            except AssertionError as error:
                raise AssertionError(f"{name}: {node.names()}") from error
            daemon.rest()
        assert (node.supervisor.starts, node.error()) == (starts, {})
        assert ready.exists()


def test_node_is_ready_once_its_module_is_loaded(place: Path) -> None:
    """Without it there are no nodes: not ready. Then everything is there."""
    with GpuHost(place) as node:
        shutil.rmtree(node.host / "dev")
        shutil.rmtree(node.host / "proc/driver/nvidia")
        with running(node) as daemon:
            daemon.until(lambda: node.error().get("TOOLKIT_ERROR_CODE") == "NO_DRIVER")
            assert node.specs() == []
            make_driver(node.host)
            node.set(ONE)
            daemon.until(lambda: has("0", ONE.name)(node))
            daemon.until((node.validations / "toolkit-ready").exists)
            assert node.specs() == sorted([MANAGEMENT, GPU])


def test_node_that_comes_late_is_in_the_spec(place: Path) -> None:
    """nvidia-uvm-tools, 13 s after all others (gpu-operator#2685), in the driver container's dev or
    in the host's: a new spec within 2 s, which says where it is."""
    with GpuHost(place, ONE) as node:
        root = in_a_container(node)
        for dev in (node.host / "dev", root / "dev"):
            (dev / "nvidia-uvm-tools").unlink()
        with running(node) as daemon:
            daemon.until((node.validations / "toolkit-ready").exists)
            assert not says("nvidia-uvm-tools")(node)
            for where, text in (
                (node.host, "path: /dev/nvidia-uvm-tools"),
                (root, "hostPath: /run/nvidia/driver/dev/nvidia-uvm-tools"),
            ):
                daemon.rest()
                make_node(where / "dev/nvidia-uvm-tools", UVM, 1)
                daemon.until(functools.partial(both_say, node, text))


def test_spec_goes_when_others_can_write_the_driver_root(place: Path) -> None:
    """A directory above it, or the root itself, becomes writable by others: within 2 s there is no
    spec, and the node is not ready. It comes back with the root."""
    with GpuHost(place, ONE) as node:
        root = in_a_container(node)
        ready = node.validations / "toolkit-ready"
        with running(node) as daemon:
            daemon.until(ready.exists)
            daemon.rest()
            assert node.specs() == [MANAGEMENT, GPU]
            root.chmod(0o777)
            daemon.until(lambda: node.specs() == [])
            daemon.until(lambda: not ready.exists())
            daemon.until(lambda: "NO_DRIVER" in node.error().values())
            root.chmod(0o755)
            daemon.until(lambda: node.specs() == [MANAGEMENT, GPU])
            daemon.until(ready.exists)


def in_a_container(node: GpuHost) -> Path:
    """Move the driver to a driver container's root."""
    root = node.host / "run/nvidia/driver"
    root.mkdir(parents=True)
    (node.host / "usr").rename(root / "usr")
    shutil.copytree(root / "usr/local", node.host / "usr/local")
    shutil.copytree(node.host / "dev", root / "dev", copy_function=copied)
    return root


def both_say(node: GpuHost, text: str) -> bool:
    """Whether both specs have that, whichever path is quoted."""
    return all(text in node.text(name).replace('"', "") for name in (GPU, MANAGEMENT))


def copied(source: str, target: str) -> None:
    """A device node, as it is."""
    found = Path(source).lstat()
    make_node(Path(target), os.major(found.st_rdev), os.minor(found.st_rdev))
