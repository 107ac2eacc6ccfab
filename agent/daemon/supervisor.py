"""The waiting process of `run`: it watches paths, and a child process converges the node.

Invariant: this module imports only os, sys, signal, time and errno, so that waiting needs little
memory and time. If a watched path changed during a convergence, another one follows, so that no
change is lost. If a child is killed or crashes, readiness is withdrawn, because the node is not
proven.

`start.py` takes the lock, blocks the signals, and executes this file:

    supervisor.py INTERVAL DEADLINE PIDFILE READYFILE REQUEST READY TWIN ARGV...

    INTERVAL    seconds between two convergences if nothing changes
    DEADLINE    seconds after which a child is killed
    PIDFILE     DESCRIPTOR:PATH of the pid file, which is removed at the end; or empty
    READYFILE   the ready file (see `Readiness`); or empty
    REQUEST     the file with which a `revert` asks for the lock (`agent.transaction.stand_aside`)
    READY TWIN  the status files, in the order in which they are withdrawn
    ARGV        the command line of a child

The protocol with a child:

    --watch-fd=N  added to ARGV. The child writes its report to this pipe: the reason why the node
                  is not ready ("" if it is), then the entries to watch (see `signature`); each
                  part ends with NUL.
    --refresh     added if the child must ask again for answers that no file shows, such as NVML's.
    --barrier     added if this process withdrew READY, so that the child writes it again.
    SIGTERM       tells the child to end. It finishes or undoes a change in progress first.
    exit code     one of `FINISHED` if the child completed its work, and withdrew readiness itself
                  if that was needed. ASIDE: it has released the lock to a `revert`, for good.
"""

import errno
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
POLL = 0.5  # seconds between two comparisons of the watched paths
IN_A_ROW = 10  # convergences in a row with changes meanwhile, before pauses become longer
DEVICE_WEIGHT = 0.1  # a changed device counts less, because splitting eight GPUs takes a minute
LONGEST_PAUSE = 60.0  # seconds; the longest back-off
USAGE = 2  # exit code of a child that will never succeed
NOT_YET = 75  # exit code of a child that did not fail, on a node that is not ready
ASIDE = 76  # exit code of a child that found the node reverted
FINISHED = frozenset((0, 2, 3, 4, 5, 6, 7, NOT_YET, ASIDE))
_NOT_STARTED = 127
_MOST_COUNTED = 1_000  # names of a directory that are watched
_MOST_NAMES = 10_000  # names of a directory that are read
_MOST_LISTED = 1 << 20  # bytes of a report

_TYPE, _LINK = 0o170000, 0o120000


def signature(entry: bytes) -> object:
    """A value that changes when a watched entry changes; None if the path does not exist.

    /PATH               a file or directory and, for a link, also its target
    =/PATH              type, owner and identity of a path, not its content: for /tmp and the like
    PREFIX*/DIRECTORY   the names in a directory that start with the prefix (device nodes)
    !PREFIX*/DIRECTORY  the files in a directory whose names do not
    @SECONDS            whether this time of the monotonic clock has come
    """
    if entry.startswith(b"@"):
        return time.monotonic() >= float(entry[1:])
    try:
        if entry.startswith(b"="):
            own = os.lstat(entry[1:])
            return own.st_mode, own.st_ino, own.st_dev, own.st_rdev, own.st_uid, own.st_gid
        if entry.startswith(b"/"):
            own = os.lstat(entry)
            is_link = own.st_mode & _TYPE == _LINK
            return (_facts(own), _facts(os.stat(entry))) if is_link else _facts(own)
        others = entry.startswith(b"!")
        prefix, _, directory = entry.removeprefix(b"!").partition(b"*")
        names = _names(directory, entry, lambda name: name.startswith(prefix) != others)
        if isinstance(names, int):
            return names
        look = signature if others else _device
        return [(name, look(directory + b"/" + name)) for name in names]
    except OSError as error:
        return None if error.errno in (errno.ENOENT, errno.ENOTDIR) else error.errno


def _facts(status: os.stat_result) -> object:
    return (
        status.st_mode, status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns,
        status.st_ctime_ns, status.st_rdev, status.st_uid, status.st_gid,
    )  # fmt: skip


def _device(path: bytes) -> object:
    """The signature of a device node: numbers, mode and owner. For a file in /proc, also its time,
    because the kernel replaces such a file under the same name."""
    status = os.lstat(path)
    moment = 0 if status.st_rdev else status.st_ctime_ns
    return status.st_rdev, status.st_mode, status.st_uid, status.st_gid, moment


# A cache: the names of an entry, with the modification time of the directory at that moment.
_listed: "dict[bytes, tuple[int, list[bytes] | None]]" = {}


