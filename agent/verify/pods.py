"""Run a pod on the running runtime, look at it and remove it.

Invariant: a pod that was made is removed, whatever happens; those of interrupted runs are removed
by a later one. A pod that somebody else removed meanwhile proves nothing: the kubelet does that
with pods that it does not know, every two seconds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from agent.cri.client import Rejected, Unimplemented
from agent.cri.pod_calls import DeviceRequest, PodCalls
from agent.errors import Unreachable
from agent.verify import judge
from agent.verify.judge import Effects

if TYPE_CHECKING:
    from agent._cri import api_pb2

Result = Literal["ok", "failed", "undecided", "not tried"]

LEFT_OVER = 60.0  # seconds after which an object of ours is one of an interrupted run
_TRIES = 4  # pods, until one is not removed by somebody else
_STOPPING = 0.2  # seconds until a pod that is being stopped is listed as such
_EXEC = 2.0  # seconds until the process of a container is the program of its image
_SYSTEMD_PARENT = "system.slice"  # systemd makes no cgroup without a slice above it


@dataclass(frozen=True)
class Verdict:
    """A result, and for each but "ok" its reason; `by_runtime`: in the runtime's own words."""

    result: Result
    text: str = ""
    by_runtime: bool = False


class _Gone(Exception):
    """Somebody else has stopped or removed the pod."""


@dataclass(frozen=True)
class Look:
    """A container with a device. `expected` is what it gets with it. `start`: it is run, and judged
    by its process; otherwise it is only created, and judged by its runtime spec."""

    asked: DeviceRequest
    expected: Effects
    start: bool


@dataclass(frozen=True)
class PodRunner:
    """Runs pods from an image that is on the node.

    `drivers` says by what each handler makes cgroups; `default` is the default handler, from which
    others inherit that. `open` opens calls to the runtime, and takes names that errors may show.
    `proc` is the host's /proc. `made` are the uids of the pods that were made."""

    image: str
    drivers: Mapping[str, str]
    default: str
    proc: str
    open: Callable[..., AbstractContextManager[PodCalls]]
    made: set[str] = field(default_factory=set)

    def prove(self, handler: str, looks: Sequence[Look] = ()) -> list[Verdict]:
        """Does a pod run under this handler ("": the default), and if so, does a container in it
        get each device? The verdict on the pod, then one for each look, if the pod ran."""
        failed = False
        for _ in range(_TRIES):
            try:
                verdicts = self._in_pod(handler, looks)
                # A failure counts if it is seen twice: the first pod may be about to be removed.
                if failed or all(verdict.result != "failed" for verdict in verdicts):
                    return verdicts
                failed = True
            except _Gone:
                continue
            except Rejected as error:
                if failed:
                    return [Verdict("failed", error.words, by_runtime=True)]
                failed = True
            except Unimplemented:
                return [Verdict("undecided", "the runtime does not run pods for us")]
            except Unreachable as error:
                return [Verdict("undecided", error.message)]
        return [Verdict("undecided", "something removes each pod before it can be looked at")]

    def _in_pod(self, handler: str, looks: Sequence[Look]) -> list[Verdict]:
        """As `prove`. The pod is removed before this returns. Raises _Gone if somebody else did
        that, Rejected if no pod runs, and Unreachable."""
        driver = self.drivers.get(handler) or self.drivers.get(self.default)
        parent = _SYSTEMD_PARENT if driver == "systemd" else ""
        uid = os.urandom(16).hex()
        self.made.add(uid)
        known = (look.asked.device for look in looks)
        with self.open(*known) as calls:
            pod, config = calls.run(uid, handler, parent)
            try:
                return [Verdict("ok"), *(self._look(calls, pod, config, look) for look in looks)]
            finally:
                _remove(calls, pod)

    def _look(
        self, calls: PodCalls, pod: str, config: api_pb2.PodSandboxConfig, look: Look
    ) -> Verdict:
        try:
            container = calls.create(pod, config, self.image, look.asked)
            if look.start:
                calls.start(container)
                verdict = self._process_verdict(calls.container_info(container), look.expected)
            else:
                found = judge.of_runtime_spec(calls.container_info(container).get("runtimeSpec"))
                verdict = _verdict(judge.problem(look.expected, found))
        except Rejected as error:
            verdict = Verdict("failed", error.words, by_runtime=True)
        if verdict.result != "ok":
            time.sleep(_STOPPING)
            if not any(other.id == pod and other.ready for other in calls.pods()):
                raise _Gone
        return verdict

    def _process_verdict(self, info: Mapping[str, object], expected: Effects) -> Verdict:
        """The verdict on a running container. Until its process is the program of the image, it is
        still the OCI runtime's."""
        pid = info.get("pid")
        if not isinstance(pid, int) or pid <= 1:
            return Verdict("undecided", "the runtime does not tell the pid of the container")
        end = time.monotonic() + _EXEC
        while True:
            found = _of_process(f"{self.proc}/{pid}", expected)
            if found is None:
                return Verdict("undecided", f"process {pid} of the container cannot be seen")
            text, late = judge.problem(expected, found), time.monotonic() >= end
            if late and _is_starting(f"{self.proc}/{pid}"):
                return Verdict("undecided", "the process of the container was not started in time")
            if not text or late:
                return _verdict(text)
            time.sleep(0.02)

    def tidy(self) -> None:
        """Remove every pod of ours that is left, of this run and of interrupted ones."""
        with contextlib.suppress(Unreachable), self.open() as calls:
            for pod in calls.pods():
                if pod.uid in self.made or pod.created < time.time() - LEFT_OVER:
                    _remove(calls, pod.id)


def _verdict(problem: str) -> Verdict:
    return Verdict("failed", problem) if problem else Verdict("ok")


def _remove(calls: PodCalls, pod: str) -> None:
    """Remove a pod. What cannot be removed now is tried again by `tidy`."""
    with contextlib.suppress(Unreachable):
        calls.remove(pod)


def _is_starting(process: str) -> bool:
    """Is a process still the OCI runtime's, as `runc init`?"""
    try:
        with open(f"{process}/cmdline", "rb") as file:
            return file.read(1 << 12).split(b"\0")[1:2] == [b"init"]
    except OSError:
        return True


def _of_process(process: str, expected: Effects) -> Effects | None:
    """What a process has, as far as it is looked for; None if it has ended, or may not be
    read."""
    try:
        with open(f"{process}/environ", "rb") as file:
            words = os.fsdecode(file.read(1 << 20)).split("\0")
        with open(f"{process}/mountinfo", "rb") as file:
            lines = os.fsdecode(file.read(1 << 20)).splitlines()
    except OSError:
        return None
    mounts = [parts[4] for line in lines if len(parts := line.split(" ")) > 4]
    nodes = [path for path in expected.nodes if os.path.lexists(f"{process}/root{path}")]
    return Effects(tuple(words), tuple(nodes), tuple(mounts))
