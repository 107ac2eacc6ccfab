"""The waiting process of `run`: it watches paths, and a child process converges the node.

Invariant: this module imports only os, sys, signal, time and errno, so that waiting costs next to
nothing. A convergence counts only if no watched path changed while it ran, so that no change is
lost. If a child cannot finish (it is killed, or crashes), readiness is withdrawn, because nobody
has proven the node.

`start.py` takes the lock, blocks the signals, and executes this file:

    supervisor.py INTERVAL DEADLINE PIDFILE READYFILE REQUEST READY TWIN ARGV...

    INTERVAL    seconds between two convergences if nothing changes
    DEADLINE    seconds after which a child is killed
    PIDFILE     DESCRIPTOR:PATH of the pid file, which goes with this process; or empty
    READYFILE   the ready file (see `Readiness`); or empty
    REQUEST     the file with which a `revert` asks for the lock (`agent.transaction.stand_aside`)
    READY TWIN  the status files, in the order in which they are withdrawn
    ARGV        the command line of a child

The protocol with a child:

    --watch-fd=N  added to ARGV. The child writes its report to this pipe: the reason why the node
                  is not ready ("" if it is), then the entries to watch (see `signature`); each
                  part ends with NUL.
    --refresh     added if an answer that leaves no trace in a file, such as NVML's, must not be
                  trusted any more.
    --barrier     added if this process withdrew READY, so that the child puts it back.
    SIGTERM       tells the child to end. It finishes or undoes a change in progress first.
    exit code     one of `FINISHED` if the child came to its end and withdrew what it had to.
                  With ASIDE it has released the lock to a `revert`, for good.
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
POLL = 0.5  # seconds between two looks at the watched paths
IN_A_ROW = 10  # so many convergences with changes meanwhile are not yet a fight with a writer
DEVICE_WEIGHT = 0.1  # a changed device counts less, because to split eight GPUs takes a minute
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
    """A value that changes when a watched entry changes; None if there is nothing.

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
            found = os.lstat(entry[1:])
            return (found.st_mode, found.st_ino, found.st_dev, found.st_rdev, found.st_uid,
                    found.st_gid)  # fmt: skip
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


def _facts(found: os.stat_result) -> object:
    return (
        found.st_mode, found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns,
        found.st_ctime_ns, found.st_rdev, found.st_uid, found.st_gid,
    )  # fmt: skip


def _device(path: bytes) -> object:
    """What counts of a device node. A file that the kernel replaces in /proc keeps its name; only
    its time changes."""
    found = os.lstat(path)
    moment = 0 if found.st_rdev else found.st_ctime_ns
    return found.st_rdev, found.st_mode, found.st_uid, found.st_gid, moment


# A cache: the names of an entry, with the modification time of the directory at that moment.
_listed: "dict[bytes, tuple[int, list[bytes] | None]]" = {}


def _names(
    directory: bytes, entry: bytes, counts: "Callable[[bytes], bool]"
) -> "list[bytes] | int":
    """The names in a directory that count; the time of the directory if it has too many names.
    Raises OSError.

    The time of /dev itself would not do, because it changes with every terminal. In /proc and /sys,
    whose directories have no size, the time never changes, so these are read each time.
    """
    found = os.stat(directory)
    moment = found.st_mtime_ns
    known = _listed.get(entry)
    if known is None or known[0] != moment or not found.st_size:
        known = moment, _read_names(directory, counts)
        # A second change within the same tick of the clock would not show in the time.
        if time.time_ns() - moment > 10**9:
            _listed[entry] = known
    return moment if known[1] is None else known[1]


def _read_names(directory: bytes, counts: "Callable[[bytes], bool]") -> "list[bytes] | None":
    """The names that count, None if there are too many. Raises OSError."""
    found = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if counts(entry.name):
                found.append(entry.name)
            if number >= _MOST_NAMES or len(found) > _MOST_COUNTED:
                return None
    return sorted(found)


def signatures(entries: "Iterable[bytes]") -> dict[bytes, object]:
    """The signature of every entry."""
    return {entry: signature(entry) for entry in entries}


def _devices(seen: "dict[bytes, object]") -> "dict[bytes, object]":
    """Those signatures that are of names in a directory: devices and their parts."""
    return {entry: value for entry, value in seen.items() if entry[:1] not in b"/!=@"}


def backoff(times: float) -> float:
    """Seconds to wait after so many times in a row: 1, 2, 4, … 60."""
    return min(LONGEST_PAUSE, float(2.0 ** min(times - 1, 10)))


