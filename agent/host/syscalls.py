"""System calls for which Python has no function.

Invariant: a call that the kernel does not have, or that a filter refuses, is an OSError (ENOSYS or
EPERM).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping

# The number of the call by machine (`uname -m`).
RENAMEAT2: Mapping[str, int] = {"x86_64": 316, "aarch64": 276}


def call(numbers: Mapping[str, int], *arguments: int | bytes) -> int:
    """Make a system call and return its result. `numbers` has the number of the call by machine.
    Raises OSError."""
    number = numbers.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    done, code = _libc()(number, *arguments)
    if done < 0:
        raise OSError(code, os.strerror(code))
    return done


@functools.cache
def _libc() -> Callable[..., tuple[int, int]]:
    """A function that makes a system call and returns its result and errno."""
    import ctypes  # here, because the import is slow

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def syscall(*arguments: int | bytes) -> tuple[int, int]:
        words = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
        return libc.syscall(*words), ctypes.get_errno()

    return syscall
