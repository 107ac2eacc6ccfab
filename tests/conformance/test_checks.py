"""The checks of the matrix themselves: a node made right by hand passes, each damage is found."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest

from tests.conformance import checks, statusfile
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BINARIES, BY_NAME, HOOK, ROW3
from tests.tools.runtimes import Runtime

pytestmark = [pytest.mark.real, pytest.mark.parametrize("generation", ["2.1"])]

_SHAPE = BY_NAME["kubeadm-v3"]
_CRI = "plugins.'io.containerd.cri.v1.runtime'"


@dataclass(frozen=True)
class Damage:
    """A replacement in one of the two files of a right node, and the check that must fail."""

    file: str
    pattern: str
    by: str
    fails: str


_ROOT, _DROP_IN = "config.toml", "99-nvidia.toml"
DAMAGES = {
    "comment": Damage(_ROOT, " # since the move.*", "", "comments of"),
    "order": Damage(_ROOT, r"(.*snapshotter = .*\n)(.*\n)", r"\2\1", "lines of"),
    "setting": Damage(
        _ROOT, "snapshotter = 'native'", "snapshotter = 'overlayfs'", "other settings"
    ),
    "inherited": Damage(_DROP_IN, "SystemdCgroup = true", "", "inherited by"),
    "binary": Damage(_DROP_IN, "BinaryName = '", "BinaryName = '/old", "binary of"),
    "spelling": Damage(_DROP_IN, "BinaryName", "binaryName = '/old'\nBinaryName", "binary of"),
    "annotations": Damage(
        _DROP_IN,
        "runtime_type",
        "container_annotations = ['cdi.k8s.io/*']\nruntime_type",
        "annotations of",
    ),
    "default": Damage(
        _DROP_IN, r"\Z", f"[{_CRI}.containerd]\ndefault_runtime_name = 'nvidia'", "default"
    ),
    "cdi": Damage(_DROP_IN, r"\Z", f"[{_CRI}]\nenable_cdi = false", "enableCDI"),
}


def make_right(node: PrivateNode, damage: Damage | None) -> None:
    """Do by hand what the agent does, with a damage or without, and publish."""
    directory = node.etc / "containerd"
    root = (directory / _ROOT).read_text("utf-8")
    line = f'imports = ["{directory}/conf.d/99-nvidia*.toml"]\n'
    files = {_ROOT: root.replace("version = 3\n", "version = 3\n" + line), _DROP_IN: drop_in(node)}
    if damage:
        text = re.sub(damage.pattern, damage.by, files[damage.file], count=1)
        assert text != files[damage.file]
        files[damage.file] = text
    (directory / "conf.d").mkdir()
    (directory / _ROOT).write_text(files[_ROOT], "utf-8")
    (directory / "conf.d" / _DROP_IN).write_text(files[_DROP_IN], "utf-8")
    node.restart()
    answer, hook = node.status(), node.toolkit / HOOK
    values = dict(statusfile.expected(ROW3, answer, node.socket, hook, node.driver))
    values |= {
        "TOOLKIT_TIMESTAMP": str(int(time.time())),
        "TOOLKIT_CONFIG_HASH": "sha256:" + "0" * 64,
    }
    text = "".join(f"{key}={values[key]}\n" for key in statusfile.ORDER)
    for name in (statusfile.READY, statusfile.TWIN):
        (node.validations / name).write_text(text, "ascii")


def drop_in(node: PrivateNode) -> str:
    """The drop-in of a right node."""
    lines = ["version = 3"]
    for name, binary in BINARIES.items():
        lines += [
            f"[{_CRI}.containerd.runtimes.{name}]",
            "runtime_type = 'io.containerd.runc.v2'",
            f"[{_CRI}.containerd.runtimes.{name}.options]",
            f"BinaryName = '{node.toolkit / binary}'",
            "SystemdCgroup = true",
        ]
    return "\n".join([*lines, ""])


def test_a_right_node_passes(generation: str, runtime: Runtime) -> None:
    """And its status file is found to be wrong when one value is."""
    with PrivateNode(runtime, _SHAPE) as node:
        before = checks.observe(node)
        make_right(node, None)
        checks.node_is_right(node, ROW3, before)
        for name in (statusfile.READY, statusfile.TWIN):
            path = node.validations / name
            path.write_text(path.read_text().replace("NATIVE_CDI=true", "NATIVE_CDI=false"))
        with pytest.raises(AssertionError):
            checks.node_is_right(node, ROW3, before)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damage_is_found(damage: Damage, generation: str, runtime: Runtime) -> None:
    """Each by the check that is there for it."""
    with PrivateNode(runtime, _SHAPE) as node:
        before = checks.observe(node)
        make_right(node, damage)
        with pytest.raises(AssertionError, match=damage.fails):
            checks.node_is_right(node, ROW3, before)
