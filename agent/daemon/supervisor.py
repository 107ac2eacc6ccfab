"""The waiting process of `run`: watches paths, and has the node made right in a child.

Invariant: it imports nothing but os, sys, signal, time and errno, so that waiting costs next to
nothing; a convergence counts only where nothing that is watched moved while it ran, so that no
change is lost; and where one cannot finish (it is killed, or crashes), readiness is withdrawn,
because nobody has proven the node. Run by its path, after `start.py` has taken the lock and blocked
the signals:

    supervisor.py INTERVAL DEADLINE PIDFILE READYFILE ASIDE READY TWIN ARGV...

PIDFILE is `DESCRIPTOR:PATH` of a pid file that goes with this process, or empty; READYFILE is a
path (see Readiness), or empty. ASIDE is where a `revert` asks for the lock (see
`agent.transaction.stand_aside`), which a child releases, for ever if it ends with that code. READY
and TWIN are the status files, in the order in which they are withdrawn. ARGV is the child's command
line, to which `--watch-fd`, `--afresh` and `--barrier` are added. Through the descriptor the child
gives, with a NUL after each: why the node is not right ("" where it is), and what is to be watched.
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
POLL = 0.5  # seconds between two looks
IN_A_ROW = 10  # several changes that follow each other are no fight yet
DEVICE = 0.1  # nobody fights about devices; splitting eight GPUs anew takes a minute
LONGEST = 60.0  # seconds of back-off
USAGE = 2  # exit code of a child that will never succeed
NOT_YET = 75  # exit code of a child that did not fail, on a node that is not ready
ASIDE = 76  # exit code of a child that found the node reverted beside us
# Those of a child that has come to its end: whatever it wanted to withdraw is withdrawn.
FINISHED = frozenset((0, 2, 3, 4, 5, 6, 7, NOT_YET, ASIDE))
_NOT_STARTED = 127
_MOST_COUNTED = 1_000  # names in a directory, each of which is looked at
_MOST_NAMES = 10_000  # and names beside which they are
_MOST_LISTED = 1 << 20  # bytes of a watch list

_TYPE, _LINK, _SOCKET = 0o170000, 0o120000, 0o140000


def signature(entry: bytes) -> object:
    """What changes when a watched entry changes; None where it is not there.

    An entry is a path; `PREFIX*DIRECTORY`: the names in a directory that start so;
    `!PREFIX*DIRECTORY`: the files in it whose names do not; `=PATH`: what a path is and whose, but
    not what is in it, so that files that come and go in /tmp are nobody's business; `@SECONDS`:
    whether that time of the monotonic clock has come.
    """
    if entry.startswith(b"@"):
        return time.monotonic() >= float(entry[1:])
    if entry.startswith(b"="):
        return _owner(entry[1:])
    if entry.startswith(b"!"):
        prefix, _, directory = entry[1:].partition(b"*")
        names = _names(directory, entry, lambda name: not name.startswith(prefix))
        if isinstance(names, int):
            return names
        return [(name, signature(directory + b"/" + name)) for name in names]
    if not entry.startswith(b"/"):
        prefix, _, directory = entry.partition(b"*")
        return _nodes(directory, _names(directory, entry, lambda name: name.startswith(prefix)))
    try:
        own = os.lstat(entry)
        if own.st_mode & _TYPE != _LINK:
            return _facts(own)
        return _facts(own), _facts(os.stat(entry))
    except OSError as error:
        return _missing(error)


def _missing(error: OSError) -> "int | None":
    return None if error.errno in (errno.ENOENT, errno.ENOTDIR) else error.errno


def _owner(path: bytes) -> object:
    try:
        found = os.lstat(path)
    except OSError as error:
        return _missing(error)
    return (
        found.st_mode, found.st_ino, found.st_dev, found.st_rdev, found.st_uid, found.st_gid,
    )  # fmt: skip


def _facts(found: os.stat_result) -> object:
    if found.st_mode & _TYPE == _SOCKET:
        return found.st_ino, found.st_dev, found.st_mode, found.st_ctime_ns
    return (
        found.st_mode, found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns,
        found.st_ctime_ns, found.st_rdev, found.st_uid, found.st_gid,
    )  # fmt: skip


# Names by entry, with the time of the directory that they are of.
_listed: "dict[bytes, tuple[int, list[bytes] | None]]" = {}


def _names(
    directory: bytes, entry: bytes, counts: "Callable[[bytes], bool]"
) -> "list[bytes] | int":
    """Names in a directory, or why there are none. For /dev, whose own time changes with what is
    nobody's business here; in /proc and /sys, whose directories have no size, it never does.

    Where there are too many to look at, the time of the directory stands for them all."""
    try:
        found = os.stat(directory)
        moment = found.st_mtime_ns
        known = _listed.get(entry)
        if known is None or known[0] != moment or not found.st_size:
            known = moment, _some(directory, counts)
            # A change within the same tick of the clock would not show in the time.
            if time.time_ns() - moment > 10**9:
                _listed[entry] = known
        return moment if known[1] is None else known[1]
    except OSError as error:
        return error.errno or -1


def _some(directory: bytes, counts: "Callable[[bytes], bool]") -> "list[bytes] | None":
    """The names that count, None where there are too many. Raises OSError."""
    found = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if counts(entry.name):
                found.append(entry.name)
            if number >= _MOST_NAMES or len(found) > _MOST_COUNTED:
                return None
    return sorted(found)


def _nodes(directory: bytes, names: "list[bytes] | int") -> object:
    """What counts of device nodes; what is made anew in /proc under its old name has another
    time."""
    if isinstance(names, int):
        return names
    try:
        found = [(name, os.lstat(directory + b"/" + name)) for name in names]
    except OSError as error:
        return error.errno
    return [
        (name, item.st_rdev, item.st_mode, item.st_uid, item.st_gid,
         0 if item.st_rdev else item.st_ctime_ns)
        for name, item in found
    ]  # fmt: skip


def signatures(entries: "Iterable[bytes]") -> dict[bytes, object]:
    """The signature of every entry."""
    return {entry: signature(entry) for entry in entries}


def _devices(seen: "dict[bytes, object]") -> "dict[bytes, object]":
    """Of these what is known by names in a directory: devices and their parts."""
    return {entry: value for entry, value in seen.items() if entry[:1] not in b"/!=@"}


def backoff(times: float) -> float:
    """Seconds to wait after so many in a row: 1, 2, 4, … 60."""
    return min(LONGEST, float(2.0 ** min(times - 1, 10)))


def jittered(interval: float) -> float:
    """An interval, 10 % more or less: the nodes of a cluster started together."""
    return interval * (0.9 + 0.2 * os.urandom(1)[0] / 255)


class Wishes:
    """What signals have asked for: to stop, or to converge now. `afresh`: what is known without a
    trace in any file, such as NVML's word, is not to be trusted any more."""

    def __init__(self) -> None:
        self.stop = False
        self.now = False
        self.afresh = True


