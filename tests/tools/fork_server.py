"""A process that has imported the programs of the tests once, and forks for each run of one.

The tests start the program under test, and scripted runtimes, thousands of times; most of such a
run is Python importing gRPC. A forked process is like an executed one in all that tests look at: it
has the given command line (also in /proc), environment, directory, descriptors and mount namespace,
default signals, and ends with an exit code or by a signal. It differs in three ways: its modules
are already imported, its parent is the server, and it waits for no disk. Tests of imports or of the
interpreter need the real executable.

    python -m tests.tools.fork_server LISTENER LIFELINE

LISTENER is the descriptor of a listening socket, LIFELINE that of a pipe; the server exits when the
pipe is closed. When a client disconnects, its process is killed.
Invariant: the server has one thread, so that no forked process inherits a lock that is held.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import importlib
import marshal
import os
import pkgutil
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn, TextIO

from tests.tools import disk

_DOUBLES = ("runtime", "containerd", "crio", "systemd")
_PACKAGES = ("agent", *(f"tests.doubles.{name}" for name in _DOUBLES))
_MODULES = ("tests.conformance.steps", "yaml", "tomlkit", "structlog", "jeepney.io.blocking")
# Modules that run a program when they are imported.
_NOT_IMPORTED = frozenset({"agent.__main__"})
_MAX_REQUEST = 1 << 20  # bytes of a request
_MAX_DESCRIPTORS = 64

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_MM, _PR_SET_MM_MAP = 1, 35, 14
_CLONE_NEWNS = 0x20000
# What prctl(2) wants to know of PR_SET_MM_MAP, in its order, by the fields of /proc/self/stat.
_MAP_FIELDS = (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51)


@dataclass
class _Child:
    """A process of a client."""

    pid: int
    pidfd: int
    client: socket.socket


class Server:
    """Forks, and tells clients how their processes ended, until its starter is gone."""

    def __init__(self, listener: socket.socket, lifeline: int) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(lifeline, selectors.EVENT_READ, self._end)
        self._children: dict[int, _Child] = {}  # by the descriptor of the client

    def serve(self) -> NoReturn:
        """Serve until the lifeline is closed."""
        while True:
            for key, _ in self._selector.select():
                key.data(key.fd)

    def _end(self, _: int) -> NoReturn:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
        os._exit(0)

    def _accept(self, _: int) -> None:
        client, _address = self._listener.accept()
        try:
            data, descriptors = _receive(client)
            request = marshal.loads(data)  # noqa: S302 - the socket is this user's alone
        except (OSError, EOFError, ValueError):
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            self._forget()
            _run(request, descriptors)
        for number in descriptors:
            os.close(number)
        child = _Child(pid, os.pidfd_open(pid), client)
        self._children[client.fileno()] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda _: self._ended(child))
        self._selector.register(client, selectors.EVENT_READ, lambda _: self._gone(child))
        _say(client, pid)

    def _ended(self, child: _Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        self._selector.unregister(child.pidfd)
        with contextlib.suppress(KeyError):  # its client may be gone
            self._selector.unregister(child.client)
        del self._children[child.client.fileno()]
        os.close(child.pidfd)
        _say(child.client, os.waitstatus_to_exitcode(status))
        child.client.close()

    def _gone(self, child: _Child) -> None:
        os.kill(child.pid, signal.SIGKILL)
        self._selector.unregister(child.client)

    def _forget(self) -> None:
        """In a child: drop the server's sockets without closing them."""
        self._selector.close()
        self._listener.detach()
        for child in self._children.values():
            child.client.detach()


