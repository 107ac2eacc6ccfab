"""Runs a pod on the running runtime, examines it and removes it.

Invariant: every pod that was made is removed, also after an error; a later run removes the pods of
interrupted runs. A pod that another program removed meanwhile proves nothing: the kubelet removes
unknown pods every two seconds.
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

LEFT_OVER = 60.0  # seconds; older objects of ours are from interrupted runs
_TRIES = 4  # pods; the kubelet may remove the first ones
_STOPPING = 0.2  # seconds until a stopping pod is listed as not ready
_EXEC = 2.0  # seconds until a container's process has executed the program of the image
_SYSTEMD_PARENT = "system.slice"  # systemd requires a parent slice


@dataclass(frozen=True)
class Verdict:
    """A result; `text` is the reason for a result other than "ok". `by_runtime`: the text is the
    runtime's."""

    result: Result
    text: str = ""
    by_runtime: bool = False


class _Gone(Exception):
    """Another program has stopped or removed the pod."""


@dataclass(frozen=True)
class DeviceTrial:
    """A container that requests a device. `expected` are the effects of the device. `start`: the
    container is run and judged by its process; otherwise it is only created and judged by its
    runtime spec."""

    request: DeviceRequest
    expected: Effects
    start: bool


@dataclass(frozen=True)
class PodRunner:
    """Runs pods from an image that is on the node.

    `drivers` are the cgroup drivers of the handlers; a handler without one has that of the handler
    `default`. `open` opens calls to the runtime; its arguments are names that error messages may
    show. `proc` is the host's /proc. `made` are the uids of the pods that were made.
    """

    image: str
    drivers: Mapping[str, str]
    default: str
    proc: str
    open: Callable[..., AbstractContextManager[PodCalls]]
    made: set[str] = field(default_factory=set)

    def prove(self, handler: str, trials: Sequence[DeviceTrial] = ()) -> list[Verdict]:
        """Run a pod under the handler ("" means the default), and try each device in it. Gives the
        verdict on the pod, and if the pod ran, one verdict for each trial."""
        failed = False
        for _ in range(_TRIES):
            try:
                verdicts = self._in_pod(handler, trials)
                # A failure must be seen twice, because the kubelet may be removing the first pod.
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
        return [Verdict("undecided", "another program removes each pod before it can be examined")]

    def _in_pod(self, handler: str, trials: Sequence[DeviceTrial]) -> list[Verdict]:
        """As `prove`, in one pod, which is removed before this returns. Raises _Gone if another
        program removed the pod, Rejected if the pod does not run, and Unreachable."""
        driver = self.drivers.get(handler) or self.drivers.get(self.default)
        parent = _SYSTEMD_PARENT if driver == "systemd" else ""
        uid = os.urandom(16).hex()
        self.made.add(uid)
        known = (trial.request.device for trial in trials)
        with self.open(*known) as calls:
            pod, config = calls.run(uid, handler, parent)
            try:
                return [
                    Verdict("ok"),
                    *(self._try_device(calls, pod, config, trial) for trial in trials),
                ]
            finally:
                _remove(calls, pod)

    def _try_device(
        self, calls: PodCalls, pod: str, config: api_pb2.PodSandboxConfig, trial: DeviceTrial
    ) -> Verdict:
        try:
            container = calls.create(pod, config, self.image, trial.request)
            if trial.start:
                calls.start(container)
                verdict = self._process_verdict(calls.container_info(container), trial.expected)
            else:
                found = judge.effects_of_runtime_spec(
                    calls.container_info(container).get("runtimeSpec")
                )
                verdict = _verdict(judge.problem(trial.expected, found))
        except Rejected as error:
            verdict = Verdict("failed", error.words, by_runtime=True)
        if verdict.result != "ok":
            time.sleep(_STOPPING)
            if not any(other.id == pod and other.ready for other in calls.pods()):
                raise _Gone
        return verdict

    def _process_verdict(self, info: Mapping[str, object], expected: Effects) -> Verdict:
        """The verdict on a running container. Its process is that of the OCI runtime at first, so
        this waits until it has executed the image's program."""
        pid = info.get("pid")
        if not isinstance(pid, int) or pid <= 1:
            return Verdict("undecided", "the runtime does not show the container's pid")
        end = time.monotonic() + _EXEC
        while True:
            found = _process_effects(f"{self.proc}/{pid}", expected)
            if found is None:
                return Verdict("undecided", f"process {pid} of the container cannot be seen")
            text, late = judge.problem(expected, found), time.monotonic() >= end
            if late and _is_starting(f"{self.proc}/{pid}"):
                return Verdict("undecided", "the process of the container was not started in time")
            if not text or late:
                return _verdict(text)
            time.sleep(0.02)

    def tidy(self) -> None:
        """Remove all remaining pods of this run and of interrupted runs."""
        with contextlib.suppress(Unreachable), self.open() as calls:
            for pod in calls.pods():
                if pod.uid in self.made or pod.created < time.time() - LEFT_OVER:
                    _remove(calls, pod.id)


def _verdict(problem: str) -> Verdict:
    return Verdict("failed", problem) if problem else Verdict("ok")


def _remove(calls: PodCalls, pod: str) -> None:
    """Remove a pod. After a failure `tidy` tries again."""
    with contextlib.suppress(Unreachable):
        calls.remove(pod)


def _is_starting(process: str) -> bool:
    """Does a process still run the OCI runtime (`runc init`)?"""
    try:
        with open(f"{process}/cmdline", "rb") as file:
            return file.read(1 << 12).split(b"\0")[1:2] == [b"init"]
    except OSError:
        return True


def _process_effects(process: str, expected: Effects) -> Effects | None:
    """Variables and mounts of a process, and those of the expected device nodes that it has; None
    if it has ended or cannot be read."""
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