def _names(
    directory: bytes, entry: bytes, counts: "Callable[[bytes], bool]"
) -> "list[bytes] | int":
    """The names in a directory for which `counts` is true; the modification time of the directory
    if there are too many names. Raises OSError.

    The time of /dev alone is not enough, because it changes with every terminal. In /proc and /sys,
    whose directories have no size, the time never changes, so these are read each time.
    """
    status = os.stat(directory)
    moment = status.st_mtime_ns
    known = _listed.get(entry)
    if known is None or known[0] != moment or not status.st_size:
        known = moment, _read_names(directory, counts)
        # A second change within the same tick of the clock would not show in the time.
        if time.time_ns() - moment > 10**9:
            _listed[entry] = known
    return moment if known[1] is None else known[1]


def _read_names(directory: bytes, counts: "Callable[[bytes], bool]") -> "list[bytes] | None":
    """The names for which `counts` is true, None if there are too many. Raises OSError."""
    names = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if counts(entry.name):
                names.append(entry.name)
            if number >= _MOST_NAMES or len(names) > _MOST_COUNTED:
                return None
    return sorted(names)


def signatures(entries: "Iterable[bytes]") -> dict[bytes, object]:
    """The signature of every entry."""
    return {entry: signature(entry) for entry in entries}


def _devices(seen: "dict[bytes, object]") -> "dict[bytes, object]":
    """The signatures of entries with names in a directory: devices and MIG capabilities."""
    return {entry: value for entry, value in seen.items() if entry[:1] not in b"/!=@"}


def backoff(times: float) -> float:
    """The pause in seconds after `times` failures or changes in a row: 1, 2, 4, … 60."""
    return min(LONGEST_PAUSE, float(2.0 ** min(times - 1, 10)))


def jittered(interval: float) -> float:
    """The interval, up to 10 % longer or shorter, because the nodes of a cluster start together."""
    return interval * (0.9 + 0.2 * os.urandom(1)[0] / 255)


class Requests:
    """The requests to this process and its next child: `stop` (SIGTERM), `converge` now (SIGHUP, or
    a `revert` that asks for the lock), and `refresh` (see the protocol)."""

    def __init__(self) -> None:
        self.stop = False
        self.converge = False
        self.refresh = True


class Loop:
    """Converge, wait for a change, and converge again.

    `converge` returns an exit code and the entries to watch (None if the child reported none).
    `wait` waits for some seconds or until a signal, and notes the signal in `requests`. `look`
    returns the signatures of entries.
    """

    def __init__(
        self,
        converge: "Callable[[], tuple[int, tuple[bytes, ...] | None]]",
        wait: "Callable[[float], None]",
        requests: Requests,
    ) -> None:
        self.converge = converge
        self.wait = wait
        self.requests = requests
        self.clock = time.monotonic
        self.look = signatures
        self.code = 0
        self.seen: dict[bytes, object] = {}  # signatures after the last convergence
        self.changes = 0.0  # convergences in a row during which a watched path changed
        self.failures = 0  # convergences in a row that failed

    def run(self, interval: float) -> int:
        """Loop until a request to stop, and return the exit code of this process."""
        while True:
            self.converge_once()
            if self.code == USAGE:
                return USAGE
            if self.code == ASIDE:
                self.wait_for_stop()
            if not 0 < self.changes < IN_A_ROW:
                self.wait_for_change(self.pause(interval))
            if self.requests.stop:
                return 0

    def wait_for_stop(self) -> None:
        """Leave the node alone until a request to stop, and reap processes that end in this pod."""
        while not self.requests.stop:
            self.wait(LONGEST_PAUSE)

    def converge_once(self) -> None:
        """Converge once. An entry that is watched for the first time counts as changed, because its
        earlier state is not known."""
        self.requests.converge = False
        before = self.look(self.seen)
        code, listed = self.converge()
        if listed is None:
            listed = tuple(before)
        elif code != 0:  # a child that cannot read the node names fewer entries
            listed = tuple(dict.fromkeys((*listed, *before)))
        self.seen = self.look(listed)
        if self.seen == before:
            self.changes = 0.0
        else:
            self.changes += DEVICE_WEIGHT if _devices(self.seen) != _devices(before) else 1
        self.failures = self.failures + 1 if code not in (0, NOT_YET) else 0
        if code != self.code:
            log("waiting" if code else "right", "code", code, "info")
        self.code = code

    def pause(self, interval: float) -> float:
        """The seconds until the next convergence if nothing changes."""
        if self.changes:
            return backoff(self.changes - IN_A_ROW + 1)
        return backoff(self.failures) if self.failures else jittered(interval)

    def wait_for_change(self, seconds: float) -> None:
        """Wait for a request, for a change, or for the given seconds.

        If paths change all the time, only changed devices end the wait early; after twice as many
        changes, not even these.
        """
        end = self.clock() + seconds
        while not (self.requests.stop or self.requests.converge):
            left = end - self.clock()
            if left <= 0:
                self.requests.refresh |= not (self.changes or self.failures)
                return
            self.wait(min(left, POLL))
            seen = self.seen
            if self.changes:
                seen = _devices(seen) if self.changes < 2 * IN_A_ROW else {}
            if self.look(seen) != seen:
                self.failures = 0
                return


