"""The timer on the host (the "switch") that undoes a change when this agent cannot.

A runtime that does not start on its new files cannot start our container either. So a timer is set
on the host before the restart. It restores the originals and restarts the runtime, and needs only
the host's own programs.

Invariant: either the switch or this agent ends the change, never both. A file in the state
directory, the guard, decides: the switch first renames the guard, and does nothing without it; a
commit first removes the guard. So the switch may fire late, twice, or for an old change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from agent.errors import Refused, reason
from agent.host import files, trust
from agent.host.paths import HostRoot
from agent.log import Log
from agent.runtimes import registry
from agent.runtimes.proof import NotProven
from agent.runtimes.restart import Restart
from agent.state.journal import Entry, Journal, parents
from agent.state.store import Store
from agent.systemd.units import Command, Systemd, SystemdError, Timer, Unit

MARGIN = 20  # seconds for the restart itself, in addition to the proof timeout
FIRED = "the timer on the host has undone it meanwhile"

_FOLDERS = ("/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin")
# Paths without a character that has a meaning for systemd or for a program's command line.
_PLAIN = re.compile(r"/[A-Za-z0-9@_.+,:=/~-]+")


class CannotArm(Exception):
    """The switch cannot be set. The message is the reason."""


def choose(host: HostRoot, restart: Restart | None) -> str | None:
    """A new identifier for the switch of a change. None if the change needs no switch: without a
    restart by systemd, or outside a container, where this agent survives a stop of the runtime."""
    needed = restart is not None and restart.kind == "systemd" and not host.is_host
    return os.urandom(4).hex() if needed else None


@dataclass(frozen=True)
class Switch:
    """The switch of the change in `journal`. If that change has none, the methods do nothing.
    `reach` connects to the host's systemd."""

    host: HostRoot
    store: Store
    reach: Callable[[HostRoot, str], tuple[Systemd, Unit]]
    log: Log
    journal: Journal

    def arm(self, proof_timeout: float) -> None:
        """Start the timer on the host. `proof_timeout` is in seconds. If the timer cannot be
        started, the cause is logged, and the change goes on."""
        if self.journal.switch is None or self.journal.restart is None:
            return
        unit = self.journal.restart[1]
        try:
            timer = self.timer(unit, proof_timeout)
            files.write(self._guard, files.new_state(b"", 0o600))
            self.reach(self.host, unit)[0].start_timer(timer)
        except (CannotArm, SystemdError, OSError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            self.log.warning("no switch on the host", reason=why)
            self.disarm()
        else:
            self.log.info("switch on the host set", unit=timer.name, seconds=timer.delay)

    def claim(self) -> None:
        """Remove the guard, so that the switch does nothing and this agent can commit.

        Raises NotProven if the switch has begun, and Refused if the guard cannot be removed.
        """
        if self.journal.switch is None:
            return
        try:
            files.remove(self._guard)
        except OSError as error:
            raise Refused(f"cannot remove {self._guard}: {reason(error)}") from error
        if self.has_fired():
            raise NotProven(FIRED)

    def has_fired(self) -> bool:
        """Has the switch begun, and maybe ended, to undo this change?"""
        return self.journal.switch is not None and os.path.lexists(self._fired)

    def disarm(self) -> None:
        """Remove the switch, whether or not it has fired. Without its guard it has no effect, so a
        failure to stop the timer is only logged."""
        if self.journal.switch is None or self.journal.restart is None:
            return
        try:
            for path in (self._guard, self._fired):
                files.discard(path)
        except OSError as error:
            self.log.warning("switch on the host not disarmed", reason=reason(error))
        try:
            systemd, _ = self.reach(self.host, self.journal.restart[1])
            for name in Timer(self._name, 0, (), "").units:
                systemd.stop(name)
        except SystemdError as error:
            self.log.warning("switch on the host not stopped", unit=self._name, reason=str(error))

    @property
    def _name(self) -> str:
        return f"toolkit-agent-undo-{self.journal.switch}"

    @property
    def _guard(self) -> str:
        return self.store.path(f"switch-{self.journal.switch}.armed")

    @property
    def _fired(self) -> str:
        return self.store.path(f"switch-{self.journal.switch}.fired")

    def timer(self, unit: str, proof_timeout: float) -> Timer:
        """The timer of the switch, which restarts `unit`. Raises CannotArm."""
        delay = int(proof_timeout) + MARGIN + registry.adapter(self.journal.kind).stop_seconds
        text = f"Undo a change of {unit} by a toolkit-agent that is gone"
        return Timer(self._name, delay, self._commands(unit), text)

    def _commands(self, unit: str) -> tuple[Command, ...]:
        """The commands that restore each file, independently of the others, and restart the
        runtime. Raises CannotArm."""
        host, directory = self.host, self.store.directory
        move, remove, prune, systemctl = (
            _program(host, name) for name in ("mv", "rm", "rmdir", "systemctl")
        )
        state = _same_on_host(host, host.name(directory), directory)
        armed, fired = (
            _require_plain(os.path.join(state, os.path.basename(path)))
            for path in (self._guard, self._fired)
        )
        commands = [Command((move, "-T", armed, fired))]
        for entry in reversed(self.journal.entries):
            _same_on_host(host, os.path.dirname(entry.host), os.path.dirname(entry.agent))
            if entry.before is not None:
                commands += _restore_commands(host, entry, move, state)
                continue
            commands.append(Command((remove, "-f", _require_plain(entry.host)), may_fail=True))
            made = parents(entry.host, entry.made)
            commands += [Command((prune, _require_plain(folder)), may_fail=True) for folder in made]
        commands.append(Command((systemctl, "reset-failed", unit), may_fail=True))
        return (*commands, Command((systemctl, "restart", unit)))


def _restore_commands(host: HostRoot, entry: Entry, move: str, state: str) -> tuple[Command, ...]:
    """The commands that move the original over the file in one step. If the original is not beside
    the file, because this agent could not write there, the first command copies it there."""
    waiting = os.path.join(entry.outside or os.path.dirname(entry.host),
                           os.path.basename(entry.undo))  # fmt: skip
    back = Command(
        (move, "-f", "-T", _require_plain(waiting), _require_plain(entry.host)), may_fail=True
    )
    if entry.outside is None or os.path.lexists(entry.undo):
        return (back,)
    saved = os.path.join(state, "originals", entry.before or "")
    owner = ("-o", str(entry.uid), "-g", str(entry.gid), "-m", f"{entry.mode:04o}")
    words = (
        _program(host, "install"),
        "-T",
        *owner,
        _require_plain(saved),
        _require_plain(waiting),
    )
    return Command(words, may_fail=True), back


def _require_plain(path: str) -> str:
    if _PLAIN.fullmatch(path) is None:
        raise CannotArm(f"systemd could misread {path}")
    return path


def _program(host: HostRoot, name: str) -> str:
    """The host path of a program of the host. Raises CannotArm."""
    for folder in _FOLDERS:
        path = os.path.join(folder, name)
        try:
            # systemd runs this path as root, so nobody but root may be able to change it.
            program = trust.require(host, path, f"run {path}").agent
        except Refused:
            continue
        if os.path.isfile(program) and os.access(program, os.X_OK):
            return path
    raise CannotArm(f"the host has no {name}")


def _same_on_host(host: HostRoot, path: str, agent: str) -> str:
    """The host path of a directory. Raises CannotArm if it is not certain that the host has the
    directory at this path."""
    try:
        if os.path.samefile(host.root + path, agent):
            return path
    except OSError:
        pass
    raise CannotArm(f"the host path of {agent} is not known for certain")
