"""The child process that asks NVML gives GPUs or an error, whatever the library does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.cdi.driver import nvml
from agent.cdi.driver.nvml import Answer, Gpu, Library, Mig
from agent.errors import DriverFailed
from tests.doubles.nvml.nvml import (  # fmt: skip
    COMPILER,
    LOST,
    MISMATCH,
    NO_COMPILER,
    NOT_LOADED,
    NOT_SUPPORTED,
    FakeGpu,
    FakePart,
    place,
)
from tests.tools.driver import LIBRARIES

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

# H100: 1g.10gb is profile 19 and 3g.40gb profile 9; the one with graphics is of an RTX PRO 6000.
SPLIT = FakeGpu(1, mig=1, parts=(FakePart(0, 1, 0), FakePart(1, 1, 1), FakePart(4, 9, 0)))
DRAWS = FakeGpu(0, mig=1, parts=(FakePart(0, 3, 0, profile=47), FakePart(1, 4, 0, profile=14)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / LIBRARIES).mkdir(parents=True)
    return tmp_path


def ask(root: Path, *gpus: FakeGpu, extra: tuple[str, ...] = (), variant: str = "") -> Answer:
    """What a library with these GPUs says."""
    return ask_file(place(root, gpus, extra, variant))


def ask_file(path: Path, timeout: float = nvml.TIMEOUT) -> Answer:
    """What the library at a path says."""
    with path.open("rb") as file:
        return nvml.ask(Library(str(path), file.fileno()), timeout)


def seen(gpu: FakeGpu) -> Gpu:
    """What should be said of a GPU that is not split."""
    return Gpu(gpu.index, gpu.name, gpu.number, gpu.bus, model=gpu.model)


def test_one_gpu_is_described_as_the_kernel_spells_it(root: Path) -> None:
    """Its address is as the kernel spells it; what the library prints is in nobody's way."""
    assert ask(root, FakeGpu(0)) == Answer((seen(FakeGpu(0)),))


def test_index_is_nvmls_and_the_node_has_the_minor_number(root: Path) -> None:
    """The index is NVML's, the node's name has the minor number."""
    gpus = [FakeGpu(index, minor=7 - index) for index in range(8)]
    assert ask(root, *gpus) == Answer(tuple(map(seen, gpus)))


def test_no_gpu_is_an_answer(root: Path) -> None:
    """That is an answer too."""
    assert ask(root) == Answer()


def test_mig_devices_are_listed_by_their_indices(root: Path) -> None:
    """By their own indices, between which there may be nothing; a GPU with MIG switched off, and
    one that cannot have it, are plain ones."""
    found = ask(root, FakeGpu(0, mig=0), SPLIT, FakeGpu(2, mig=-1))
    assert [gpu.mig for gpu in found.gpus] == [False, True, False]
    assert found.gpus[1].instances == tuple(
        Mig(part.index, part.name(1), part.gi, part.ci) for part in SPLIT.parts
    )
    assert (found.warnings, found.error) == ((), "")


def test_mig_device_with_graphics_has_the_gpus_nodes(root: Path) -> None:
    """Only one of a profile for graphics gets nodes of the GPU for that."""
    found = ask(root, DRAWS, extra=("profile 10 47", "profile 0 14"))
    assert [part.graphics for part in found.gpus[0].instances] == [True, False]


def test_unsplit_mig_gpu_is_no_device(root: Path) -> None:
    """Such a GPU is no device itself, and has none."""
    (gpu,) = ask(root, FakeGpu(0, mig=1)).gpus
    assert (gpu.mig, gpu.instances) == (True, ())


@pytest.mark.parametrize("model", ["DGX Display", "NVIDIA DGX Display"])
def test_display_of_a_dgx_is_no_gpu(root: Path, model: str) -> None:
    """The numbers of the others stay."""
    found = ask(root, FakeGpu(0), FakeGpu(1, model=model), FakeGpu(2))
    assert [gpu.index for gpu in found.gpus] == [0, 2]


