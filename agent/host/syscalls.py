"""System calls that Python has no function for.

Invariant: a call that the kernel, a filter or this machine does not know is an OSError like any
other, ENOSYS or EPERM.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping

# By machine, as `uname -m` calls it.
OPENAT2: Mapping[str, int] = {"x86_64": 437, "aarch64": 437}
RENAMEAT2: Mapping[str, int] = {"x86_64": 316, "aarch64": 276}


def call(numbers: Mapping[str, int], *arguments: int | bytes) -> int:
    """Make the call of that number; gives what it returns. Raises OSError without a path."""
    number = numbers.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    done, code = _libc()(number, *arguments)
    if done < 0:
        raise OSError(code, os.strerror(code))
    return done


@functools.cache
def _libc() -> Callable[..., tuple[int, int]]:
    """What makes calls; gives the result and the error's number."""
    import ctypes  # here, for it is slow

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def syscall(*arguments: int | bytes) -> tuple[int, int]:
        words = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
        return libc.syscall(*words), ctypes.get_errno()

    return syscall
