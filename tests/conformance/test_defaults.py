"""Nodes whose default runtime is NVIDIA's, or cannot run pods: what else happens to them.

The matrix tries `apply` and `revert`; this is about edits in between, other rows, other places.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME, Shape
from tests.conformance.trees import contents, touched
from tests.sampling import by_run, sample
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

_SHAPES = (
    "aks-v2", "data-volume-v2", "data-volume-v2-merged", "eks-v3", "empty-runc-v2",
    "empty-runc-v2-merged", "installer-v2", "installer-v3", "linux-engine-v2",
    "linux-shim-default-v1", "linux-shim-plugin-v2", "linux-shim-v1", "runc-is-nvidia-v2",
    "runc-is-nvidia-v3", "runc-v1-nvidia-v3", "sole-nvidia-v2",
)  # fmt: skip
_CELLS = [(BY_NAME[name], generation) for name in _SHAPES for generation in BY_NAME[name].cells]
_EDIT = '\n# by the admin\n[debug]\n  level = "info" # for the ticket\n'


def cells(count: int, name: str) -> list[object]:
    """Some of them; all in a long run."""
    return [
        pytest.param(shape, generation, id=f"{shape.name}-{generation}")
        for shape, generation in sample(_CELLS, by_run(count, len(_CELLS)), name)
    ]


def settings(node: PrivateNode) -> dict[str, object]:
    """What each file says, by its name; of one that says nothing, nothing."""
    found = {path: tomllib.loads(path.read_text()) for path in node.etc.rglob("*.toml")}
    return {str(path.relative_to(node.etc)): data for path, data in found.items() if data}


@pytest.mark.parametrize(("shape", "generation"), cells(4, "edits"))
def test_keep_edits_takes_out_our_keys_only(
    shape: Shape, generation: str, runtime: Runtime
) -> None:
    """Where somebody edited a file since, our keys go, the default that we set included, and what
    we made or took away for it; the edit stays."""
    with PrivateNode(runtime, shape) as node:
        original, answer = settings(node), node.status()
        was = {path: path.read_bytes() for path in node.etc.rglob("*.toml")}
        checks.done(node.agent("apply"))
        edited = [path for path, data in was.items() if path.read_bytes() != data]
        for path in edited:
            path.write_text(path.read_text() + _EDIT)
            name = str(path.relative_to(node.etc))
            original[name] = {**tomllib.loads(was[path].decode()), "debug": {"level": "info"}}
        assert edited
        checks.refused(node.agent("revert"), 3, "--keep-edits")
        checks.done(node.agent("revert", "--keep-edits"))
        assert settings(node) == original
        assert all(path.read_text().count("# by the admin") == 1 for path in edited)
        assert node.status() == answer


@pytest.mark.parametrize(("shape", "generation"), cells(4, "rows"))
def test_node_is_as_before_after_other_rows(
    shape: Shape, generation: str, runtime: Runtime
) -> None:
    """Asked for another row and back, the node is as it was after the first `apply`, and the
    original can still be had."""
    with PrivateNode(runtime, shape) as node:
        before, answer = node.tree(), node.status()
        checks.done(node.agent("apply"))
        first = node.status()
        checks.done(node.agent("apply", "--set-as-default=true"))
        assert node.status().default == "nvidia"
        checks.done(node.agent("apply"))
        assert node.status() == first
        right = node.whole()
        checks.done(node.agent("apply"))
        assert touched(right, node.whole()) == []
        checks.done(node.agent("revert"))
        assert contents(node.tree()) == contents(before)
        assert node.status() == answer


class VolumeNode(PrivateNode):
    """A node whose containerd is started on a file of a data volume, beside a decoy in etc."""

    @property
    def volume(self) -> Path:
        """The directory of the file that counts."""
        return self.directory / "opt/site/containerd"

    @property
    def decoy(self) -> Path:
        """The file that nobody reads."""
        return self.etc / "containerd/config.toml"

    def write_config(self) -> None:
        """Move what the shape has, and leave a decoy."""
        super().write_config()
        self.volume.mkdir(parents=True, exist_ok=True)
        self.decoy.replace(self.volume / "config.toml")
        self.decoy.write_text('version = 2\nroot = "/var/lib/containerd"\n')

    def _containerd(self) -> list[str]:
        return [str(self.runtime.executable), "--config", str(self.volume / "config.toml")]

    def _options(self) -> list[str]:
        return [item for item in super()._options() if "drop-in-config" not in item]


@pytest.mark.parametrize("generation", ["1.7", "2.1"])
def test_configuration_of_the_process_is_the_one_edited(generation: str, runtime: Runtime) -> None:
    """Only the file behind the process is edited, and the drop-in lies beside it."""
    with VolumeNode(runtime, BY_NAME["data-volume-v2"]) as node:
        etc, root = node.tree(), (node.volume / "config.toml").read_bytes()
        checks.done(node.agent("apply"))
        answer = node.status()
        assert (answer.default, answer.cdi) == ("runc", True)
        assert answer.runtimes["runc"]["options"]["SystemdCgroup"] is True
        assert answer.runtimes["runc"]["baseRuntimeSpec"].endswith("base-runtime-spec.json")
        assert touched(etc, node.tree()) == []
        made = {str(p.relative_to(node.volume)) for p in node.volume.rglob("*") if p.is_file()}
        drop_in = {"conf.d/99-nvidia.toml"} if generation == "2.1" else set()
        assert made == {"config.toml"} | drop_in
        checks.done(node.agent("revert"))
        assert (node.volume / "config.toml").read_bytes() == root
        assert touched(etc, node.tree()) == []


@pytest.mark.parametrize("generation", ["1.7", "2.1"])
def test_sandbox_under_our_name_stays(generation: str, runtime: Runtime) -> None:
    """It stays what it is: refused, also by `status`; with another name for ours it is not touched,
    and nothing is taken over from it."""
    with PrivateNode(runtime, BY_NAME["gvisor-nvidia-v2"]) as node:
        (node.toolkit.parent / "config.toml").write_text("")
        before, answer = node.tree(), node.status()
        shown = json.loads(node.agent("status", "-o", "json").stdout)
        assert "sandbox" in shown["problem"]
        options = ("--runtime-name=gpu",)
        checks.done(node.agent("apply", *options))
        after = node.status()
        assert {name: after.runtimes[name] for name in answer.runtimes} == answer.runtimes
        gpu = after.runtimes["gpu"]
        assert gpu["runtimeType"] == "io.containerd.runc.v2"
        assert not gpu["PodAnnotations"]
        assert set(gpu["options"]) == {"BinaryName"}
        assert after.default == "runc"
        config = (node.toolkit / ".config/nvidia-container-runtime/config.toml").read_text()
        assert "runsc" not in config
        right = node.whole()
        checks.done(node.agent("apply", *options))
        assert touched(right, node.whole()) == []
        checks.done(node.agent("revert", *options))
        assert contents(node.tree()) == contents(before)
        assert node.status() == answer
