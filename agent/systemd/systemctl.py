"""The host's systemd by `systemctl` and `systemd-run`, if D-Bus cannot be reached.

Invariant: the programs run in the host root, with checked arguments and a deadline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from agent.host.paths import HostRoot
from agent.runtimes import command
from agent.runtimes.command import Output
from agent.systemd.units import (
    CARRIES,
    RESTART_TIMEOUT,
    STOPS,
    SystemdError,
    Ties,
    Timer,
    Unit,
    masked_message,
)

_SHOWN = ("LoadState", "ActiveState", "SubState", "Result", "InvocationID", "Job", *CARRIES)
_NOT_RUN = range(125, 128)  # exit codes of chroot(1) if it could not run the program
_TIMEOUT = 30.0  # seconds for one program
_NOT_LOADED = 5  # exit code for a unit that does not exist


class Systemctl:
    """`Systemd` by the host's own programs. `env` is added to their environment."""

    def __init__(self, host: HostRoot, env: Mapping[str, str]) -> None:
        self._host = host
        self._env = env

    def unit(self, name: str) -> Unit:
        return _parse(name, self._show(name, _SHOWN))

    def ties(self, name: str) -> Ties:
        properties = _values(self._show(name, (*STOPS, "Restart", "MainPID")))
        pid = properties.get("MainPID", "")
        return Ties(
            bound=tuple(properties.get("BoundBy", "").split()),
            stopped=tuple(other for key in STOPS for other in properties.get(key, "").split()),
            restart=properties.get("Restart", ""),
            main_pid=(int(pid) if re.fullmatch("[0-9]{1,10}", pid) else 0) or None,
        )

    def start(self, name: str) -> None:
        self._run("systemctl", "reset-failed", name)
        done = self._run("systemctl", "start", "--no-block", name)
        if done.code != 0:
            raise SystemdError(f"systemctl start {name}: {_failure(done)}")

    def restart(self, name: str, timeout: float = RESTART_TIMEOUT) -> None:
        # After too many starts systemd would stop a healthy service and not start it again.
        self._run("systemctl", "reset-failed", name)
        done = self._run("systemctl", "restart", name, timeout=timeout)
        if done.code != 0:
            raise SystemdError(f"systemctl restart {name}: {_failure(done)}")

    def start_timer(self, timer: Timer) -> None:
        *before, last = timer.commands
        words = [f"--property=ExecStartPre={'-' * c.may_fail}{' '.join(c.argv)}" for c in before]
        done = self._run(
            "systemd-run", "--quiet", f"--unit={timer.name}", f"--on-active={timer.delay}s",
            "--timer-property=AccuracySec=1s", "--timer-property=RemainAfterElapse=no",
            f"--description={timer.description}", "--property=Type=oneshot", *words, *last.argv,
        )  # fmt: skip
        if done.code != 0:
            raise SystemdError(f"systemd-run {timer.name}: {_failure(done)}")

    def stop(self, name: str) -> None:
        done = self._run("systemctl", "stop", name)
        if done.code not in (0, _NOT_LOADED):
            raise SystemdError(f"systemctl stop {name}: {_failure(done)}")

    def _show(self, name: str, properties: Iterable[str]) -> str:
        """The output of `systemctl show` for a unit. Raises SystemdError."""
        done = self._run("systemctl", "show", f"--property={','.join(properties)}", name)
        if done.code is None or done.code in _NOT_RUN or "connect to" in done.error:
            raise SystemdError(_failure(done))
        return done.out.decode("utf-8", "replace")

    def _run(self, *argv: str, timeout: float = _TIMEOUT) -> Output:
        return command.run(self._host, argv, timeout, env=self._env)


def _failure(done: Output) -> str:
    if done.code is None:
        return done.error or "no answer"
    lines = done.error.strip().splitlines()
    return masked_message(lines[0]) if lines else f"exit code {done.code}"


def _values(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _parse(name: str, text: str) -> Unit:
    """A unit from the output of `systemctl show`."""
    properties = _values(text)
    try:
        invocation = int(properties.get("InvocationID") or "0", 16) or None
    except ValueError:
        invocation = None
    return Unit(
        name=name,
        load=properties.get("LoadState", "loaded"),
        active=properties.get("ActiveState", "active"),
        sub=properties.get("SubState", ""),
        result=properties.get("Result", ""),
        invocation=invocation,
        busy=properties.get("Job", "0") not in ("", "0"),
        carries=tuple(other for key in CARRIES for other in properties.get(key, "").split()),
    )
