"""WSL2: named in every command, nothing made, and the way out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.hosted import HostedNode
from tests.cli.node import fails, shows
from tests.cli.test_run import running
from tests.conformance import checks
from tests.conformance.trees import contents, snapshot
from tests.tools.driver import make_driver
from tests.tools.kernel import make_node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")

# As `nvidia-ctk cdi generate --mode=wsl` writes it.
_STORE = "/usr/lib/wsl/drivers/nv_dispi.inf_amd64_0123456789abcdef"
_SPEC = f"""\
---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/dxg
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args:
              - nvidia-cdi-hook
              - create-symlinks
              - --link
              - {_STORE}/nvidia-smi::/usr/bin/nvidia-smi
          env: [NVIDIA_CTK_DEBUG=false]
    mounts:
        - hostPath: /usr/lib/wsl/lib/libdxcore.so
          containerPath: /usr/lib/wsl/lib/libdxcore.so
          options: [ro, nosuid, nodev, rbind, rprivate]
        - hostPath: {_STORE}/libcuda.so.1.1
          containerPath: {_STORE}/libcuda.so.1.1
          options: [ro, nosuid, nodev, rbind, rprivate]
"""
_SAYS = "this is WSL2 (/dev/dxg), whose specs are made by `nvidia-ctk cdi generate --mode=wsl`"


class WslNode(HostedNode):
    """A containerd in WSL2, with a Linux driver installed that does nothing, and the spec there."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        make_driver(self.host, nodes=False)
        make_node(self.host / "dev/dxg", 10, 125)
        for name in ("usr/lib/wsl/lib/libdxcore.so", f"{_STORE[1:]}/libcuda.so.1.1"):
            (self.host / name).parent.mkdir(parents=True, exist_ok=True)
            (self.host / name).touch()
        hook = self.host / "usr/bin/nvidia-cdi-hook"
        hook.touch(0o755)
        self.spec = self.host / "etc/cdi/nvidia.yaml"
        self.spec.parent.mkdir(parents=True)
        self.spec.write_text(_SPEC)

    def options(self) -> list[str]:
        """With specs, as by default."""
        return [word for word in super().options() if not word.startswith("--cdi-output-dir")]


@pytest.fixture
def node(place: Path) -> Iterator[WslNode]:
    with WslNode(place) as found:
        yield found


def test_it_is_named(node: WslNode) -> None:
    """No advice that cannot work, no device node, nothing written."""
    before = contents(snapshot(node.host / "dev")), contents(snapshot(node.host / "etc"))
    assert f"apply refuses: cannot make a CDI spec: {_SAYS}" in node.agent("plan").stdout
    for command in ("apply", "cdi generate", "cdi generate --mode=management"):
        result = node.agent(command)
        fails(result, 3, _SAYS, '--cdi-output-dir=""')
        assert "modprobe" not in result.stderr
        assert "kernel module" not in result.stderr
    assert _SAYS in node.agent("status").stdout
    with running(node) as daemon:
        daemon.until(lambda: node.error().get("TOOLKIT_ERROR_CODE") == "NO_DRIVER", 20)
        assert node.ready() is None
    assert (contents(snapshot(node.host / "dev")), contents(snapshot(node.host / "etc"))) == before


def test_way_out(node: WslNode) -> None:
    """With the spec of nvidia-ctk there, the rest of the node can be made right."""
    checks.done(node.agent("cdi validate", str(node.spec)))
    found = shows(node.agent("cdi list", "-o", "json"), "CDIDevices")["devices"]
    assert [one["state"] for one in found if one["name"] == "nvidia.com/gpu=all"] == ["resolvable"]
    checks.done(node.agent("apply", "--cdi-output-dir="))
    assert node.ready() is not None
    assert "nvidia" in node.answer().runtimes
    assert node.spec.read_text() == _SPEC
    assert sorted(path.name for path in (node.host / "dev").iterdir()) == ["dxg"]