class Keeper:
    """Converge, wait, and converge again.

    `converge` gives an exit code and the watch list (None where the child gave none); `wait` waits
    that many seconds or until a signal, and notes it in `wishes`.
    """

    def __init__(
        self,
        converge: "Callable[[], tuple[int, tuple[bytes, ...] | None]]",
        wait: "Callable[[float], None]",
        wishes: Wishes,
        clock: "Callable[[], float]" = time.monotonic,
        look: "Callable[[Iterable[bytes]], dict[bytes, object]]" = signatures,
    ) -> None:
        self.converge = converge
        self.wait = wait
        self.wishes = wishes
        self.clock = clock
        self.look = look
        self.code = 0
        self.seen: dict[bytes, object] = {}  # signatures after the last convergence
        self.moved = 0.0  # convergences in a row during which something moved
        self.failed = 0  # and those that failed

    def keep(self, interval: float) -> int:
        """Until told to stop; gives the exit code."""
        while True:
            self.once()
            if self.code == USAGE:
                return USAGE
            if self.code == ASIDE:
                self.stay_aside()
            if not 0 < self.moved < IN_A_ROW:
                self.idle(self.pause(interval))
            if self.wishes.stop:
                return 0

    def stay_aside(self) -> None:
        """Nothing more is done to this node by this process; what its pod leaves is buried."""
        while not self.wishes.stop:
            self.wait(LONGEST)

    def once(self) -> None:
        """One convergence. What is watched newly counts as moved: nobody saw it before."""
        self.wishes.now = False
        before = self.look(self.seen)
        code, listed = self.converge()
        if listed is None:
            listed = tuple(before)
        elif code != 0:  # a node that cannot be read says less than it did
            listed = tuple(dict.fromkeys((*listed, *before)))
        self.seen = self.look(listed)
        if self.seen == before:
            self.moved = 0.0
        else:
            self.moved += DEVICE if _devices(self.seen) != _devices(before) else 1
        self.failed = self.failed + 1 if code not in (0, NOT_YET) else 0
        if code != self.code:
            log("waiting" if code else "right", "code", code)
        self.code = code

    def pause(self, interval: float) -> float:
        """Seconds until the next convergence, if nothing happens."""
        if self.moved:
            return backoff(self.moved - IN_A_ROW + 1)
        return backoff(self.failed) if self.failed else jittered(interval)

    def idle(self, seconds: float) -> None:
        """Wait for a signal, for a change, or for the time to be up.

        Where something moves all the time, only time and devices count; all else is looked at
        when the time is up.
        """
        end = self.clock() + seconds
        while not (self.wishes.stop or self.wishes.now):
            left = end - self.clock()
            if left <= 0:
                self.wishes.afresh |= not (self.moved or self.failed)
                return
            self.wait(min(left, POLL))
            seen = self.seen
            if self.moved:
                seen = _devices(seen) if self.moved < 2 * IN_A_ROW else {}
            if self.look(seen) != seen:
                self.failed = 0
                return


