"""Device plugin's strategy, annotation prefix, default runtime and native CDI, every combination.

What a pod gets is told here a second time, from what runtimes and NVIDIA's runtime do: the runtime
injects what is in the CRI's field and behind `cdi.k8s.io/`, if it has CDI switched on; NVIDIA's
runtime injects what a variable names, and what is behind a prefix of its own that its handler
passes on, if it runs the pod.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from agent.doctor.cdi_checks import CHECKS
from agent.doctor.diagnosis import diagnose
from agent.doctor.node import Node
from tests.unit.doctor.test_checks import NO_CDI, default, healthy, plugin

CDI, NVIDIA = "cdi.k8s.io/", "nvidia.cdi.k8s.io/"
STRATEGIES = ("envvar", "cdi-annotations", "cdi-cri", "cdi-annotations,cdi-cri", "envvar,cdi-cri")
CELLS = [*itertools.product(STRATEGIES, (CDI, NVIDIA, "cdi.k8s.io"), (True, False), (True, False))]


def like(directory: Path, strategy: str, prefix: str, native: bool, nvidia_default: bool) -> Node:
    """A node that is like that, and whose NVIDIA runtime answers NVIDIA's prefix."""
    node = healthy(directory)
    plugin(strategy, prefix)(node)
    default("nvidia" if nvidia_default else "runc")(node)
    if not native:
        NO_CDI(node)
    return node


def times(strategy: str, prefix: str, native: bool, default: bool) -> int:
    """How often a pod without a runtime class gets its device. Field and annotation of one device
    count once for a runtime."""
    asked = strategy.split(",")
    annotated = "cdi-annotations" in asked
    by_runtime = native and ("cdi-cri" in asked or (annotated and prefix == CDI))
    by_annotation = default and annotated and prefix == NVIDIA
    by_variable = default and "envvar" in asked
    return by_runtime + (by_annotation or by_variable)


@pytest.mark.parametrize(("strategy", "prefix", "native", "nvidia_default"), CELLS)
def test_pod_without_its_device_is_a_fault(
    tmp_path: Path, strategy: str, prefix: str, native: bool, nvidia_default: bool
) -> None:
    """And a pod that gets it once is none; twice is worth a warning."""
    found = diagnose(like(tmp_path, strategy, prefix, native, nvidia_default), CHECKS).findings
    of = {item.check.id: item.symptom.severity for item in found}
    number = times(strategy, prefix, native, nvidia_default)
    if number == 0:
        assert "fault" in (of.get("cdi-nobody"), of.get("cdi-off")), found
    else:
        assert of.get("cdi-nobody") != "fault", found
    if number == 2 and "envvar" in strategy:
        assert of.get("cdi-twice") == "warning", found
