"""How devices are to reach the containers of this node.

Invariant: reads only. What is published counts, because the device plugin follows it. If nothing
is published, what the runtime shows counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.decide import MODES_WITHOUT_CDI, Decision, Question, decide
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime, Runtime


@dataclass(frozen=True)
class Injection:
    """The way of devices into containers.

    `native`: the runtime itself injects. `evident` is the decision by what the runtime shows now.
    `prefixes` has the prefix of an annotation for each way to ask, "" for the CRI's field.
    `spec_dirs` are where the specs are read. `handler` is the published name of ours, "" for none.
    `default_injects`: is the default runtime meant to? `has_driver`: the decision was published
    with a driver, so there are devices. `unusual` is why no container can get a device here; it
    is "" if one can."""

    native: bool
    evident: Decision
    prefixes: tuple[str, ...]
    spec_dirs: tuple[str, ...]
    handler: str = ""
    default_injects: bool = True
    has_driver: bool = False
    unusual: str = ""

    def why_not(self, handler: str) -> str:
        """Why no device is tried under this handler ("": the default); "" if one is tried."""
        if self.unusual or self.native:
            return self.unusual
        if handler.endswith("legacy"):
            return "GPUs come by environment variable in this handler"
        if not handler and not self.default_injects:
            return "the default runtime is not to inject, by option"
        return ""

    def explained(self, node: ConfiguredRuntime, handler: str) -> str:
        """Why a device did not reach a container under this handler, as far as configuration shows
        it; "" if it does not."""
        if self.native:
            off = not self.evident.native
            return f"the runtime injects no CDI devices ({self.evident.reason})" if off else ""
        answer, prefix = node.runtime.answer, next(iter(self.prefixes), "")
        if not handler and not registry.shows_nvidia(answer):
            return (
                f"the runtime injects no CDI devices ({self.evident.reason}), and its default "
                "handler is not NVIDIA's"
            )
        if not node.passes_annotation(node.running(), prefix):
            return f"no handler passes annotations {prefix}* on (container_annotations)"
        return f"nvidia-container-runtime does not answer {prefix} (annotation-prefixes)"


def of_node(runtime: Runtime, published: Mapping[str, str], *, writes_specs: bool) -> Injection:
    """The injection on this node. `published` are the lines of the status file, none if nothing
    valid is published. `writes_specs`: the options ask this agent for CDI specs."""
    answer, values = runtime.answer, published
    evidence = registry.adapter(runtime.kind).evidence(answer)
    evident = decide(Question(True, answer.name, answer.version, evidence, may_enable=False))
    if not values:
        prefix = "" if evident.cri_field else evident.annotation_prefix or ""
        return Injection(bool(evident.native), evident, (prefix,), evident.spec_dirs)
    native = values.get("TOOLKIT_NATIVE_CDI") == "true"
    strategy = values.get("DEVICE_LIST_STRATEGY", "").split(",")
    by_field = ("",) if native and "cdi-cri" in strategy else ()
    prefix = values.get("CDI_ANNOTATION_PREFIX", "")
    by_annotation = (prefix,) if prefix and (not native or "cdi-annotations" in strategy) else ()
    mode, unusual = values.get("TOOLKIT_RUNTIME_MODE", ""), ""
    if values.get("TOOLKIT_CDI_ENABLED") != "true":
        unusual = "CDI is off by option; GPUs come by environment variable"
    elif not native and mode in MODES_WITHOUT_CDI:
        unusual = f"nvidia-container-runtime reads no annotations in mode {mode}"
    published_dirs = tuple(filter(None, values.get("TOOLKIT_CDI_SPEC_DIRS", "").split(",")))
    return Injection(
        native,
        evident,
        (*by_field, *by_annotation),
        evident.spec_dirs if native else published_dirs,
        values.get("TOOLKIT_RUNTIME_NAME", ""),
        default_injects=values.get("TOOLKIT_RUNTIME_IS_DEFAULT") == "true",
        has_driver="NVIDIA_DRIVER_ROOT" in values and writes_specs,
        unusual=unusual,
    )
