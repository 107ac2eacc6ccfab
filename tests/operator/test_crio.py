"""Under gpu-operator, on the scripted CRI-O: with CDI handlers, without CDI the hook."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.shapes import BINARIES
from tests.operator import environment as operator
from tests.operator.environment import Bind
from tests.operator.operator_nodes import PROGRAMS, CrioOperatorNode
from tests.operator.pod import Pod
from tests.operator.test_containerd import POD_NAMES

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root: run tests/run as root"),
    pytest.mark.timeout(300),
]

USER = {"RUNTIME_RESTART_MODE": "systemd"}  # as upstream's default for CRI-O
ON = {**operator.ALWAYS, **operator.CDI, **operator.CRIO, **USER}
OFF = {**operator.ALWAYS, **operator.HOOK, **operator.CRIO, **USER}


@pytest.fixture
def node() -> Iterator[CrioOperatorNode]:
    """A running CRI-O; its directory's name is short, because a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="node-") as name, CrioOperatorNode(Path(name)) as node:
        yield node


def binds(node: CrioOperatorNode) -> tuple[Bind, ...]:
    """What the operator mounts; hooks come from a place of the node's own. The scripted systemctl,
    which runs in the host's root, notes its calls."""
    log = str(node.systemctl_log.parent)
    hooks = Bind(str(node.hook.parent), operator.HOOKS.pod)
    return (*operator.CRIO_MOUNTS, hooks, Bind(log, f"/host{log}"))


def program(node: CrioOperatorNode) -> dict[str, str]:
    """A scripted one is a process of Python's: where it really is has to be said."""
    return {"RUNTIME_EXECUTABLE_PATH": str(node.program)}


def test_handlers_go_below_the_host_without_a_mounted_socket(node: CrioOperatorNode) -> None:
    """No socket is mounted: it is found below /host. The file that the operator names is not made;
    a second pod changes nothing."""
    with Pod(node, {**ON, **program(node)}, binds(node)) as pod:
        node.places.validated(operator.DRIVER_CONTAINER)
        pod.until(lambda: bool(node.places.twin()))
        shown = node.handlers()
        for name, binary in BINARIES.items():
            assert shown[name]["runtime_path"] == f"{PROGRAMS}/{binary}"
        assert node.restarts == 1
        assert not (node.etc / "config.toml").exists()
        assert sorted(p.name for p in node.drop_in.parent.iterdir()) == ["99-nvidia.conf"]
        assert not POD_NAMES.search(node.drop_in.read_text("utf-8"))
        values = node.places.twin()
        assert values["TOOLKIT_CRI_SOCKET"] == "/run/crio/crio.sock"
        assert (values["TOOLKIT_NATIVE_CDI"], values["DEVICE_LIST_STRATEGY"]) == ("true", "cdi-cri")
        assert node.places.spec.exists()
        assert not node.places.ready.exists()
        node.places.validate_toolkit()
        pod.until(node.places.refilled)

        before = node.drop_in.stat(), node.places.twin_path.stat()
        assert pod.stop() == 0, pod.said()
        assert node.handlers() == shown
        pod.start()
        pod.rest()
        assert (node.drop_in.stat(), node.places.twin_path.stat()) == before
        assert node.restarts == 1
        assert pod.stop() == 0, pod.said()


def test_hook_goes_into_the_hooks_directory_of_the_host(node: CrioOperatorNode) -> None:
    """CDI off: one file in the hooks directory, under the toolkit's name on the host."""
    before = node.handlers()
    with Pod(node, {**OFF, **program(node)}, binds(node)) as pod:
        node.places.validated(operator.DRIVER_CONTAINER)
        pod.until(lambda: bool(node.places.twin()))
        hook = json.loads(node.hook.read_text("utf-8"))
        assert hook["hook"]["path"] == f"{PROGRAMS}/nvidia-container-runtime-hook"
        assert not node.drop_in.exists()
        assert node.restarts == 0
        assert node.handlers() == before
        values = node.places.twin()
        assert (values["TOOLKIT_RUNTIME_NAME"], values["TOOLKIT_RUNTIME_MODE"]) == ("", "hook")
        assert values["DEVICE_LIST_STRATEGY"] == "envvar"
        assert not node.places.spec.exists()
        assert pod.stop() == 0, pod.said()
