"""The child process that loads the driver's library NVML and asks it for the GPUs.

Invariant: the only module that imports pynvml; only this process imports the module. The process
writes nothing but one JSON document to its pipe, and ends by its deadline.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import pynvml

from agent.cdi.driver.nvml import NO_GPUS, UNLOADABLE, is_integrated_model

_DOMAIN = re.compile(r"0000(?=[0-9a-f]{4}:)")  # NVML gives eight digits, the kernel four
_UUID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_GRAPHICS = tuple(
    number for name in ("1", "2", "3", "4")
    if (number := getattr(pynvml, f"NVML_GPU_INSTANCE_PROFILE_{name}_SLICE_GFX", None)) is not None
)  # fmt: skip
_UNKNOWN = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
T = TypeVar("T")
_EMPTY = (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT)


def main() -> NoReturn:
    """Arguments: the library's path, the descriptors of the library and of the pipe, and the
    deadline in seconds. The process ends without the library's own cleanup, because that may hang
    or crash."""
    library, fd, pipe, seconds = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4])
    for number in (fd, pipe):
        os.set_inheritable(number, False)  # the driver starts nvidia-modprobe
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds) + 5)  # in case the parent is gone and cannot kill us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = memoryview(json.dumps(_asked(library, fd)).encode())
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)


def _asked(library: str, fd: int) -> dict[str, Any]:
    path = f"/proc/self/fd/{fd}"
    gpus: list[dict[str, Any]] = []
    lost: list[tuple[str, str]] = []
    try:
        # The descriptor is that of the judged file; the path may lead to another file by now.
        pynvml.nvmlLib = ctypes.CDLL(path)
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                gpu = _gpu(index, lost)
            except pynvml.NVMLError as error:
                lost.append((f"GPU {index}", str(error)))
            else:
                gpus += [gpu] if gpu else []
    except OSError as error:
        return {"error": f"{UNLOADABLE} ({str(error).replace(path, library)})"}
    except pynvml.NVMLError as error:
        return {"error": str(error)}
    cuda = 0
    with contextlib.suppress(pynvml.NVMLError):
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
    return {"gpus": gpus, "lost": lost, "cuda": cuda}


def _gpu(index: int, lost: list[tuple[str, str]]) -> dict[str, Any] | None:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    model = _text(pynvml.nvmlDeviceGetName(handle))
    if model in NO_GPUS:
        return None
    integrated = is_integrated_model(model)
    mig = _has_mig(handle)
    return {
        "index": index,
        "uuid": _uuid(handle),
        "minor": _value_or(lambda: int(pynvml.nvmlDeviceGetMinorNumber(handle)), 0, integrated),
        "bus": _value_or(lambda: _bus(handle), "", integrated),
        "mig": mig,
        "model": model,
        "instances": _instances(index, handle, lost) if mig else [],
    }


def _bus(handle: Any) -> str:
    return _DOMAIN.sub("", _text(pynvml.nvmlDeviceGetPciInfo(handle).busId).lower(), count=1)


def _value_or(ask: Callable[[], T], otherwise: T, integrated: bool) -> T:
    """The value that NVML gives; `otherwise` for an integrated GPU, which has no PCI address and no
    minor number."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if integrated and error.value in _UNKNOWN:
            return otherwise
        raise


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _uuid(handle: Any) -> str:
    found = _text(pynvml.nvmlDeviceGetUUID(handle))
    return found if _UUID.fullmatch(found) else ""


def _has_mig(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError as error:
        if error.value in _UNKNOWN:
            return False
        raise


def _instances(index: int, gpu: Any, lost: list[tuple[str, str]]) -> list[dict[str, Any]]:
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
            instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
            found.append({
                "index": number,
                "uuid": _uuid(handle),
                "gpu_instance": instance,
                "compute_instance": pynvml.nvmlDeviceGetComputeInstanceId(handle),
                "graphics": _has_graphics(gpu, instance),
            })  # fmt: skip
        except pynvml.NVMLError as error:
            if error.value not in _EMPTY:
                lost.append((f"MIG device {index}:{number}", str(error)))
    return found


def _has_graphics(gpu: Any, instance: int) -> bool:
    """Has a GPU instance a profile with graphics? Older drivers have no such profile."""
    with contextlib.suppress(pynvml.NVMLError):
        handle = pynvml.nvmlDeviceGetGpuInstanceById(gpu, instance)
        profile = pynvml.nvmlGpuInstanceGetInfo(handle).profileId
        for number in _GRAPHICS:
            with contextlib.suppress(pynvml.NVMLError):
                if pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number).id == profile:
                    return True
    return False
