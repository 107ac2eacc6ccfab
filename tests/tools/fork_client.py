"""Ask the fork server for a process; see `fork_server.py`.

The scripted programs (`tests/doubles/runtime/install.py`) import this file before site packages,
thousands of times. So it imports only a few cheap modules of the standard library.
"""

from __future__ import annotations

import array
import marshal
import os
import signal
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket

_ANSWER_SIZE = 64  # bytes; an answer is a pid, or an exit code as Popen says it


def request_process(
    address: str,
    code: str,
    argv: list[str],
    env: dict[str, str],
    directory: str,
    descriptors: dict[int, int],
    *,
    interpreter: int = 1,
    mounts: int | None = None,
    session: bool = False,
) -> int:
    """Start a process that runs `code`, Python text, as its main module.

    argv: its command line; the first `interpreter` words are not in its `sys.argv`.
    descriptors: all that it has open, by the numbers that they have there; 0 to 2 are its streams.
    mounts: a descriptor of the mount namespace that it is to enter.
    session: whether it leads a session of its own.
    Gives the descriptor of a connection, on which the pid and, later, the exit code arrive; the
    process is killed when it is closed. Raises OSError where there is no server.
    """
    request = {
        "code": code,
        "argv": argv,
        "interpreter": interpreter,
        "env": env,
        "directory": directory,
        "descriptors": list(descriptors),
        "mounts": mounts is not None,
        "session": session,
    }
    sent = list(descriptors.values())
    if mounts is not None:
        sent.append(mounts)
    server = socket(AF_UNIX, SOCK_SEQPACKET)
    try:
        server.connect(address)
        rights = array.array("i", sent)
        server.sendmsg([marshal.dumps(request)], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    except BaseException:
        server.close()
        raise
    return server.detach()


def receive(connection: int) -> int:
    """The next number that the server says: first the pid, then the exit code."""
    answer = os.read(connection, _ANSWER_SIZE)
    if not answer:
        raise ConnectionResetError("cannot go on: the fork server has ended")
    return int(answer)


def become(address: str, code: str) -> None:
    """Let a process of the server do `code` in the place of this one, and end as it ends.

    Returns where there is no server.
    """
    argv, env = [sys.executable, *sys.argv], dict(os.environ)
    opened = {number: number for number in _descriptors()}
    try:
        connection = request_process(
            address, code, argv, env, os.getcwd(), opened, mounts=_own_mounts()
        )
    except OSError:
        return
    receive(connection)
    status = receive(connection)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


def _own_mounts() -> int | None:
    """The mount namespace of this process; None where the server may not enter one."""
    return os.open("/proc/self/ns/mnt", os.O_RDONLY) if os.geteuid() == 0 else None


def _descriptors() -> list[int]:
    """All that this process has open."""
    listed = os.listdir("/proc/self/fd")  # the last one is the listing's own
    return [int(name) for name in listed if os.path.exists(f"/proc/self/fd/{name}")]
