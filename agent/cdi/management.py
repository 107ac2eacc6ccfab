"""The management spec: one device `all` with everything that tools of the node itself need.

Invariant: pure in what was found; no NVML. Entries and their order are those of NVIDIA's generator
(pkg/nvcdi v1.20, mode management), so that hooks get the same arguments.
"""

from __future__ import annotations

from agent.cdi import pipeline, recipe
from agent.cdi.driver import Driver
from agent.cdi.model import ContainerEdits, Device, Spec
from agent.cdi.recipe import Surroundings

KIND = "management.nvidia.com/gpu"


def spec(driver: Driver, around: Surroundings, kind: str = KIND) -> Spec:
    """The spec of a driver that is there."""
    common = pipeline.joined(
        recipe.driver_edits(driver, around), ContainerEdits(env=(recipe.VOID,))
    )
    edits = ContainerEdits(hooks=around.hooks.folders(node.inside for node in driver.nodes))
    device = Device(pipeline.ALL, pipeline.joined(recipe.node_edits(driver.nodes), edits))
    return pipeline.finish(Spec(kind, (device,), common))