class Children:
    """Starts convergences, takes signals, and buries whoever dies: we may be pid 1."""

    def __init__(
        self,
        argv: list[str],
        deadline: float,
        wishes: Wishes,
        readiness: "Readiness",
        aside: str = "",
        published: "Iterable[str]" = (),
    ) -> None:
        self.argv = argv
        self.readiness = readiness
        self.aside = aside
        self.request: object = None  # the last one that was heard
        self.asked = False  # to stand aside, since the last child was started
        self.deadline = deadline
        self.wishes = wishes
        self.published = tuple(published)  # the status files, the barrier first
        self.barrier = False  # we took the barrier away, and nobody has put it back
        self.pid = 0
        self.ends: list[int] = []  # wait statuses of the one that is waited for

    def wait(self, seconds: float) -> None:
        """Wait for a signal. They are blocked, so none comes at a bad moment or is lost."""
        self.hear()
        found = signal.sigtimedwait(SIGNALS, seconds)
        if found is None:
            return
        if found.si_signo in (signal.SIGTERM, signal.SIGINT):
            self.wishes.stop = True
        elif found.si_signo == signal.SIGHUP:
            self.wishes.now = self.wishes.afresh = True
        self.reap()

    def hear(self) -> None:
        """Answer a `revert` that asks us to stand aside, which the next child does."""
        found = signature(os.fsencode(self.aside)) if self.aside else None
        if found == self.request:
            return
        self.request = found
        if found is None:
            return
        self.wishes.now = self.asked = True
        try:
            _write(f"{self.aside}.answer", b"%d %s\n" % (os.getpid(), _start(os.getpid())))
        except OSError as error:
            log("revert not answered", "errno", error.errno or 0)

    def reap(self) -> None:
        """Bury every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.ends.append(status)

    def converge(self) -> tuple[int, tuple[bytes, ...] | None]:
        """Run one child to its end, and tell how it went. Gives its exit code and what it wants to
        be watched.

        Readiness goes with a child that does not finish; who is told to stop leaves it as it is.
        """
        code, reason, listed = self._run()
        self.readiness.tell(code, reason)
        if code == 0:
            self.barrier = False
        elif code not in FINISHED and not (self.wishes.stop or self.asked):
            log("convergence not finished", "code", code)
            self.barrier |= withdraw(self.published)
        return code, listed

    def _run(self) -> tuple[int, bytes, tuple[bytes, ...] | None]:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        os.set_blocking(reader, False)
        argv = [*self.argv, f"--watch-fd={writer}"]
        argv += ["--afresh"] if self.wishes.afresh else []
        argv += ["--barrier"] if self.barrier else []
        self.wishes.afresh = False
        self.ends.clear()
        self.hear()
        self.asked = False
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
        data = self._follow(reader)
        os.close(reader)
        code = os.waitstatus_to_exitcode(self.ends[0])
        reason, _, rest = data.partition(b"\0")
        listed = tuple(entry for entry in rest.split(b"\0") if entry)
        return code if code >= 0 else 128 - code, reason, listed or None

    def _follow(self, reader: int) -> bytes:
        """Read what the child writes until it has ended; past its deadline it is killed, which
        its journal makes safe."""
        end, data, asked = time.monotonic() + self.deadline, b"", False
        while not self.ends:
            if (self.wishes.stop or self.asked) and not asked:
                # Under the lock it blocks the signal and ends after its step; else at once.
                os.kill(self.pid, signal.SIGTERM)
                asked = True
            if time.monotonic() > end:
                log("child killed", "pid", self.pid)
                os.killpg(self.pid, signal.SIGKILL)
                end += LONGEST
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
    """Remove status files in this order, up to the first that stays. Gives whether the first one
    was there. No part of a path may be a link: it was followed when we were started."""
    found = []
    for path in paths:
        try:
            above, name = os.path.split(path)
            directory = _directory(above)
            try:
                os.unlink(name, dir_fd=directory)
                os.fsync(directory)
            finally:
                os.close(directory)
            found.append(path)
        except FileNotFoundError:
            found.append("")
        except OSError as error:
            log("readiness not withdrawn", "errno", error.errno or 0)
            break
    return bool(found and found[0])


def _directory(path: str) -> int:
    """A descriptor of a directory. Raises OSError, also where a part of the path is a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open("/", flags)
    for part in filter(None, path.split("/")):
        above = here
        try:
            here = os.open(part, flags, dir_fd=above)
        finally:
            os.close(above)
    return here


