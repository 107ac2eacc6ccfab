"""The GPUs of a node, as the driver's own library tells them.

Invariant: that library is loaded in a child process only, with a deadline. Whatever it does there,
the most that comes of it is a DriverFailed, or a reason for which others have to be asked.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import DriverFailed
from agent.host import budget

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# As in agent.daemon.start: what we are is found where it is, and the working directory is not.
_CHILD = (
    "import sys; sys.path.append(sys.argv.pop(1)); from agent.cdi.driver.nvml import main; main()"
)
TIMEOUT = 60.0  # seconds; eight GPUs without nvidia-persistenced have taken twenty

# Models that drive a display, and are no GPUs to compute with.
NO_GPUS = frozenset(("DGX Display", "NVIDIA DGX Display"))
UNLOADABLE = "it cannot be loaded"  # how an error starts where the library is of no use at all
# What is in the names of GPUs that are part of a Tegra (go-nvlib, pkg/nvlib/info).
INTEGRATED = ("(nvgpu)", "NVIDIA Thor")


@dataclass(frozen=True, slots=True)
class Mig:
    """A MIG device: its index on its GPU, and its instances. `graphics`: it can draw too."""

    index: int
    uuid: str
    gpu_instance: int
    compute_instance: int
    graphics: bool = False


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU; `uuid` is "" where nobody knows it, `bus` its PCI address, "" where it is on no such
    bus. With `mig` only its `instances` can be used. `model` is what NVML calls it."""

    index: int
    uuid: str
    minor: int
    bus: str
    mig: bool = False
    instances: tuple[Mig, ...] = ()
    model: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """GPUs, and in words what is wrong with others; with an `error` there was no answer. `cuda` is
    the newest version of CUDA that the driver knows (13.1 is 13010), 0 where it does not say."""

    gpus: tuple[Gpu, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    cuda: int = 0


@dataclass(frozen=True, slots=True)
class Library:
    """The driver's NVML: its agent path, for words, and the descriptor of the file to load."""

    name: str
    fd: int


def ask(
    library: Library, timeout: float = TIMEOUT, clock: Callable[[], float] = time.monotonic
) -> Answer:
    """Ask a libnvidia-ml. Raises DriverFailed where it crashes or hangs."""
    reader, writer = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, _ROOT, library.name, str(library.fd), str(writer),
             str(timeout)],
            pass_fds=(library.fd, writer), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
    except OSError as error:
        os.close(reader)
        raise DriverFailed(f"cannot start {sys.executable}: {os.strerror(error.errno or 0)}") from (
            error
        )
    finally:
        os.close(writer)
    try:
        data = _read(reader, clock() + timeout, clock)
        if data is None:
            child.kill()
    finally:
        os.close(reader)
        code = _end(child)
    if data is None:
        raise DriverFailed(
            f"cannot ask the NVIDIA driver: {library.name} gave no answer in {timeout:g} s; look "
            "at the kernel's log for Xid or NVRM, and restart the node if the driver hangs"
        )
    answer = _parsed(data)
    if answer is None and code is not None and code < 0:
        raise DriverFailed(
            f"cannot ask the NVIDIA driver: {library.name} crashed ({_signal(-code)}); reinstall "
            "the driver, and look at the kernel's log"
        )
    return answer or Answer(error=f"the process that asks it ended with {code}")


def _read(reader: int, deadline: float, clock: Callable[[], float]) -> bytes | None:
    """All that comes until the other end is closed; None past the deadline."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while (left := deadline - clock()) > 0:
        if not poll.poll(left * 1000):
            continue
        part = os.read(reader, 65536)
        parts.append(part)
        if not part or sum(map(len, parts)) > budget.CHILD.size:
            return b"".join(parts)
    return None


def _end(child: subprocess.Popen[bytes]) -> int | None:
    """The child's exit code. It has nothing to do any more; None where even SIGKILL has to wait
    for the driver."""
    for limit in (1.0, 5.0):
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            child.kill()
    return None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the nameless ones
        return f"signal {number}"


def _parsed(data: bytes) -> Answer | None:
    """What the child wrote; None where that is not all of it."""
    try:
        return _answer(budget.json_value(data, budget.CHILD))
    except (ValueError, KeyError, TypeError):
        return None


def _answer(found: dict[str, Any]) -> Answer:
    if "error" in found:
        return Answer(error=str(found["error"]))
    return parsed(
        found["gpus"],
        [f"{name} is not in the CDI spec: {why}" for name, why in found["lost"]],
        found["cuda"],
    )


def parsed(gpus: Sequence[dict[str, Any]], warnings: Sequence[str], cuda: int = 0) -> Answer:
    """An answer from plain data. Raises KeyError or TypeError where it is none."""
    return Answer(
        tuple(
            Gpu(
                gpu["index"], gpu["uuid"], gpu["minor"], gpu["bus"], gpu["mig"],
                tuple(Mig(**part) for part in gpu["instances"]), gpu["model"],
            )
            for gpu in gpus
        ),
        tuple(map(str, warnings)),
        cuda=cuda,
    )  # fmt: skip