def jittered(interval: float) -> float:
    """An interval, 10 % longer or shorter, because the nodes of a cluster start together."""
    return interval * (0.9 + 0.2 * os.urandom(1)[0] / 255)


class Requests:
    """What the next child, or this process, is asked to do: `stop` (SIGTERM), `converge` now
    (SIGHUP, or a `revert` that asks for the lock), and `refresh` (see the protocol)."""

    def __init__(self) -> None:
        self.stop = False
        self.converge = False
        self.refresh = True


class Loop:
    """Converge, wait for a change, and converge again.

    `converge` gives an exit code and the entries to watch (None if the child named none). `wait`
    waits so many seconds or until a signal, and notes the signal in `requests`.
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
        """Loop until a request to stop; gives the exit code."""
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
        """Do nothing more to this node, but reap the processes that end in this pod."""
        while not self.requests.stop:
            self.wait(LONGEST_PAUSE)

    def converge_once(self) -> None:
        """One convergence. An entry that is watched for the first time counts as changed, because
        nobody saw it before."""
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
        """Seconds until the next convergence if nothing changes."""
        if self.changes:
            return backoff(self.changes - IN_A_ROW + 1)
        return backoff(self.failures) if self.failures else jittered(interval)

    def wait_for_change(self, seconds: float) -> None:
        """Wait for a signal, for a change, or until the time is over.

        If paths change all the time, only devices end the wait early; later not even these.
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
    process may be pid 1."""

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
        self.barrier = False  # we withdrew the barrier, and no child has put it back
        self.pid = 0
        self.ended: list[int] = []  # the wait status of the current child, once it has ended

    def wait(self, seconds: float) -> None:
        """Wait for a signal. Signals are blocked otherwise, so that none is lost."""
        self.answer_revert()
        found = signal.sigtimedwait(SIGNALS, seconds)
        if found is None:
            return
        if found.si_signo in (signal.SIGTERM, signal.SIGINT):
            self.requests.stop = True
        elif found.si_signo == signal.SIGHUP:
            self.requests.converge = self.requests.refresh = True
        self.reap()

    def answer_revert(self) -> None:
        """Answer a `revert` that asks for the lock. The next child releases it."""
        found = signature(os.fsencode(self.revert_request)) if self.revert_request else None
        if found == self.answered:
            return
        self.answered = found
        if found is None:
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
        """Run one child to its end and publish the result. Gives its exit code and the entries to
        watch.

        Readiness is withdrawn if the child did not finish, but not if we told it to end.
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
        """Read the child's report until the child has ended. Past its deadline it is killed, which
        its journal makes safe."""
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
    """Remove status files in this order, up to the first that cannot be removed. Gives whether
    the first one existed. No part of a path may be a link: links were followed at the start."""
    there = []
    for path in paths:
        try:
            above, name = os.path.split(path)
            directory = _directory(above)
            try:
                os.unlink(name, dir_fd=directory)
                os.fsync(directory)
            finally:
                os.close(directory)
            there.append(True)
        except FileNotFoundError:
            there.append(False)
        except OSError as error:
            log("readiness not withdrawn", "errno", error.errno or 0)
            break
    return there[:1] == [True]


def _directory(path: str) -> int:
    """A descriptor of a directory. Raises OSError, also if a part of the path is a link."""
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
    """Write a line as `agent.log` does. An error of the log is ignored."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'{{"{key}": {number}, "event": "{event}", "level": "{level}", "ts": "{moment}"}}\n'
    try:
        os.write(2, line.encode())
    except OSError:
        return


class Readiness:
    """The ready file, which is there while the last convergence of this process succeeded. Beside
    it, in `PATH.reason`, is the reason why it is not there. With an empty path there is no file.

    The content is our pid and start time, so that a later process knows whether we still run.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reason = f"{path}.reason"

    def update(self, code: int, reason: bytes) -> None:
        """Note how a convergence ended. A full disk is logged, and stops nothing."""
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
        """Remove the files of a process that does not run any more."""
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
    """The whole file at once. Raises OSError."""
    new = f"{path}.new"
    _remove(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(new, path)


def _remove(path: str) -> None:
    """Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def remove_pid_file(fd: int, path: str) -> None:
    """Remove a pid file, if the name still stands for the file that we hold. The look and the
    removal happen in the same directory, whatever becomes of the directory's name."""
    above, name = os.path.split(path)
    try:
        directory = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if os.path.samestat(found, os.fstat(fd)):
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError:
        return  # the next process takes the file over


def main() -> int:
    """Run with the arguments of the module's docstring; gives the exit code."""
    for number in SIGNALS:  # with an ignored SIGCHLD no exit status could be read
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
