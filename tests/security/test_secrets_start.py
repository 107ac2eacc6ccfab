"""A password in a value that only a start of the runtime finds wrong.

The steps: containerd runs; its file is edited so that the next start fails, with a password in the
value that is at fault and in all others. containerd says the value in its log. What must hold: no
output of any command, no log line, no status file and nothing in the state directory has it; the
key is named; the exit code is 3, and the runtime is the same process.
"""

from __future__ import annotations

import pytest

from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.conformance.test_dormant import root_of, text
from tests.security.planted import holders, output
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

SECRET = "zqbcdfgh77"  # noqa: S105 (what must not be shown)
_SECTION = 'plugins."io.containerd.grpc.v1.cri"'
_RUNC = f'[{_SECTION}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
# The fault with its key in the message; and secrets in places that are no fault.
_BESIDE = (
    f'[{_SECTION}.registry.configs."u:{SECRET}@r.example".auth]\npassword = "{SECRET}" # {SECRET}\n'
    f'[proxy_plugins.x]\ntype = "snapshot"\naddress = "/run/{SECRET}.sock"\n'
)
FAULTS = {
    "timeout": (f'stream_idle_timeout = "{SECRET}"\n', "", "stream_idle_timeout, line"),
    "timeouts": ("", f'[timeouts]\n"io.containerd.timeout.shim.cleanup" = "5 s {SECRET}"\n',
                 '"io.containerd.timeout.shim.cleanup", line'),
    "snapshotter": (f'containerd.snapshotter = "{SECRET}"\n', "", "snapshotter, line"),
    "spec": ("", f'base_runtime_spec = "/etc/{SECRET}/a.json"\n', "base_runtime_spec, line"),
}  # fmt: skip


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_start_is_reported_without_secrets(fault: str, runtime: Runtime) -> None:
    """plan, apply and status, for a person and for a program."""
    keys, below, named = FAULTS[fault]
    if fault == "snapshotter" and runtime.generation == "2.1":
        pytest.skip("2.1 takes it from another section, and starts")
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        root = root_of(node)
        root.write_text(text(node))
        node.restart()
        process = (node.supervisor.pid, node.supervisor.starts)
        root.write_text(text(node, keys, _RUNC + below + _BESIDE))
        root.chmod(0o600)
        said = []
        for command in ("plan", "plan -o json", "apply", "apply -o yaml", "status -o json"):
            result = node.agent(command)
            assert result.returncode == (3 if "apply" in command else 1), output(result)
            assert SECRET not in output(result)
            said.append(output(result).replace('\\"', '"'))
        assert all(named in words for words in said), said
        assert (node.supervisor.pid, node.supervisor.starts) == process
        for directory in (node.validations, node.directory / "state"):
            assert list(holders(directory, SECRET.encode())) == []
        told = (node.validations / ".toolkit-ctr-error").read_text()
        assert named.strip('"').partition('"')[0].partition(",")[0] in told


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
def test_revert_to_files_that_end_the_runtime_is_refused(generation: str, runtime: Runtime) -> None:
    """`config dump` accepts it, and a restart would end the runtime: promise 1."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        root = root_of(node)
        root.write_text(text(node))
        node.restart()
        assert node.agent("apply").returncode == 0
        bad = f'\n[timeouts]\n"io.containerd.timeout.shim.cleanup" = "5 s {SECRET}"\n'
        root.write_text(root.read_text() + bad)
        process, before = (node.supervisor.pid, node.supervisor.starts), node.tree()
        result = node.agent("revert", "--keep-edits")
        assert result.returncode == 3, output(result)
        assert SECRET not in output(result)
        assert "io.containerd.timeout.shim.cleanup" in output(result)
        assert (node.supervisor.pid, node.supervisor.starts) == process
        assert node.tree() == before
