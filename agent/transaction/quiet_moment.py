"""The wait for a quiet moment, in which the runtime starts no pod.

A restart between CreateContainer and StartContainer leaves a container in CREATED for ever, and its
pod hangs in creation (gpu-operator#991, containerd#10437). A sandbox or a container that is younger
than `YOUNG` belongs to a pod that is still being started; that can be our own pod. A container that
dies because its runtime was restarted too early is restarted again and again (gpu-operator#456).

Invariant: reads only, and delays a restart by `LIMIT` at most. If the runtime does not answer, it
starts no pod, so there is no wait. Restarts that undo a change do not wait.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

from agent.cri import client
from agent.cri.client import PodQuestions
from agent.errors import Refused, Unreachable
from agent.host.paths import HostPath
from agent.plan.context import Context

LIMIT = 30.0  # seconds by which a restart is delayed at most
YOUNG = 2.0  # seconds; a younger container belongs to a pod that is being started
_PAUSE = 0.2  # seconds between two questions
_ENDING = {signal.SIGTERM, signal.SIGINT}
_SHOWN = 5  # names in a log line


def wait(ctx: Context, socket: HostPath, end: float, *, touched: bool) -> None:
    """Wait until the runtime behind `socket` starts no pod, until `end` (a time of `ctx.clock`) at
    most. At that time a warning is logged.

    A signal that would end this process ends the wait: with Refused if files are written already
    (`touched`), so that the caller undoes them, else with SystemExit.
    """
    logged = False
    while (left := end - ctx.clock()) > 0:
        unfinished = _unfinished(socket, left, ctx.wall)
        if not unfinished:
            return
        if not logged:
            ctx.log.info("waiting for a quiet moment", unfinished=unfinished, seconds=round(left))
            logged = True
        if signal.sigpending() & _ENDING:
            if touched:
                raise Refused(
                    "cannot restart the runtime: this agent was told to stop before the restart; "
                    "try again"
                )
            raise SystemExit(128 + signal.SIGTERM)  # the pending signal ends the process first
        ctx.sleep(min(_PAUSE, left))
        if ctx.clock() >= end:
            ctx.log.warning("restart without a quiet moment", unfinished=unfinished, waited=LIMIT)


def _unfinished(socket: HostPath, timeout: float, wall: Callable[[], float]) -> list[str]:
    """As `unfinished_starts`; empty if the runtime does not answer within `timeout` seconds."""
    try:
        with client.pod_questions(socket.agent, socket.host, min(5.0, timeout)) as questions:
            return unfinished_starts(questions, wall())
    except Unreachable:
        return []


def unfinished_starts(questions: PodQuestions, now: float) -> list[str]:
    """The names of the first pods and containers that are being started, for a message. `now` is in
    seconds since the epoch, like the CRI's `created_at`. Raises Unreachable."""
    sandboxes = questions.sandboxes()
    names = {pod.id: f"{pod.namespace}/{pod.name}" for pod in sandboxes}
    dead = {pod.id for pod in sandboxes if not pod.ready}  # no container starts in them
    starting = itertools.chain(
        (
            f"container {item.name} of {names.get(item.sandbox, item.sandbox)}"
            for item in questions.containers()
            if _is_young(item.created, now) or not (item.started or item.sandbox in dead)
        ),
        (f"pod {names[pod.id]}" for pod in sandboxes if _is_young(pod.created, now)),
    )
    return list(itertools.islice(starting, _SHOWN))


def _is_young(created: float, now: float) -> bool:
    """Is the time of creation close to `now`? A time far in the future was noted before the clock
    was set back, and does not count."""
    return abs(now - created) < YOUNG
