"""The context of an operation on a node: settings, the host root, the state, and functions.

Invariant: time, sleep, restarts, the connection to systemd and trial starts are fields of the
context, so that a test can replace them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.cdi.driver.driver import DRIVER_CONTAINER
from agent.cri import process
from agent.cri.process import Process
from agent.decide import DEFAULT_DIRS
from agent.errors import Refused
from agent.host import trees, trust
from agent.host.paths import HostRoot, open_host_root
from agent.log import Log, Silent
from agent.options.settings import Settings
from agent.runtimes import registry
from agent.runtimes.base import Endpoint
from agent.state.store import Store
from agent.status import Publisher

if TYPE_CHECKING:
    from agent.cri.client import Answer
    from agent.runtimes.proof import Identity, Probe
    from agent.runtimes.restart import Restart
    from agent.runtimes.trial import Launch, Result, Start
    from agent.systemd.units import Systemd, Unit

Reach: TypeAlias = "Callable[[HostRoot, str], tuple[Systemd, Unit]]"


# The functions of three modules that are loaded only if a restart is due.


def _choose_restart(mode: str, process: Process | None, host: HostRoot, kind: str) -> Restart:
    from agent.runtimes import restart

    return restart.choose(mode, process, host, kind)


def _reach(host: HostRoot, name: str) -> tuple[Systemd, Unit]:
    from agent.systemd import reach

    return reach.reach(host, name)


def _start_once(host: HostRoot, launch: Launch, problems: Callable[[Answer], list[str]]) -> Result:
    from agent.runtimes import trial

    return trial.start_once(host, launch, problems)


@dataclass(frozen=True)
class Context:
    """The settings and functions of one run.

    `wall` returns seconds since the epoch, `clock` monotonic seconds, `uptime` seconds since boot.
    `lock_fd`: the descriptor of the lock, if the parent process holds it for this process. `retry`:
    try a candidate that has failed before. `restart_after`: before this time of `clock`, no change
    is made that needs a restart. `has_restart_budget`: count and limit restarts. `on_proposal`: is
    called with each proposal before anything is refused or written. `refresh`: ask NVML even if its
    answer is known. `barrier`: an earlier convergence removed `toolkit-ready` and did not finish;
    the next successful one writes that file again.
    """

    settings: Settings
    host: HostRoot
    store: Store
    publisher: Publisher
    log: Log = field(default_factory=Silent)
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    choose_restart: Callable[[str, Process | None, HostRoot, str], Restart] = _choose_restart
    reach: Reach = _reach
    start_trial: Start = _start_once
    lock_fd: int | None = None
    retry: bool = False
    restart_after: float = 0.0
    has_restart_budget: bool = False
    on_proposal: Callable[[Any], None] = lambda _: None
    refresh: bool = False
    barrier: bool = False

    @property
    def boot_id(self) -> str:
        """The kernel's id of this boot."""
        return process.boot_id()

    def probe(self, endpoint: Endpoint) -> Probe:
        """The functions with which `proof.prove` asks this runtime. Each question uses a new
        connection."""
        from agent.runtimes.proof import Probe  # needed only after a restart

        path, name = endpoint.socket.agent, endpoint.socket.host
        # Short, because a process that is about to end may never answer.
        patience = min(5.0, self.settings.proof_timeout / 4)
        return Probe(
            identity=lambda: self.identity(endpoint),
            ask=lambda: registry.ask(path, name, timeout=patience),
            clock=self.clock,
            sleep=self.sleep,
            given_up=lambda: self.given_up(endpoint),
        )

    def running(self, endpoint: Endpoint) -> Process | None:
        """The process behind the socket, None if it cannot be seen. Raises Unreachable."""
        socket = endpoint.socket
        return process.find(socket.agent, socket.host, self.host, endpoint.kind)

    def identity(self, endpoint: Endpoint) -> Identity:
        """The identity of the process behind the socket; that of its unit if the process cannot be
        seen. Raises Unreachable."""
        running = self.running(endpoint)
        return running.identity if running else self.invocation(endpoint.unit)

    def invocation(self, name: str | None) -> Identity:
        """The identity of a running unit (systemd's InvocationID), None if it is not known."""
        unit = self._unit(name)
        return (0, unit.invocation) if unit and unit.invocation else None

    def given_up(self, endpoint: Endpoint) -> str | None:
        """The message that systemd has given up the runtime's unit, so that no process will answer;
        None if it has not."""
        unit = self._unit(endpoint.unit)
        return f"systemd has given up: {unit}" if unit and unit.given_up else None

    def _unit(self, name: str | None) -> Unit | None:
        from agent.systemd.units import SystemdError

        try:
            return self.reach(self.host, name)[1] if name else None
        except SystemdError:
            return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the node's lock, and remove the half-written files of killed processes.

        Signals that would end this process are blocked, so that a change in progress is finished or
        undone first. Raises Locked or Refused.
        """
        with self.store.hold_lock(self.lock_fd), uninterrupted():
            self.store.sweep()
            self.publisher.sweep()
            yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Block SIGTERM, SIGINT and SIGHUP inside the `with` statement."""
    ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def open_host(settings: Settings) -> HostRoot:
    """Open the host root, with the mounts of all paths in the options and in our defaults. Raises
    UsageError or Refused."""
    sockets = (path for _, path in registry.sockets("auto"))
    paths = (*settings.option_paths, *sockets, *DEFAULT_DIRS, DRIVER_CONTAINER)
    host = open_host_root(settings.host_root, paths)
    drop_in, name = settings.drop_in_config, settings.drop_in_config_host_path
    if drop_in and name:
        return host.with_view(os.path.dirname(drop_in), os.path.dirname(name))
    return host


