"""The proof that pods run on this node and that a CDI device reaches a container.

Invariant: nothing is changed on the node but for pods and a probe spec of our own, which are gone
at the end. What could not be judged is undecided, never a fault. Works on nodes that other tools
configured, too.
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
from agent.verify import devices, injection
from agent.verify.devices import Device
from agent.verify.injection import Injection
from agent.verify.pods import Look, PodRunner, Result, Verdict

_SECONDS = 5.0  # for all calls about one pod
_DEVICE = "device injected"


@dataclass(frozen=True)
class Proof:
    """One proof. `handler` is "" for the default; `what` is to be proven, with the CDI `device`
    if there is one, how it is asked for, and where it is looked for."""

    handler: str
    what: str
    verdict: Verdict
    device: str = ""
    asked_by: str = ""
    seen_in: str = ""


@dataclass(frozen=True)
class Verification:
    """All proofs. `default` is the name of the default runtime; `image` is that of the pods, ""
    if it is not known; `obstacle` is why no pod was tried."""

    runtime: str
    default: str
    image: str = ""
    proofs: tuple[Proof, ...] = ()
    obstacle: str = ""

    @property
    def result(self) -> Result:
        """The worst of all results; a proof that does not apply does not count."""
        if self.obstacle:
            return "undecided"
        results = {proof.verdict.result for proof in self.proofs}
        return next((one for one in ("failed", "undecided") if one in results), "ok")


def verify(settings: Settings, host: HostRoot) -> Verification:
    """Prove it. Raises Unreachable if no runtime answers, Refused if its files cannot be
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
    way = injection.of_node(runtime, published, writes_specs=settings.cdi_output_dir is not None)
    with uninterrupted():  # so that nothing of it is left
        try:
            with devices.device(host, settings.cdi_kind, way) as found:
                proofs = tuple(_proofs(node, runner, way, found))
        finally:
            runner.tidy()
    return Verification(title, default, runner.image, proofs)


def pod_runner(
    host: HostRoot, node: ConfiguredRuntime, words: Iterable[str] = (), seconds: float = _SECONDS
) -> PodRunner | str:
    """What runs pods on this runtime, or why none can be run. Nothing is pulled. `words` are ours,
    and may be shown if the runtime's errors repeat them, like the names of handlers and of their
    programs. `seconds` is the limit for one pod."""
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
        return f"the runtime does not say which images it has ({error.message})"
    return runner


def _proofs(
    node: ConfiguredRuntime, runner: PodRunner, way: Injection, found: Device | Verdict
) -> Iterator[Proof]:
    """The proofs under the default handler ("") and each of NVIDIA's: those that the runtime shows,
    and the one that is published."""
    answer = node.runtime.answer
    shown = (
        n for n in registry.shown_handler_names(answer)[1] if registry.is_shown_as_nvidia(answer, n)
    )
    for handler in ("", *sorted({*shown, way.handler} - {""})):
        looks: tuple[Look, ...] = ()
        if isinstance(found, tuple) and not way.why_not(handler):
            name, effects = found
            requests = (DeviceRequest(name, prefix) for prefix in way.prefixes)
            looks = tuple(Look(asked, effects, start=not way.native) for asked in requests)
        pod, *verdicts = runner.prove(handler, looks)
        yield Proof(handler, "pod runs", pod)
        for look, verdict in zip(looks, verdicts, strict=False):
            yield _device_proof(node, way, handler, look, verdict)
        if isinstance(found, tuple) and not looks:
            yield Proof(handler, _DEVICE, Verdict("not tried", way.why_not(handler)), found[0])
    if isinstance(found, Verdict):
        yield Proof("", _DEVICE, found)


def _device_proof(
    node: ConfiguredRuntime, way: Injection, handler: str, look: Look, verdict: Verdict
) -> Proof:
    silent = verdict.result == "failed" and not verdict.by_runtime
    if silent and (why := way.explained(node, handler)):
        verdict = Verdict("failed", f"{verdict.text}: {why}")
    prefix, seen_in = look.asked.prefix, "a running process" if look.start else "a runtime spec"
    asked_by = f"annotation {prefix}" if prefix else "CRI field"
    what = f"{_DEVICE} by {'annotation' if prefix else asked_by}"
    return Proof(handler, what, verdict, look.asked.device, asked_by, seen_in)
