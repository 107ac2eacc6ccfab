"""The driver that Windows uses on WSL2. Microsoft's library libdxcore names it.

Invariant: the library is loaded in a child process only, with a deadline, and by the descriptor
that was judged. Its functions are called as in NVIDIA's generator (internal/dxcore v1.20).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import NoReturn

from agent.host import budget, own_process

_TIMEOUT = 30.0  # seconds
_MOST = 64  # adapters; all their paths fit into a pipe
_PATH = 260  # characters
_COMPUTE = 1  # adapters without a display as well
_DRIVER_VERSION, _REGISTRY, _STORE = 13, 48, 2
_WDDM = 2700  # the first version that WSL2 can use


@dataclass(frozen=True)
class Stores:
    """The directories of the drivers in use, in the order of GPUs; `error` says why there is no
    answer."""

    paths: tuple[str, ...] = ()
    error: str = ""


def ask(fd: int, timeout: float = _TIMEOUT) -> Stores:
    """The answer of the libdxcore behind the descriptor `fd`; `timeout` is in seconds. Never raises
    OSError."""
    words = [*own_process.command("agent.cdi.driver.dxcore"), str(fd)]
    try:
        done = subprocess.run(
            words, pass_fds=(fd,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd="/", timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Stores(error=f"it gives no answer in {timeout:g} s")
    except OSError as error:
        return Stores(error=f"{sys.executable} cannot be started ({os.strerror(error.errno or 0)})")
    try:
        answer = budget.json_value(done.stdout, budget.CHILD)
        return Stores(tuple(map(str, answer["stores"])), str(answer["error"]))
    except (ValueError, KeyError, TypeError):
        return Stores(error=f"the process that asks it ended with {done.returncode}")


class _Adapter(ctypes.Structure):
    _fields_ = (("handle", ctypes.c_uint), ("luid", ctypes.c_uint * 2), ("sources", ctypes.c_uint),
                ("present", ctypes.c_uint))  # fmt: skip


class _Adapters2(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint), ("adapters", ctypes.POINTER(_Adapter)))


class _Adapters3(ctypes.Structure):
    _fields_ = (("filter", ctypes.c_ulonglong), ("count", ctypes.c_uint),
                ("adapters", ctypes.POINTER(_Adapter)))  # fmt: skip


class _Output(ctypes.Union):
    _fields_ = (("word", ctypes.c_ulonglong), ("text", ctypes.c_wchar * (_PATH + 1)))


class _Registry(ctypes.Structure):
    _fields_ = (("query", ctypes.c_uint), ("flags", ctypes.c_uint),
                ("name", ctypes.c_wchar * _PATH), ("type", ctypes.c_uint),
                ("adapter", ctypes.c_uint), ("size", ctypes.c_uint), ("status", ctypes.c_uint),
                ("output", _Output))  # fmt: skip


class _Query(ctypes.Structure):
    _fields_ = (("adapter", ctypes.c_uint), ("type", ctypes.c_uint), ("data", ctypes.c_void_p),
                ("size", ctypes.c_uint))  # fmt: skip


# The size of _Registry without the text at its end. The first call gets the length of that text.
_EMPTY = _Registry.output.offset + ctypes.sizeof(ctypes.c_ulonglong)


def main() -> NoReturn:
    """The child process. Argument: the number of the library's descriptor. It ends without the
    cleanup of the library, which may crash."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.dup(1)  # the library may print to standard output
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    stores: list[str] = []
    error = ""
    try:
        library = ctypes.CDLL(f"/proc/self/fd/{sys.argv[1]}")
        found = (_store(library, adapter) for adapter in _adapters(library))
        stores = [path for path in dict.fromkeys(found) if path]
    except OSError as problem:
        error = f"it cannot be used ({problem})"
    except AttributeError:
        error = "it lacks the functions that name the driver"
    os.write(answer, json.dumps({"stores": stores, "error": error}).encode())
    os._exit(0)


def _adapters(library: ctypes.CDLL) -> list[int]:
    """Handles of adapters, from D3DKMTEnumAdapters3 if it exists and works, else from its
    predecessor."""
    for name, kind in (("D3DKMTEnumAdapters3", _Adapters3), ("D3DKMTEnumAdapters2", _Adapters2)):
        with contextlib.suppress(AttributeError):
            found = kind()
            if kind is _Adapters3:
                found.filter = _COMPUTE
            call = getattr(library, name)
            if call(ctypes.byref(found)):
                continue
            if found.count > _MOST:
                raise OSError(f"it lists {found.count} adapters")
            listed = (_Adapter * found.count)()
            found.adapters = listed
            if call(ctypes.byref(found)):
                continue
            return [adapter.handle for adapter in listed[: found.count]]
    raise OSError("it lists no adapters")


def _query(
    library: ctypes.CDLL, adapter: int, kind: int, data: ctypes._SimpleCData[int] | _Registry,
    size: int | None = None,
) -> int:  # fmt: skip
    """Call D3DKMTQueryAdapterInfo for a property of an adapter, and return its status; 0 is
    success."""
    query = _Query(adapter, kind, ctypes.addressof(data), size or ctypes.sizeof(data))
    return int(library.D3DKMTQueryAdapterInfo(ctypes.byref(query)))


def _store(library: ctypes.CDLL, adapter: int) -> str:
    """The directory of an adapter's driver; "" if WSL2 cannot use the adapter, or if the library
    does not name it."""
    version, found = ctypes.c_uint(0), _Registry(query=_STORE)
    if _query(library, adapter, _DRIVER_VERSION, version) or version.value < _WDDM:
        return ""
    if _query(library, adapter, _REGISTRY, found, _EMPTY):
        return ""
    length = found.size
    if length > _PATH * ctypes.sizeof(ctypes.c_wchar):
        return ""
    found = _Registry(query=_STORE, size=length)
    if _query(library, adapter, _REGISTRY, found, _EMPTY + length):
        return ""
    return str(found.output.text)
