"""The proof that pods run on this node and that a CDI device reaches a container.

Invariant: nothing is changed on the node but for pods and a probe spec of our own, which are gone
at the end. What could not be judged is undecided, never a fault. Works on nodes that other tools
configured, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from agent.cri.pod_calls import DeviceRequest, pod_calls
from agent.errors import Unreachable
from agent.host.paths import HostRoot
from agent.plan.context import Context, uninterrupted
from agent.runtimes import find, registry
from agent.runtimes.base import ConfiguredRuntime, Runtime
from agent.runtimes.desired_state import programs_of
from agent.verify import devices, injection
from agent.verify.devices import Found
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


def verify(ctx: Context) -> Verification:
    """Prove it. Raises Unreachable if no runtime answers, Refused if its files cannot be
    read."""
    runtime = find.find_runtime(ctx.settings, ctx.host)
    node = registry.adapter(runtime.kind).look(ctx.settings, ctx.host, runtime)
    title = f"{runtime.answer.name} {runtime.version}"
    default = registry.shown(runtime.answer)[0] or ""
    runner = pod_runner(ctx.host, runtime, node)
    if isinstance(runner, str):
        return Verification(title, default, obstacle=runner)
    with uninterrupted():  # so that nothing of it is left
        try:
            proofs = tuple(_proofs(ctx, node, runner))
        finally:
            runner.tidy()
    return Verification(title, default, runner.image, proofs)


def pod_runner(
    host: HostRoot, runtime: Runtime, node: ConfiguredRuntime, words: tuple[str, ...] = (),
    seconds: float = _SECONDS,
) -> PodRunner | str:  # fmt: skip
    """What runs pods on this runtime, or why none can be run. Nothing is pulled. `words` are ours,
    and may be shown if the runtime's errors repeat them. `seconds` is the limit for one pod."""
    image = node.sandbox_image(host)
    if image is None:
        return "the sandbox image is not known"
    words = (image, *words, *_own_words(runtime))
    socket = runtime.socket
    runner = PodRunner(
        image=image,
        drivers=node.cgroup_drivers(),
        default=registry.shown(runtime.answer)[0] or "",
        proc=host.proc,
        open=lambda *known: pod_calls(socket.agent, socket.host, (*words, *known), seconds),
    )
    try:
        with runner.open() as calls:
            if not calls.has_image(image):
                return f"the sandbox image {image} is not on this node, and nothing is pulled"
    except Unreachable as error:
        return f"the runtime does not say which images it has ({error.message})"
    return runner


def _own_words(runtime: Runtime) -> Iterator[str]:
    """The names of handlers and their programs, which the runtime's errors repeat."""
    tables = registry.adapter(runtime.kind).shown_handlers(runtime.answer)
    for name, table in tables.items() if isinstance(tables, dict) else ():
        yield str(name)
        yield from programs_of(table) if isinstance(table, dict) else ()


def _proofs(ctx: Context, node: ConfiguredRuntime, runner: PodRunner) -> Iterator[Proof]:
    way = injection.of_node(ctx, node.runtime)
    with devices.device(ctx, way) as found:
        for handler in _handlers(node.runtime, way):
            looks: tuple[Look, ...] = ()
            if isinstance(found, Found):
                looks = _looks(way, handler, found)
            pod, *verdicts = runner.prove(handler, looks)
            yield Proof(handler, "pod runs", pod)
            for look, verdict in zip(looks, verdicts, strict=False):
                yield _device_proof(node, way, handler, look, verdict)
            if isinstance(found, Found) and not looks:
                verdict = Verdict("not tried", way.why_not(handler))
                yield Proof(handler, _DEVICE, verdict, found.name)
        if isinstance(found, Verdict):
            yield Proof("", _DEVICE, found)


def _looks(way: Injection, handler: str, found: Found) -> tuple[Look, ...]:
    """The containers to try under a handler, one for each way to ask."""
    if way.why_not(handler):
        return ()
    requests = (DeviceRequest(found.name, prefix) for prefix in way.prefixes)
    return tuple(Look(asked, found.effects, start=not way.native) for asked in requests)


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


def _handlers(runtime: Runtime, way: Injection) -> tuple[str, ...]:
    """The default ("") and each handler of NVIDIA's: those that the runtime shows, and the one that
    is published."""
    is_nvidia = partial(registry.is_shown_as_nvidia, runtime.answer)
    names = (way.handler, *filter(is_nvidia, registry.shown(runtime.answer)[1]))
    return ("", *sorted(set(filter(None, names))))