def _receive(client: socket.socket) -> tuple[bytes, list[int]]:
    """A request and its descriptors, which no program inherits."""
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    data, messages, _, _ = client.recvmsg(_MAX_REQUEST, space, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for _, _, rights in messages:
        numbers.frombytes(rights)
    return data, list(numbers)


def _say(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.send(str(number).encode("ascii"))


def _run(request: Mapping[str, Any], descriptors: list[int]) -> NoReturn:
    """In a child: become what is asked for."""
    code = 1
    try:
        _prepare(request, descriptors)
        code = _exit_code(request["code"])
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # as an interpreter ends
    except BaseException:  # noqa: BLE001 - as an interpreter does with what nobody caught
        traceback.print_exc()
    finally:
        os._exit(code)


def _prepare(request: Mapping[str, Any], descriptors: list[int]) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if request["session"]:
        os.setsid()
    show(request["argv"], request["env"])  # there need be no such process in the /proc to come
    if request["mounts"] and _LIBC.setns(descriptors.pop(), _CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the mount namespace")
    _take_descriptors(request["descriptors"], descriptors)
    os.chdir(request["directory"])
    environment = request["env"]
    os.environ.clear()
    os.environ.update(environment)
    if not environment.keys() & {"LC_ALL", "LC_CTYPE", "LANG"}:
        os.environ["LC_CTYPE"] = "C.UTF-8"  # as an interpreter does (PEP 538)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    argv = request["argv"]
    sys.orig_argv[:] = argv
    sys.argv[:] = argv[request["interpreter"] :]


def _take_descriptors(numbers: list[int], received: list[int]) -> None:
    """Give the received descriptors these numbers, and close all others."""
    free = max((*numbers, *received), default=0) + 1
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, free) for number in received]
    for number, source in zip(numbers, moved, strict=True):
        os.dup2(source, number)
    end = os.sysconf("SC_OPEN_MAX")
    for number in sorted({0, 1, 2}.difference(numbers)):
        os.close(number)
    kept = sorted(number for number in numbers if number > 2)
    for number, following in zip([2, *kept], [*kept, end], strict=True):
        os.closerange(number + 1, following)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _open_stream(number) if number in numbers else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _open_stream(number: int) -> TextIO:
    """A standard stream, as an interpreter opens it in the locale C.UTF-8."""
    errors = "backslashreplace" if number == 2 else "surrogateescape"
    buffering = 1 if number == 2 else -1
    return open(number, "w" if number else "r", buffering, "utf-8", errors, closefd=False)


def _exit_code(code: str) -> int:
    """Run the text as the main module; gives what the interpreter would end with."""
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(code, "<forked>", "exec"), main.__dict__)  # noqa: S102 - that is the request
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    return 0


def show(argv: list[str], env: Mapping[str, str]) -> None:
    """Make /proc/self/cmdline and environ say these. Raises OSError where the kernel does not let
    us."""
    global _shown  # noqa: PLW0603 - the kernel reads this memory as long as we live
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    data = words + b"".join(os.fsencode(f"{name}={env[name]}") + b"\0" for name in env)
    _shown = ctypes.create_string_buffer(data, len(data) + 1)
    with open("/proc/self/stat", "rb") as file:
        fields = [b"0", b"0", *file.read().rpartition(b")")[2].split()]
    start = ctypes.addressof(_shown)
    _LIBC.sbrk.restype = ctypes.c_void_p
    values = [int(fields[number - 1]) for number in _MAP_FIELDS]
    values[5] = _LIBC.sbrk(0)
    middle = start + len(words)
    values[7:11] = [start, middle, middle, start + len(data)]
    told = (ctypes.c_uint64 * 13)(*values, 0, 0xFFFFFFFF << 32)  # no auxv; no other executable
    if _LIBC.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(told), ctypes.sizeof(told), 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot set the command line of a process")


_shown: ctypes.Array[ctypes.c_char]


def _import_all() -> None:
    gc.disable()  # nearly all of it stays
    for name in _MODULES:
        importlib.import_module(name)
    for name in _PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name not in _NOT_IMPORTED:
                importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # no collection writes to pages that are shared
    gc.enable()


def main() -> NoReturn:
    """Serve on the descriptors of the command line."""
    listener, lifeline = map(int, sys.argv[1:3])
    disk.never_wait()
    _import_all()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Server(socket.socket(fileno=listener), lifeline).serve()


if __name__ == "__main__":
    main()
