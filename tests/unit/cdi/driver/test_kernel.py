"""The kernel's view of the GPUs has another trace after every change that matters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cdi.driver import kernel
from agent.daemon.supervisor import signature
from agent.host.paths import HostRoot
from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.kernel import information

ONE, TWO = FakeGpu(0), FakeGpu(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a GPU that has one MIG device."""
    (tmp_path / "proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("550.54.15")
    information(tmp_path, ONE)
    return tmp_path


def instance(root: Path, name: str = "gi1") -> Path:
    return root / "proc/driver/nvidia/capabilities/gpu0/mig" / name


def anew(root: Path) -> None:
    shutil.rmtree(instance(root))
    instance(root, "gi1/ci0").mkdir(parents=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "GPU added": lambda root: information(root, TWO),
    "GPU gone": lambda root: shutil.rmtree(root / f"proc/driver/nvidia/gpus/{ONE.bus}"),
    "GPU instance": lambda root: instance(root, "gi2").mkdir(),
    "GPU instance gone": lambda root: shutil.rmtree(instance(root)),
    "GPU instance anew": anew,
    "compute instance": lambda root: instance(root, "gi1/ci1").mkdir(),
    "compute instance gone": lambda root: shutil.rmtree(instance(root, "gi1/ci0")),
    "first of another GPU": lambda root: instance(root, "../../gpu1/mig/gi0").mkdir(parents=True),
    "module gone": lambda root: shutil.rmtree(root / "proc/driver/nvidia"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_of_the_gpus_makes_another_trace(
    change: Callable[[Path], object], root: Path
) -> None:
    """In the trace, and in what is watched from before."""
    host = HostRoot(str(root))
    entries = [os.fsencode(entry) for entry in kernel.watch_paths(host)]
    before = kernel.trace(host), [signature(entry) for entry in entries]
    assert (kernel.trace(host), [signature(entry) for entry in entries]) == before
    change(root)
    assert kernel.trace(host) != before[0]
    assert [signature(entry) for entry in entries] != before[1]


def test_uuid_is_no_part_of_it(root: Path) -> None:
    """The kernel knows it only after somebody has used the GPU, and that may be us."""
    host = HostRoot(str(root))
    information(root, ONE, GPU_UUID="GPU-????????-????-????-????-????????????")
    before = kernel.trace(host)
    information(root, ONE)
    assert kernel.trace(host) == before


def test_module_counts_as_loaded_by_its_proc_directory(root: Path) -> None:
    host = HostRoot(str(root))
    assert kernel.is_loaded(host)
    shutil.rmtree(root / "proc/driver/nvidia")
    assert not kernel.is_loaded(host)
