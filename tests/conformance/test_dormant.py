"""Files on which the runtime would not start, while it runs on older ones.

`config dump` accepts all of these, and so does the daemon: it stays alive, and its CRI plugin does
not load. The running containerd knows nothing of it until somebody restarts it. Reported as
containerd#5306 and #4574, and seen again on 1.6.20, 1.7.24 and 2.1.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance import checks
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.conformance.trees import touched
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

_SECTION = 'plugins."io.containerd.grpc.v1.cri"'
_RUNC = f'[{_SECTION}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
_MIRRORS = f'[{_SECTION}.registry.mirrors."docker.io"]\nendpoint = ["https://mirror.example"]\n'
_PATH = f'[{_SECTION}.registry]\nconfig_path = "/etc/containerd/certs.d"\n'


@dataclass(frozen=True)
class Dormant:
    """A setting that is turned down at a start: the keys of the CRI's section, tables besides, and
    what is said of it: containerd's words, and the key whose value it repeats."""

    keys: str
    tables: str
    says: str
    generations: tuple[str, ...] = ("1.6", "1.7")


DORMANT = {
    "mirrors": Dormant("", _RUNC + _PATH + _MIRRORS, "mirrors", ("1.6", "1.7", "2.1")),
    "timeout": Dormant(
        'stream_idle_timeout = "4 hours"\n', _RUNC, "stream_idle_timeout, line 9 of",
        ("1.6", "1.7", "2.1"),
    ),
    "daemon's timeout": Dormant(
        "", _RUNC + '[timeouts]\n"io.containerd.timeout.shim.cleanup" = "5 s x"\n',
        'timeouts."io.containerd.timeout.shim.cleanup", line 12 of', ("1.6", "1.7", "2.1"),
    ),
    "systemd_cgroup": Dormant("systemd_cgroup = true\n", _RUNC, "systemd_cgroup"),
    "engine": Dormant("", _RUNC + 'runtime_engine = "/usr/sbin/runc"\n', "runtime_engine"),
    "all devices": Dormant(
        "", _RUNC + "privileged_without_host_devices_all_devices_allowed = true\n",
        "privileged_without_host_devices", ("1.7", "2.1"),
    ),
}  # fmt: skip
_CELLS = [
    pytest.param(found, generation, id=f"{name}-{generation}")
    for name, found in DORMANT.items()
    for generation in found.generations
]


def text(node: PrivateNode, keys: str = "", tables: str = _RUNC) -> str:
    """A root file of that node with these settings of the CRI."""
    place = node.directory
    return (
        f'version = 2\nroot = "{place}/var/lib/containerd"\nstate = "{place}/run/containerd"\n'
        f'[grpc]\naddress = "{node.socket}"\n[ttrpc]\naddress = "{node.socket}.ttrpc"\n'
        f"[{_SECTION}]\n{keys}{tables}"
    )


def root_of(node: PrivateNode) -> Path:
    """The root file, under the name that tests use."""
    return node.etc / "containerd/config.toml"


def refuses(node: PrivateNode, command: str, *says: str) -> None:
    """It ends with 3 and these words, nothing is written, and the runtime is the same process."""
    before, process = node.whole(), (node.supervisor.pid, node.supervisor.starts)
    result = node.agent(command)
    words = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == (1 if command in ("plan", "status") else 3), checks.said(result)
    for word in says:
        assert word in words, checks.said(result)
    # The lock, and the reason of the refusal, are what it may write.
    wrote = [p for p in touched(before, node.whole()) if not p.startswith(("state", "valid"))]
    assert wrote == [], checks.said(result)
    assert (node.supervisor.pid, node.supervisor.starts) == process
    assert node.supervisor.running


@pytest.mark.parametrize(("dormant", "generation"), _CELLS)
def test_restart_onto_files_that_do_not_load_is_refused(
    dormant: Dormant, generation: str, runtime: Runtime
) -> None:
    """Exit 3 with containerd's words, the key, whose fault it is, and a living runtime. When the
    admin has repaired the file, `apply` does its work as ever."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        root = root_of(node)
        root.write_text(text(node))
        node.restart()
        root.write_text(text(node, dormant.keys, dormant.tables))
        for command in ("plan", "apply", "apply", "status"):
            refuses(node, command, "the file on disk does not load", dormant.says)
        refuses(node, "apply", "was started on an older one", "nothing was changed")

        root.write_text(text(node))
        checks.done(node.agent("apply"))
        assert node.supervisor.starts == 3


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
def test_missing_base_specification_is_refused(generation: str, runtime: Runtime) -> None:
    """The files are those that the runtime runs on; what they name is gone."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        spec = node.etc / "containerd/base.json"
        # An empty one has every device and capability of a container taken away, and is valid.
        spec.write_text('{"ociVersion": "1.0.2", "process": {"cwd": "/"}, "linux": {}}')
        named = f'base_runtime_spec = "{node.config_directory}/base.json"\n'
        root_of(node).write_text(text(node, tables=_RUNC + named))
        node.restart()
        spec.unlink()
        for command in ("plan", "apply"):
            refuses(node, command, "the file on disk does not load", "runc.base_runtime_spec, line")


@pytest.mark.parametrize("generation", ["1.7"])
def test_right_node_is_not_tried(generation: str, runtime: Runtime) -> None:
    """No restart is due: what a start on the files would come to is nobody's business now."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        checks.done(node.agent("apply"))
        root = root_of(node)
        root.write_text(root.read_text() + f'[{_SECTION}.registry.mirrors."a.example"]\n')
        node.restart()
        result = node.agent("plan")
        assert "Tried:" not in result.stdout