def open_context(settings: Settings, log: Log) -> Context:
    """The context of a run that may write. Raises UsageError, and Refused if the state cannot be
    written."""
    ctx, refusal = reading_context(settings, log)
    if refusal is not None:
        raise refusal
    return ctx


def reading_context(settings: Settings, log: Log) -> tuple[Context, Refused | None]:
    """The context of a run that only reads, and the error that no directory can hold the state, so
    that no change can be made; None if there is one. The state directory need not be writable, nor
    exist. Raises UsageError or Refused."""
    host = open_host(settings)
    state, refusal = _state_directory(settings, host)
    directory = trust.system_name(host, settings.status_dir)
    publisher = Publisher(directory, settings.entry == "nvidia-toolkit", host)
    return Context(settings, host, Store(state, host), publisher, log), refusal


def _state_directory(settings: Settings, host: HostRoot) -> tuple[str, Refused | None]:
    """The state directory (host path, links not followed), and the error if it cannot be written.
    It has to be on the host, because a container's own file system ends with the container.

    Without --state-dir, a directory that has state already is used. A pod that sees the host
    read-only keeps its state beside the toolkit, and a command on the node has to find it there.
    """
    asked = host.name(settings.state_dir)
    beside = host.name(os.path.join(settings.toolkit_install_dir, ".toolkit-agent"))
    try:
        places = {name: host.resolve(name) for name in (asked, beside)}
        writable = [
            name
            for name, place in places.items()
            if host.is_host or (host.is_on_host(place) and trees.is_writable(place.agent))
        ]
    except Refused as error:  # Store checks the files in it when it reads them
        return asked, error
    known = places if settings.origins["state_dir"] == "default" else (asked,)
    files = ("memory.json", "journal.json")
    used = [
        name
        for name in known
        if any(os.path.lexists(os.path.join(places[name].agent, file)) for file in files)
    ]
    if len(used) > 1:
        return used[0], Refused(
            f"cannot choose between two state directories, {asked} and {beside}; compare "
            "memory.json in both, and give the right one with --state-dir"
        )
    if used:
        return used[0], None if used[0] in writable else Refused(
            f"cannot write to {used[0]}, where this node's state is: mount it writable, or run "
            "`toolkit-agent revert` on the node first"
        )
    if writable:
        return writable[0], None
    return asked, Refused(
        f"cannot keep a journal in {asked}: it is not on a writable mount of "
        "the host; mount it, or give another directory with --state-dir"
    )


def best_effort(log: Log, *actions: Callable[[], None]) -> None:
    """Do these actions. A refusal of one is logged, and the next is done."""
    for action in actions:
        try:
            action()
        except Refused as error:
            log.warning("not tidied", reason=error.message)
