"""How devices should reach the containers of this node.

Invariant: reads only. The published decision counts, because the device plugin follows it. Without
one, the evidence of the runtime counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.decide import MODES_WITHOUT_CDI, Decision, Question, decide
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime, Runtime


@dataclass(frozen=True)
class Injection:
    """How devices get into containers.

    `native`: the runtime itself injects. `current` is the decision that the runtime's present
    evidence gives. `prefixes` are the ways to request a device: the prefix of an annotation, or ""
    for the CRI's field. `spec_dirs` are the directories from which specs are read. `handler` is the
    name of our published handler, "" for none. `default_injects`: should the default runtime
    inject? `has_driver`: the decision was published with a driver, so there should be GPUs.
    `unavailable` says why no container can get a CDI device here; "" if one can.
    """

    native: bool
    current: Decision
    prefixes: tuple[str, ...]
    spec_dirs: tuple[str, ...]
    handler: str = ""
    default_injects: bool = True
    has_driver: bool = False
    unavailable: str = ""

    def why_not(self, handler: str) -> str:
        """Why no device is tried under this handler ("" means the default); "" if one is tried."""
        if self.unavailable or self.native:
            return self.unavailable
        if handler.endswith("legacy"):
            return "this handler injects GPUs by environment variable"
        if not handler and not self.default_injects:
            return "an option keeps the default runtime from injecting"
        return ""

    def failure_cause(self, node: ConfiguredRuntime, handler: str) -> str:
        """Why a device does not reach containers under this handler, if the configuration shows a
        cause; else ""."""
        if self.native:
            off = not self.current.native
            return f"the runtime injects no CDI devices ({self.current.reason})" if off else ""
        answer, prefix = node.runtime.answer, next(iter(self.prefixes), "")
        if not handler and not registry.shows_nvidia(answer):
            return (
                f"the runtime injects no CDI devices ({self.current.reason}), and its default "
                "handler is not NVIDIA's"
            )
        if not node.passes_annotation(node.running(), prefix):
            return f"no handler passes annotations {prefix}* on (container_annotations)"
        return f"nvidia-container-runtime does not answer {prefix} (annotation-prefixes)"


def injection_of(
    runtime: Runtime, published: Mapping[str, str], *, writes_specs: bool
) -> Injection:
    """The injection on this node. `published` has the lines of the status file, and is empty if no
    valid one is published. `writes_specs`: this agent writes CDI specs."""
    answer, values = runtime.answer, published
    evidence = registry.adapter(runtime.kind).evidence(answer)
    current = decide(Question(True, answer.name, answer.version, evidence, may_enable=False))
    if not values:
        prefix = "" if current.cri_field else current.annotation_prefix or ""
        return Injection(bool(current.native), current, (prefix,), current.spec_dirs)
    native = values.get("TOOLKIT_NATIVE_CDI") == "true"
    strategy = values.get("DEVICE_LIST_STRATEGY", "").split(",")
    by_field = ("",) if native and "cdi-cri" in strategy else ()
    prefix = values.get("CDI_ANNOTATION_PREFIX", "")
    by_annotation = (prefix,) if prefix and (not native or "cdi-annotations" in strategy) else ()
    mode, unavailable = values.get("TOOLKIT_RUNTIME_MODE", ""), ""
    if values.get("TOOLKIT_CDI_ENABLED") != "true":
        unavailable = "an option disables CDI; GPUs are injected by environment variable"
    elif not native and mode in MODES_WITHOUT_CDI:
        unavailable = f"nvidia-container-runtime reads no annotations in mode {mode}"
    published_dirs = tuple(filter(None, values.get("TOOLKIT_CDI_SPEC_DIRS", "").split(",")))
    return Injection(
        native,
        current,
        (*by_field, *by_annotation),
        current.spec_dirs if native else published_dirs,
        values.get("TOOLKIT_RUNTIME_NAME", ""),
        default_injects=values.get("TOOLKIT_RUNTIME_IS_DEFAULT") == "true",
        has_driver="NVIDIA_DRIVER_ROOT" in values and writes_specs,
        unavailable=unavailable,
    )