@pytest.mark.parametrize("code", [LOST, NOT_SUPPORTED, 4, 8, 999])
def test_gpu_that_fell_off_is_left_out(root: Path, code: int) -> None:
    """With a warning that names it; the others are of use still."""
    found = ask(root, FakeGpu(0), FakeGpu(1, code=code), FakeGpu(2))
    assert [gpu.index for gpu in found.gpus] == [0, 2]
    (warning,) = found.warnings
    assert warning.startswith("GPU 1 is not in the CDI spec: ")


def test_gpu_that_falls_off_while_it_is_asked_is_left_out(root: Path) -> None:
    """Wherever it happens."""
    for name in ("MigMode", "MinorNumber", "PciInfo_v3", "UUID", "Name"):
        found = ask(root, FakeGpu(0), extra=(f"fail nvmlDeviceGet{name} {LOST}",))
        assert (found.gpus, len(found.warnings), found.error) == ((), 1, ""), name


def test_mig_device_that_cannot_be_asked_is_left_out(root: Path) -> None:
    """The others of that GPU are of use still."""
    bad = FakeGpu(0, mig=1, parts=(FakePart(0, 1, code=999), FakePart(1, 2)))
    found = ask(root, bad)
    assert [part.index for part in found.gpus[0].instances] == [1]
    (warning,) = found.warnings
    assert warning.startswith("MIG device 0:0 is not in the CDI spec: ")


@pytest.mark.parametrize("code", [NOT_LOADED, MISMATCH, 4, 999])
@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_refusal_of_nvml_is_an_error(root: Path, function: str, code: int) -> None:
    """Then there is no answer, and somebody else has to be asked."""
    found = ask(root, FakeGpu(0), extra=(f"fail {function} {code}",))
    assert (found.gpus, found.warnings) == ((), ())
    assert found.error


def test_library_without_functions_is_an_error_or_has_no_mig(root: Path) -> None:
    """One from before MIG knows no such devices; one without the first of them is of no use."""
    old = ask(root, FakeGpu(0, mig=1), variant="OLD")
    assert old == Answer((seen(FakeGpu(0)),))
    assert "Function Not Found" in ask(root, FakeGpu(0), variant="BARE").error


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF" + bytes(60)])
def test_broken_library_is_named(root: Path, content: bytes) -> None:
    """A file of the name that cannot be loaded; it is named, and not its descriptor."""
    path = root / "libnvidia-ml.so.1"
    path.write_bytes(content)
    assert ask_file(path).error.startswith(f"it cannot be loaded ({path}: ")


@pytest.mark.parametrize("uuid", ["-", "GPU-?", "..", "GPU-\x01"])
def test_uuid_that_no_runtime_takes_counts_as_none(root: Path, uuid: str) -> None:
    """A name that no runtime takes would take the whole file along."""
    (gpu,) = ask(root, FakeGpu(0, uuid=uuid)).gpus
    assert gpu.uuid == ""


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetMigMode"])
def test_crash_is_an_error_message(root: Path, function: str) -> None:
    """And no core file is left; our own process goes on."""
    path = place(root, [FakeGpu(0)], (f"abort {function}",))
    with pytest.raises(DriverFailed, match=r"^cannot ask the NVIDIA driver: .*SIGABRT") as found:
        ask_file(path)
    assert str(path) in found.value.message
    assert found.value.exit_code == 3
    assert [name for name in os.listdir("/") if name.startswith("core")] == []


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetUUID"])
def test_library_that_never_answers_is_killed(root: Path, function: str) -> None:
    """It is killed at its deadline, and nothing of it lives on."""
    path = place(root, [FakeGpu(0)], (f"hang {function}",))
    with pytest.raises(DriverFailed, match=r"^cannot ask the NVIDIA driver: .* in 1 s"):
        ask_file(path, timeout=1)
    assert not users(path)


def users(path: Path) -> list[str]:
    """Processes whose command line names a file."""
    found = []
    for entry in os.listdir("/proc"):
        if re.fullmatch(r"\d+", entry):
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(path) in words:
                found.append(entry)
    return found
