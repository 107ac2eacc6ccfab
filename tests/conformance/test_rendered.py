"""Files that a distribution renders: never edited; what it imports is ours to use."""

from __future__ import annotations

import pytest

from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.conformance.trees import touched
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real


@pytest.mark.parametrize("generation", ["2.1"])
def test_drop_in_outlives_starts_of_rke2(generation: str, runtime: Runtime) -> None:
    """RKE2's file imports a directory beside it: a drop-in there outlives every start."""
    with PrivateNode(runtime, BY_NAME["rke2-v3"]) as node:
        before = checks.observe(node)
        place = node.config_directory / "config-v3.toml.d/99-nvidia.toml"
        option = f"--drop-in-config={place}"
        checks.done(node.agent("apply", option))
        assert {"nvidia", "runhcs-wcow-process"} <= set(node.status().runtimes)
        changed = touched(before.etc, node.tree())
        assert "containerd/config.toml" not in changed
        assert "containerd/config-v3.toml.d/99-nvidia.toml" in changed
        checks.done(node.agent("revert", option))
        checks.node_is_as_before(node, before)


@pytest.mark.parametrize("generation", ["1.7", "2.1"])
def test_no_runtime_config_leaves_a_rendered_file_alone(generation: str, runtime: Runtime) -> None:
    """The way out: what is not ours to change is left alone, and the rest is done."""
    with PrivateNode(runtime, BY_NAME["k0s-v2"]) as node:
        before = checks.observe(node)
        for command in ("plan", "apply"):
            said = node.agent(command)
            checks.tells(command, said, 3, "k0s writes it anew at each start")
            assert "--no-runtime-config" in said.stdout + said.stderr
        assert node.agent("status").returncode == 1
        checks.done(node.agent("apply", "--no-runtime-config"))
        assert (node.validations / "toolkit-ready").exists()
        assert touched(before.etc, node.tree()) == []
        assert node.supervisor.starts == 1


@pytest.mark.parametrize("generation", ["2.1"])
def test_file_that_k0s_no_longer_renders_is_edited(generation: str, runtime: Runtime) -> None:
    """Without its first line k0s leaves the file alone, and it is edited like any other."""
    with PrivateNode(runtime, BY_NAME["k0s-v2"]) as node:
        path = node.etc / "containerd/config.toml"
        path.write_text(path.read_text().replace("# k0s_managed=true\n", ""))
        checks.done(node.agent("apply"))
        assert "nvidia" in node.status().runtimes