class ChildRunner:
    """Runs one child at a time, takes signals, and reaps every process that ends, because this
    process can be pid 1. Paths of an empty string stand for no file."""

    def __init__(
        self,
        argv: list[str],
        deadline: float,
        requests: Requests,
        readiness: "Readiness",
        revert_request: str = "",
        published: "Iterable[str]" = (),
    ) -> None:
        self.argv = argv
        self.deadline = deadline
        self.requests = requests
        self.readiness = readiness
        self.revert_request = revert_request
        self.answered: object = None  # the signature of the last request that was answered
        self.revert_waits = False  # a revert has asked since the last child was started
        self.published = tuple(published)  # the status files, the barrier first
        self.barrier = False  # we withdrew the barrier, and no child has written it again
        self.pid = 0
        self.ended: list[int] = []  # the wait status of the current child, once it has ended

    def wait(self, seconds: float) -> None:
        """Wait for a signal, for `seconds` at most, and note it in `requests`. At other times
        signals are blocked, so that none is lost."""
        self.answer_revert()
        received = signal.sigtimedwait(SIGNALS, seconds)
        if received is None:
            return
        if received.si_signo in (signal.SIGTERM, signal.SIGINT):
            self.requests.stop = True
        elif received.si_signo == signal.SIGHUP:
            self.requests.converge = self.requests.refresh = True
        self.reap()

    def answer_revert(self) -> None:
        """Answer a `revert` that asks for the lock. The next child releases it."""
        request = signature(os.fsencode(self.revert_request)) if self.revert_request else None
        if request == self.answered:
            return
        self.answered = request
        if request is None:
            return
        self.requests.converge = self.revert_waits = True
        try:
            _write(f"{self.revert_request}.answer", _identity_of_this_process())
        except OSError as error:
            log("revert not answered", "errno", error.errno or 0)

    def reap(self) -> None:
        """Reap every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.ended.append(status)

    def converge(self) -> tuple[int, tuple[bytes, ...] | None]:
        """Run one child to its end, and update the ready file. Returns the child's exit code and
        the entries to watch (None if it reported none).

        Readiness is withdrawn if the child did not finish, unless we told it to end.
        """
        code, reason, listed = self._run()
        self.readiness.update(code, reason)
        if code == 0:
            self.barrier = False
        elif code not in FINISHED and not (self.requests.stop or self.revert_waits):
            log("convergence not finished", "code", code)
            self.barrier |= withdraw(self.published)
        return code, listed

    def _run(self) -> tuple[int, bytes, tuple[bytes, ...] | None]:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        os.set_blocking(reader, False)
        argv = [*self.argv, f"--watch-fd={writer}"]
        argv += ["--refresh"] if self.requests.refresh else []
        argv += ["--barrier"] if self.barrier else []
        self.requests.refresh = False
        self.ended.clear()
        self.answer_revert()
        self.revert_waits = False
        try:
            self.pid = os.posix_spawn(
                argv[0], argv, os.environ, setpgroup=0, setsigmask=[],
                setsigdef=[*SIGNALS, signal.SIGPIPE],
            )  # fmt: skip
        except OSError as error:
            log("child not started", "errno", error.errno or 0)
            os.close(reader)
            return _NOT_STARTED, b"", None
        finally:
            os.close(writer)
        report = self._follow(reader)
        os.close(reader)
        code = os.waitstatus_to_exitcode(self.ended[0])
        reason, _, rest = report.partition(b"\0")
        listed = tuple(entry for entry in rest.split(b"\0") if entry)
        return code if code >= 0 else 128 - code, reason, listed or None

    def _follow(self, reader: int) -> bytes:
        """Read the child's report until the child has ended. After its deadline the child is
        killed, which is safe, because the next child reads its journal."""
        end, data, signalled = time.monotonic() + self.deadline, b"", False
        while not self.ended:
            if (self.requests.stop or self.revert_waits) and not signalled:
                os.kill(self.pid, signal.SIGTERM)
                signalled = True
            if time.monotonic() > end:
                log("child killed", "pid", self.pid)
                os.killpg(self.pid, signal.SIGKILL)
                end += LONGEST_PAUSE
            self.wait(POLL)
            self.reap()
            data = (data + _drain(reader))[:_MOST_LISTED]
        return (data + _drain(reader))[:_MOST_LISTED]


def _drain(reader: int) -> bytes:
    data = b""
    try:
        while part := os.read(reader, 1 << 16):
            data += part
    except BlockingIOError:
        pass
    return data


def withdraw(paths: "Iterable[str]") -> bool:
    """Remove status files in this order, up to the first that cannot be removed. Returns whether
    the first one existed. No part of a path may be a link, because links were followed at the
    start."""
    existed = []
    for path in paths:
        try:
            above, name = os.path.split(path)
            directory = _directory(above)
            try:
                os.unlink(name, dir_fd=directory)
                os.fsync(directory)
            finally:
                os.close(directory)
            existed.append(True)
        except FileNotFoundError:
            existed.append(False)
        except OSError as error:
            log("readiness not withdrawn", "errno", error.errno or 0)
            break
    return existed[:1] == [True]


def _directory(path: str) -> int:
    """Open a directory and return its descriptor. Raises OSError, also if a part of the path is a
    link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open("/", flags)
    for part in filter(None, path.split("/")):
        above = here
        try:
            here = os.open(part, flags, dir_fd=above)
        finally:
            os.close(above)
    return here