def log(event: str, key: str, number: int) -> None:
    """A line as the rest of the program writes them. A log that is gone stops nobody."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'{{"{key}": {number}, "event": "{event}", "level": "info", "ts": "{moment}"}}\n'
    try:
        os.write(2, line.encode())
    except OSError:
        return


class Readiness:
    """A file that is there while the last convergence of this process succeeded; beside it, in
    `PATH.reason`, is why it is not. With an empty path nobody asks.

    The content is our pid and start time, so that whoever comes next knows whether we still live.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reason = f"{path}.reason"

    def tell(self, code: int, reason: bytes) -> None:
        """Tell how a convergence ended. A disk that is full stops nobody."""
        if not self.path:
            return
        try:
            if code:
                self.deny(reason or b"cannot converge: exit code %d; see the log" % code)
            else:
                _write(self.path, b"%d %s\n" % (os.getpid(), _start(os.getpid())))
                _remove(self.reason)
        except OSError as error:
            log("readiness not told", "errno", error.errno or 0)

    def deny(self, reason: bytes) -> None:
        """Not ready, because of that. Raises OSError."""
        if self.path:
            _remove(self.path)
            _write(self.reason, reason[:1000].replace(b"\n", b" ") + b"\n")

    def end(self) -> None:
        """Nobody is ready, and nobody says why."""
        if self.path:
            for path in (self.path, self.reason):
                try:
                    _remove(path)
                except OSError as error:
                    log("readiness not told", "errno", error.errno or 0)

    def forget_the_dead(self) -> None:
        """Remove what a process left that does not run any more."""
        try:
            with open(self.path, "rb") as file:
                pid, start = file.read(100).split()
            living = start == _start(int(pid))
        except (OSError, ValueError):
            living = False
        if not living:
            self.end()


def _start(pid: int) -> bytes:
    """When a process was started, by the kernel. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19]


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


def drop(fd: int, path: str) -> None:
    """Take a pid file away, if it is still the one that we hold, while we do: from the directory in
    which it is seen, whatever the directory's name leads to a moment later."""
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
        return  # whoever comes next takes it over


def main() -> int:
    """The arguments are those of the docstring."""
    for number in SIGNALS:  # an ignored SIGCHLD would take our children's ends away
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    interval, deadline, argv = float(sys.argv[1]), float(sys.argv[2]), sys.argv[8:]
    number_of, _, pid_file = sys.argv[3].partition(":")
    if pid_file:  # a child that outlives us must not hold it
        os.set_inheritable(int(number_of), False)
    wishes = Wishes()
    readiness = Readiness(sys.argv[4])
    children = Children(argv, deadline, wishes, readiness, sys.argv[5], sys.argv[6:8])
    try:
        code = Keeper(children.converge, children.wait, wishes).keep(interval)
        log("stopped", "code", code)
    finally:
        readiness.end()
        if pid_file:
            drop(int(number_of), pid_file)
    return code


if __name__ == "__main__":
    sys.exit(main())
