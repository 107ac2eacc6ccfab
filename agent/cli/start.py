"""The beginning and the end of the process that a command is.

Invariant: what becomes of the standard streams is in no command's way. One that is closed is
`/dev/null`, and one that cannot be written (a full disk, a reader that left) is told in the exit
code, for what the command did is done.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from agent.errors import reason

_BROKEN_PIPE = 141  # as a shell says it
_NOT_TOLD = 1  # for who takes the output for an answer, there is none


def run_and_end(command: Callable[[], int]) -> NoReturn:
    """Run a command that gives its exit code, and end, without what only costs time in a process
    that is about to end: looking for garbage, and taking an interpreter with gRPC in it apart."""
    gc.set_threshold(100_000)
    _open_streams()
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        code = _BROKEN_PIPE
    except OSError as error:
        # Only a stream has no name: all else that the kernel can refuse is told where it is asked.
        if error.filename is not None:
            raise
        code = _NOT_TOLD
        with contextlib.suppress(OSError):
            sys.stderr.write(f"cannot write the output: {reason(error)}\n")
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _open_streams() -> None:
    """What is opened later must not get the number of a stream that is closed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.close(number)
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115 - for good
