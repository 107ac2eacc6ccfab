"""The quiet moment: a runtime is restarted while it is making no pod.

A restart between CreateContainer and StartContainer leaves a container in CREATED for ever, and a
pod that hangs in its creation (gpu-operator#991, containerd#10437). A sandbox or a container that
is a second old is a pod that is still being made, our own pod included: a container that dies with
a runtime restarted too early is started over and over (gpu-operator#456).

Invariant: reads only, and delays a restart by `LIMIT` at most. A runtime that does not answer makes
no pod, so that nobody waits for it. Restarts that undo a change do not wait.
"""

from __future__ import annotations

import itertools
import signal

from agent.cri import client
from agent.cri.client import PodQuestions
from agent.errors import Refused, Unreachable
from agent.host.paths import HostPath
from agent.plan.context import Context

LIMIT = 30.0  # seconds that a restart is delayed at most
YOUNG = 2.0  # seconds; what is younger is part of a pod that is being made
_PAUSE = 0.2  # seconds between two looks
_ENDING = {signal.SIGTERM, signal.SIGINT}
_SHOWN = 5  # names in a line of the log


def wait(ctx: Context, socket: HostPath, end: float, *, touched: bool) -> None:
    """Wait until the runtime behind `socket` is making no pod, at the latest until `end` (by
    `ctx.clock`), and say in the log if it still is.

    A signal that would end this process ends the wait. Where files are written already (`touched`)
    it raises Refused, and they are to be undone.
    """
    told = False
    while (left := end - ctx.clock()) > 0:
        found = _unfinished(ctx, socket, left)
        if not found:
            return
        if not told:
            ctx.log("waiting for a quiet moment", unfinished=found, seconds=round(left))
            told = True
        if signal.sigpending() & _ENDING:
            if touched:
                raise Refused("cannot restart the runtime: told to stop before it; try again")
            raise SystemExit(128 + signal.SIGTERM)  # the signal itself ends us on the way out
        ctx.sleep(min(_PAUSE, left))
        if ctx.clock() >= end:
            text = "the runtime is restarted although it is creating pods: "
            ctx.log("warning", text=f"{text}{', '.join(found)} after {LIMIT:.0f} s of waiting")


def _unfinished(ctx: Context, socket: HostPath, timeout: float) -> list[str]:
    """Pods and containers that are being made, in words; [] where the runtime does not answer."""
    try:
        with client.pod_questions(socket.agent, socket.host, min(5.0, timeout)) as questions:
            return being_made(questions, ctx.wall())
    except Unreachable:
        return []


def being_made(questions: PodQuestions, now: float) -> list[str]:
    """What is being made at `now` (seconds since the epoch, the clock of the CRI's `created_at`),
    in words, at most a few. Raises Unreachable."""
    sandboxes = questions.sandboxes()
    names = {pod.id: f"{pod.namespace}/{pod.name}" for pod in sandboxes}
    dead = {pod.id for pod in sandboxes if not pod.ready}  # nothing is started in them any more
    found = itertools.chain(
        (
            f"container {item.name} of {names.get(item.sandbox, item.sandbox)}"
            for item in questions.containers()
            if _is_young(item.created, now) or not (item.started or item.sandbox in dead)
        ),
        (f"pod {names[pod.id]}" for pod in sandboxes if _is_young(pod.created, now)),
    )
    return list(itertools.islice(found, _SHOWN))


def _is_young(created: float, now: float) -> bool:
    """A time that is far ahead is one of before the clock was put back: it says nothing."""
    return abs(now - created) < YOUNG
