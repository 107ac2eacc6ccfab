"""The beginning and the end of a command's process.

Invariant: no command fails because of a standard stream. A closed stream becomes `/dev/null`. A
stream that cannot be written (a full disk, a reader that has ended) changes only the exit code,
because the work of the command is done.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from agent.errors import reason

_BROKEN_PIPE = 141  # a shell's exit code for SIGPIPE
_NO_OUTPUT = 1  # so that a program that reads the output does not take it for complete


def run_and_end(command: Callable[[], int]) -> NoReturn:
    """Run a command, and end the process with the exit code that it returns.

    The garbage collector runs rarely and the interpreter is not finalized, because both only cost
    time in a process that ends soon.
    """
    gc.set_threshold(100_000)
    _open_streams()
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        code = _BROKEN_PIPE
    except OSError as error:
        # Only an error of a standard stream has no file name. Any other one is a defect here.
        if error.filename is not None:
            raise
        code = _NO_OUTPUT
        with contextlib.suppress(OSError):
            sys.stderr.write(f"cannot write the output: {reason(error)}\n")
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _open_streams() -> None:
    """Open each closed stream as /dev/null, so that no other file gets its number later."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.close(number)
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115 - for good
