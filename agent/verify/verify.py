"""The proof that pods run on this node and that a CDI device reaches a container.

Invariant: the only changes on the node are pods and a probe spec of our own, which are removed at
the end. A proof that could not be judged is undecided, never a fault. Works on nodes that other
tools configured, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent import status
from agent.cri.pod_calls import DeviceRequest, pod_calls
from agent.cri.process import boot_id
from agent.errors import Refused, Unreachable
from agent.host import trust
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.plan.context import uninterrupted
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime
from agent.runtimes.desired_state import programs_of
from agent.verify import devices
from agent.verify.devices import Device
from agent.verify.injection import Injection, injection_of
from agent.verify.pods import DeviceTrial, PodRunner, Result, Verdict

_SECONDS = 5.0  # for all calls about one pod
_DEVICE = "device injected"


@dataclass(frozen=True)
class Proof:
    """One proof. `handler` is "" for the default. `what` is the statement to prove. `device` is the
    CDI device, "" for none, with the way in which it was requested and the place where it was
    looked for."""

    handler: str
    what: str
    verdict: Verdict
    device: str = ""
    asked_by: str = ""
    seen_in: str = ""


@dataclass(frozen=True)
class Verification:
    """All proofs on a runtime. `default` is the name of the default handler. `image` is the image
    of the pods, "" if no pod was run; `obstacle` says why."""

    runtime: str
    default: str
    image: str = ""
    proofs: tuple[Proof, ...] = ()
    obstacle: str = ""

    @property
    def result(self) -> Result:
        """The worst result. A proof that was not tried does not count."""
        if self.obstacle:
            return "undecided"
        results = {proof.verdict.result for proof in self.proofs}
        return next((result for result in ("failed", "undecided") if result in results), "ok")


def verify(settings: Settings, host: HostRoot) -> Verification:
    """Make all proofs. Raises Unreachable if no runtime answers, Refused if its files cannot be
    read."""
    runtime = find.find_runtime(settings, host)
    node = registry.adapter(runtime.kind).configured_runtime(settings, host, runtime)
    title = f"{runtime.answer.name} {runtime.version}"
    default = registry.shown_handler_names(runtime.answer)[0] or ""
    runner = pod_runner(host, node)
    if isinstance(runner, str):
        return Verification(title, default, obstacle=runner)
    published: Mapping[str, str] = {}
    with contextlib.suppress(Refused):
        directory = trust.system_name(host, settings.status_dir)
        published = status.read_valid(host, directory, boot_id())
    injection = injection_of(runtime, published, writes_specs=settings.cdi_output_dir is not None)
    with uninterrupted():  # so that pods and spec are removed
        try:
            with devices.device(host, settings.cdi_kind, injection) as found:
                proofs = tuple(_proofs(node, runner, injection, found))
        finally:
            runner.tidy()
    return Verification(title, default, runner.image, proofs)


def pod_runner(
    host: HostRoot, node: ConfiguredRuntime, words: Iterable[str] = (), seconds: float = _SECONDS
) -> PodRunner | str:
    """A runner of pods on this runtime, or the reason why no pod can be run. No image is pulled.
    `words` are names of ours that errors of the runtime may show, as well as names of handlers and
    of their programs. `seconds` is the limit for all calls about one pod."""
    runtime, socket = node.runtime, node.runtime.socket
    image = node.sandbox_image()
    if image is None:
        return "the sandbox image is not known"
    known = [image, *words]
    tables = registry.adapter(runtime.kind).shown_handlers(runtime.answer)[1] or {}
    for name, table in tables.items():
        known += [name, *programs_of(table)]
    runner = PodRunner(
        image=image,
        drivers=node.cgroup_drivers(),
        default=registry.shown_handler_names(runtime.answer)[0] or "",
        proc=host.proc,
        open=lambda *more: pod_calls(socket.agent, socket.host, (*known, *more), seconds),
    )
    try:
        with runner.open() as calls:
            if not calls.has_image(image):
                return f"the sandbox image {image} is not on this node, and nothing is pulled"
    except Unreachable as error:
        return f"the runtime does not list its images ({error.message})"
    return runner


def _proofs(
    node: ConfiguredRuntime, runner: PodRunner, injection: Injection, device: Device | Verdict
) -> Iterator[Proof]:
    """The proofs under the default handler ("") and under each handler of NVIDIA's that the runtime
    shows or that is published."""
    answer = node.runtime.answer
    shown = (
        n for n in registry.shown_handler_names(answer)[1] if registry.is_shown_as_nvidia(answer, n)
    )
    for handler in ("", *sorted({*shown, injection.handler} - {""})):
        trials: tuple[DeviceTrial, ...] = ()
        if isinstance(device, tuple) and not injection.why_not(handler):
            name, effects = device
            requests = (DeviceRequest(name, prefix) for prefix in injection.prefixes)
            trials = tuple(
                DeviceTrial(request, effects, start=not injection.native) for request in requests
            )
        pod, *verdicts = runner.prove(handler, trials)
        yield Proof(handler, "pod runs", pod)
        for trial, verdict in zip(trials, verdicts, strict=False):
            yield _device_proof(node, injection, handler, trial, verdict)
        if isinstance(device, tuple) and not trials:
            yield Proof(
                handler, _DEVICE, Verdict("not tried", injection.why_not(handler)), device[0]
            )
    if isinstance(device, Verdict):
        yield Proof("", _DEVICE, device)


def _device_proof(
    node: ConfiguredRuntime,
    injection: Injection,
    handler: str,
    trial: DeviceTrial,
    verdict: Verdict,
) -> Proof:
    silent = verdict.result == "failed" and not verdict.by_runtime
    if silent and (why := injection.failure_cause(node, handler)):
        verdict = Verdict("failed", f"{verdict.text}: {why}")
    prefix, seen_in = trial.request.prefix, "a running process" if trial.start else "a runtime spec"
    asked_by = f"annotation {prefix}" if prefix else "CRI field"
    what = f"{_DEVICE} by {'annotation' if prefix else asked_by}"
    return Proof(handler, what, verdict, trial.request.device, asked_by, seen_in)
