"""The management spec: one device `all` with everything that tools of the node itself need.

Invariant: pure in what was found; no NVML. Entries and their order are those of NVIDIA's generator
(pkg/nvcdi v1.20, mode management), so that hooks get the same arguments.
"""

from __future__ import annotations

from agent.cdi.driver.driver import Driver
from agent.cdi.make import driver_edits, transform
from agent.cdi.make.driver_edits import Surroundings
from agent.cdi.model import ContainerEdits, Device, Spec

KIND = "management.nvidia.com/gpu"


def spec(driver: Driver, around: Surroundings, kind: str = KIND) -> Spec:
    """The spec of a driver that is there."""
    common = transform.joined(
        driver_edits.driver_edits(driver, around), ContainerEdits(env=(driver_edits.VOID,))
    )
    edits = ContainerEdits(hooks=around.hooks.folders(node.inside for node in driver.nodes))
    device = Device(transform.ALL, transform.joined(driver_edits.node_edits(driver.nodes), edits))
    return transform.finish(Spec(kind, (device,), common))
