"""The GPUs of a node, as the driver's own library NVML lists them.

Invariant: NVML is loaded in a child process only (`nvml_child`), with a deadline. Whatever the
library does, the result is an answer, an error in words, or DriverFailed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.errors import DriverFailed, Refused
from agent.host import budget, own_process

if TYPE_CHECKING:
    from agent.cdi.driver.root import DriverRoot

TIMEOUT = 60.0  # seconds; eight GPUs without nvidia-persistenced took twenty

# Models that drive a display, and cannot compute.
NO_GPUS = frozenset(("DGX Display", "NVIDIA DGX Display"))
UNLOADABLE = "it cannot be loaded"  # begins the error if the library cannot be used at all
# Parts of the model names of a Tegra's integrated GPUs (go-nvlib, pkg/nvlib/info).
_INTEGRATED = ("(nvgpu)", "NVIDIA Thor")


@dataclass(frozen=True)
class Mig:
    """A MIG device. `index` counts the MIG devices of its GPU; `gpu_instance` and
    `compute_instance` are the kernel's ids. `graphics`: it can render as well."""

    index: int
    uuid: str
    gpu_instance: int
    compute_instance: int
    graphics: bool = False


@dataclass(frozen=True)
class Gpu:
    """A GPU. `uuid` is "" if it is unknown; `minor` is the number in /dev/nvidiaN; `bus` is the PCI
    address, "" if the GPU is not on a PCI bus. With `mig`, only its `instances` can be used.
    `model` is its name in NVML."""

    index: int
    uuid: str
    minor: int
    bus: str
    mig: bool = False
    instances: tuple[Mig, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class Answer:
    """The GPUs, and a warning for each GPU that cannot be used. `error` says why there is no
    answer. `cuda` is the newest version of CUDA that the driver supports (13010 is 13.1), 0 if it
    is unknown."""

    gpus: tuple[Gpu, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    cuda: int = 0


@dataclass(frozen=True)
class Library:
    """The driver's NVML: `name` is its agent path, for messages; `fd` is the descriptor of the file
    to load."""

    name: str
    fd: int


# Asks the driver's NVML for the GPUs. May raise DriverFailed.
AskNvml = Callable[[Library], Answer]


def is_integrated_model(model: str) -> bool:
    """Does this model name belong to a GPU that is part of a Tegra?"""
    return any(word in model for word in _INTEGRATED)


def ask(library: Library, timeout: float = TIMEOUT) -> Answer:
    """The GPUs that NVML lists, from a child process that gets `timeout` seconds. Raises
    DriverFailed if the library crashes or hangs, or if no child can be started."""
    reader, writer = os.pipe()
    try:
        child = subprocess.Popen(
            [*own_process.command("agent.cdi.driver.nvml_child"), library.name, str(library.fd),
             str(writer), str(timeout)],
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
        data = _read(reader, time.monotonic() + timeout)
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
        names = {known.value: known.name for known in signal.Signals}
        raise DriverFailed(
            f"cannot ask the NVIDIA driver: {library.name} crashed "
            f"({names.get(-code, f'signal {-code}')}); reinstall the driver, and look at the "
            "kernel's log"
        )
    return answer or Answer(error=f"the process that asks it ended with {code}")


def ask_in(root: DriverRoot, path: str, how: AskNvml | None = None) -> Answer:
    """As `ask` for the NVML at a path in a driver root, after a check that root alone can change
    the file. The file that was checked is the one that is loaded. `how` replaces `ask`. Raises
    DriverFailed."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(root.opened(path, os.O_RDONLY))
        except (OSError, Refused) as error:
            return Answer(error=f"{UNLOADABLE}: {path} cannot be opened ({error})")
        if file.distrust:
            why = f"others than root can change it: {file.distrust}"
            return Answer(error=f"{UNLOADABLE}: {why}")
        return (how or ask)(Library(file.path.agent, file.fd))


def _read(reader: int, deadline: float) -> bytes | None:
    """All data up to the end of the pipe; None if the deadline passes first."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not poll.poll(left * 1000):
            continue
        part = os.read(reader, 65536)
        parts.append(part)
        if not part or sum(map(len, parts)) > budget.CHILD.size:
            return b"".join(parts)
    return None


def _end(child: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a child that has finished its work; None if the child does not even end by
    SIGKILL, because it waits in the driver."""
    for limit in (1.0, 5.0):
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            child.kill()
    return None


def _parsed(data: bytes) -> Answer | None:
    """The answer that the child wrote; None if the answer is not complete."""
    try:
        found = budget.json_value(data, budget.CHILD)
        if "error" in found:
            return Answer(error=str(found["error"]))
        lost = [f"{name} is not in the CDI spec: {why}" for name, why in found["lost"]]
        return parsed(found["gpus"], lost, found["cuda"])
    except (ValueError, KeyError, TypeError):
        return None


def parsed(gpus: Sequence[dict[str, Any]], warnings: Sequence[str], cuda: int = 0) -> Answer:
    """An answer from plain data: mappings with the fields of Gpu and Mig. Raises KeyError or
    TypeError if the data has another shape."""
    return Answer(
        tuple(
            Gpu(**{**gpu, "instances": tuple(Mig(**part) for part in gpu["instances"])})
            for gpu in gpus
        ),
        tuple(map(str, warnings)),
        cuda=cuda,
    )
