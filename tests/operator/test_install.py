"""Under gpu-operator, from the image's own toolkit to a node that had none."""

from __future__ import annotations

import tomllib

import pytest

from tests.doubles.toolkit.source import make_sources
from tests.operator import environment as operator
from tests.operator.environment import Bind
from tests.operator.operator_nodes import PROGRAMS, OperatorNode
from tests.operator.pod import Pod
from tests.operator.test_containerd import ON, POD_NAMES, right
from tests.sampling import sampled_params
from tests.tools.runtimes import Runtime

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


class BareNode(OperatorNode):
    """A node without NVIDIA's toolkit; `artifacts` is what the image has of it."""

    TOOLKIT = False

    @property
    def artifacts(self) -> Bind:
        """Where the image has it."""
        return Bind(str(self.directory / "artifacts"), "/artifacts")


@pytest.mark.parametrize("generation", sampled_params(["1.6", "2.1"], 1, __name__))
def test_toolkit_of_the_image_is_installed_where_handlers_look(
    generation: str, runtime: Runtime
) -> None:
    """It is installed where the handlers look for it, with a config.toml for this row and this
    driver, under the host's names; a second pod installs nothing."""
    with BareNode(runtime) as node:
        make_sources(node.directory / "artifacts")
        with Pod(node, ON, (*operator.CONTAINERD_MOUNTS, node.artifacts)) as pod:
            node.places.validated(operator.DRIVER_CONTAINER)
            right(node, pod, 2)
            text = node.output("cat", f"{PROGRAMS}/.config/nvidia-container-runtime/config.toml")
            config = tomllib.loads(text)
            runtime_of = config["nvidia-container-runtime"]
            assert runtime_of["mode"] == "cdi"
            assert runtime_of["modes"]["cdi"]["default-kind"] == "management.nvidia.com/gpu"
            prefixes = runtime_of["modes"]["cdi"]["annotation-prefixes"]
            assert ("cdi.k8s.io/" in prefixes) == (generation == "1.6")
            assert config["nvidia-container-cli"]["root"] == "/run/nvidia/driver"
            assert not POD_NAMES.search(text.replace(str(runtime.runc.parent), ""))
            listing = f"{PROGRAMS} -printf '%P %i %m %T@\\n'"
            tree = node.output("sh", "-c", f"find {listing} | sort")
            assert "nvidia-container-runtime.real" in tree
            assert pod.stop() == 0, pod.said()
            pod.start()
            pod.rest()
            assert node.output("sh", "-c", f"find {listing} | sort") == tree
            assert pod.stop() == 0, pod.said()