def log(event: str, key: str, number: int, level: str = "warning") -> None:
    """Write a line in the form of `agent.log`. If the log cannot be written, nothing happens."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'{{"{key}": {number}, "event": "{event}", "level": "{level}", "ts": "{moment}"}}\n'
    try:
        os.write(2, line.encode())
    except OSError:
        return


class Readiness:
    """The ready file, which exists while the last convergence of this process succeeded. If it does
    not exist, the file `PATH.reason` has the reason. With an empty path, there are no such files.

    The content is our pid and start time, so that a later process can check whether we still run.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reason = f"{path}.reason"

    def update(self, code: int, reason: bytes) -> None:
        """Update the files after a convergence that ended with this exit code and reason. An error,
        such as a full disk, is only logged."""
        if not self.path:
            return
        try:
            if code:
                self.set_not_ready(reason or b"cannot converge: exit code %d; see the log" % code)
            else:
                _write(self.path, _identity_of_this_process())
                _remove(self.reason)
        except OSError as error:
            log("readiness not told", "errno", error.errno or 0)

    def set_not_ready(self, reason: bytes) -> None:
        """Remove the ready file and write the reason. Raises OSError."""
        if self.path:
            _remove(self.path)
            _write(self.reason, reason[:1000].replace(b"\n", b" ") + b"\n")

    def remove(self) -> None:
        """Remove the ready file and the reason."""
        if self.path:
            for path in (self.path, self.reason):
                try:
                    _remove(path)
                except OSError as error:
                    log("readiness not told", "errno", error.errno or 0)

    def remove_stale(self) -> None:
        """Remove both files if their process no longer runs."""
        try:
            with open(self.path, "rb") as file:
                pid, start = file.read(100).split()
            living = start == _start(int(pid))
        except (OSError, ValueError):
            living = False
        if not living:
            self.remove()


def _start(pid: int) -> bytes:
    """The start time of a process, in clock ticks since boot. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19]


def _identity_of_this_process() -> bytes:
    """Our pid and start time, as a line. Raises OSError."""
    return b"%d %s\n" % (os.getpid(), _start(os.getpid()))


def _write(path: str, data: bytes) -> None:
    """Replace a file in one step. Raises OSError."""
    new = f"{path}.new"
    _remove(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(new, path)


def _remove(path: str) -> None:
    """Remove a file if it exists. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def remove_pid_file(fd: int, path: str) -> None:
    """Remove a pid file, if its name still stands for the file `fd` that we hold. The check and the
    removal use one descriptor of the directory, so that a renamed directory has no effect."""
    above, name = os.path.split(path)
    try:
        directory = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if os.path.samestat(status, os.fstat(fd)):
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError:
        return  # the next process takes the file over


def main() -> int:
    """Run with the arguments in the module's docstring, and return the exit code."""
    for number in SIGNALS:  # if SIGCHLD were ignored, no exit status could be read
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    interval, deadline, argv = float(sys.argv[1]), float(sys.argv[2]), sys.argv[8:]
    number_of, _, pid_file = sys.argv[3].partition(":")
    if pid_file:  # a child that outlives us must not hold it
        os.set_inheritable(int(number_of), False)
    requests = Requests()
    readiness = Readiness(sys.argv[4])
    runner = ChildRunner(argv, deadline, requests, readiness, sys.argv[5], sys.argv[6:8])
    try:
        code = Loop(runner.converge, runner.wait, requests).run(interval)
        log("stopped", "code", code, "info")
    finally:
        readiness.remove()
        if pid_file:
            remove_pid_file(int(number_of), pid_file)
    return code


if __name__ == "__main__":
    sys.exit(main())
