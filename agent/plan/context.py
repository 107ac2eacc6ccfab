"""What every operation on a node needs: settings, the host root, the state, and functions.

Invariant: time, sleep, restarts and questions to the runtime come from here, so that a test can
replace them.
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
from agent.cri.client import Answer
from agent.cri.process import Process
from agent.decide import DEFAULT_DIRS
from agent.errors import Refused
from agent.host import trees, trust
from agent.host.paths import HostRoot, open_host_root
from agent.log import Log, Silent
from agent.options.settings import Settings
from agent.runtimes import registry, restart
from agent.runtimes.base import Endpoint
from agent.runtimes.proof import Identity, Probe
from agent.runtimes.restart import Restart
from agent.state.store import Store
from agent.status import Publisher
from agent.systemd import reach as systemd
from agent.systemd.units import Systemd, SystemdError, Unit

if TYPE_CHECKING:
    from agent.runtimes.trial import Launch, Result

Reach: TypeAlias = Callable[[HostRoot, str], tuple[Systemd, Unit]]
StartTrial: TypeAlias = "Callable[[HostRoot, Launch, Callable[[Answer], list[str]]], Result]"


def _start_once(host: HostRoot, launch: Launch, problems: Callable[[Answer], list[str]]) -> Result:
    """`trial.start_once`. Its module is loaded only if a restart is due."""
    from agent.runtimes import trial

    return trial.start_once(host, launch, problems)


@dataclass(frozen=True)
class Context:
    """Settings and functions of one run.

    `lock_fd` is the descriptor of the lock that the parent process holds for this one. `refresh`
    means that NVML is asked even if its answer is known. `retry` means that a candidate is tried
    that has failed before. Before `restart_after` (a time of `clock`) no change that needs a
    restart is made. `has_restart_budget` means that restarts are counted and limited. `barrier`
    means that a convergence removed `toolkit-ready` and did not finish; the next successful one
    writes it again.
    `on_proposal` gets each proposal before anything is refused or written."""

    settings: Settings
    host: HostRoot
    store: Store
    publisher: Publisher
    log: Log = field(default_factory=Silent)
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    choose_restart: Callable[[str, Process | None, HostRoot, str], Restart] = restart.choose
    reach: Reach = systemd.reach
    start_trial: StartTrial = _start_once
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
        """Questions to a runtime, each on a fresh connection."""
        path, name = endpoint.socket.agent, endpoint.socket.host
        # A process that is about to end may lose one answer. That proves nothing.
        patience = min(5.0, self.settings.proof_timeout / 4)
        return Probe(
            identity=lambda: self.identity(endpoint),
            ask=lambda: registry.ask(path, name, timeout=patience),
            clock=self.clock,
            sleep=self.sleep,
            given_up=lambda: self.given_up(endpoint),
        )

    def running(self, endpoint: Endpoint) -> Process | None:
        """The process behind a socket. Raises Unreachable."""
        socket = endpoint.socket
        return process.find(socket.agent, socket.host, self.host, endpoint.kind)

    def identity(self, endpoint: Endpoint) -> Identity:
        """The identity of the process behind a socket. Raises Unreachable."""
        found = self.running(endpoint)
        return found.identity if found else self.invocation(endpoint.unit)

    def invocation(self, unit: str | None) -> Identity:
        """The identity that systemd gives the running unit, for a process that cannot be seen."""
        found = self._unit(unit)
        return (0, found.invocation) if found and found.invocation else None

    def given_up(self, endpoint: Endpoint) -> str | None:
        """Why nothing will answer any more: systemd has given the unit up. None otherwise."""
        found = self._unit(endpoint.unit)
        return f"systemd has given up: {found}" if found and found.given_up else None

    def _unit(self, name: str | None) -> Unit | None:
        try:
            return self.reach(self.host, name)[1] if name else None
        except SystemdError:
            return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the node's lock. Half-written files of killed processes are removed first.

        Signals that would end this process wait, so that a change in progress is finished or undone
        first. Raises Locked or Refused.
        """
        with self.store.hold_lock(self.lock_fd), uninterrupted():
            self.store.sweep()
            self.publisher.sweep()
            yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Block the signals that would end this process until the block is over."""
    ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def open_host(settings: Settings) -> HostRoot:
    """The host root, with the mounts of all paths in the options and in our defaults."""
    sockets = (path for _, path in registry.sockets("auto"))
    paths = (*settings.option_paths, *sockets, *DEFAULT_DIRS, DRIVER_CONTAINER)
    host = open_host_root(settings.host_root, paths)
    drop_in, name = settings.drop_in_config, settings.drop_in_config_host_path
    if drop_in and name:
        return host.with_view(os.path.dirname(drop_in), os.path.dirname(name))
    return host


def open_context(settings: Settings, log: Log | None = None) -> Context:
    """The context of a real run. Raises UsageError or Refused."""
    host = open_host(settings)
    state, refusal = _state_directory(settings, host)
    if refusal is not None:
        raise refusal
    return _context(settings, host, state, log)


def reading_context(settings: Settings, log: Log | None = None) -> Context:
    """The context of a run that only reads: the state is where there is some, and nothing has to be
    writable. Raises UsageError or Refused."""
    host = open_host(settings)
    return _context(settings, host, _state_directory(settings, host)[0], log)


def state_refusal(settings: Settings, host: HostRoot) -> Refused | None:
    """Why no change can be made here: there is no place for the state. None if there is one."""
    return _state_directory(settings, host)[1]


def _context(settings: Settings, host: HostRoot, state: str, log: Log | None) -> Context:
    return Context(
        settings=settings,
        host=host,
        store=Store(state, host),
        publisher=Publisher(
            trust.system_name(host, settings.status_dir), settings.entry == "nvidia-toolkit", host
        ),
        log=log or Silent(),
    )


def _state_directory(settings: Settings, host: HostRoot) -> tuple[str, Refused | None]:
    """The state directory (host path, links as given), and why no change can be made with it. It is
    on the host, because a container's own file system ends with the container.

    Without --state-dir, a directory that has state already is taken. A pod that sees the host
    read-only keeps its state beside the toolkit, and a person on the node has to find it there.
    """
    asked = host.name(settings.state_dir)
    beside = host.name(os.path.join(settings.toolkit_install_dir, ".toolkit-agent"))
    try:
        places = {name: host.resolve(name) for name in (asked, beside)}
        writable = [
            name
            for name, place in places.items()
            if host.is_host or (host.on_mount(place) and trees.is_writable(place.agent))
        ]
    except Refused as error:  # the state itself is judged where it is read
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
    """Do these actions. A refusal is logged and has no other effect."""
    for action in actions:
        try:
            action()
        except Refused as error:
            log.warning("not tidied", reason=error.message)
