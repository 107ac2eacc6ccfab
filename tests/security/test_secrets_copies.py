"""Where a password of the runtime's configuration lies, at each moment of a change.

The attacker reads what an ordinary user, or a container with the state directory, can read. What
must hold: besides the file itself, the password is in the one remembered original that `revert`
needs (0600, in a directory with 0700). While a change is in progress it is also in the undo file
beside it and in the next content, with the file's own mode; a killed process leaves no more than
that, and the next command removes it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode
from tests.conformance.private_node import PrivateNode
from tests.conformance.shapes import BY_NAME
from tests.conformance.test_dormant import root_of, text
from tests.doubles.containerd.sample import handler
from tests.doubles.crio.crio_node import CrioNode
from tests.security.planted import holders, output
from tests.tools.runtimes import Runtime

SECRET = "zqcdfghj88"  # noqa: S105 (what must not be shown)
_SECTION = 'plugins."io.containerd.grpc.v1.cri"'
_RUNC = f'[{_SECTION}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
_AUTH = (
    f'# the password is {SECRET}\n[{_SECTION}.registry.configs."r.example".auth]\n'
    f'username = "u"\npassword = "{SECRET}"\n'
)


def copies(node: PrivateNode) -> dict[str, int]:
    """Files below the node's directory that have the secret, but the runtime's own."""
    own = ("run/", "var/", node.supervisor.log.name)
    found = dict(holders(node.directory, SECRET.encode()))
    return {name: mode for name, mode in found.items() if not name.startswith(own)}


def elsewhere(node: PrivateNode) -> list[str]:
    """Files with the secret outside of it, where programs leave temporary ones."""
    inside = node.inside(
        ["grep", "-rslF", "--devices=skip", SECRET, "/run", "/dev/shm", "/var/tmp"]
    )
    names = inside.stdout.split()
    tops = [p for p in Path("/tmp").iterdir() if p.name.startswith("toolkit-agent")]
    names += [name for top in tops if top.is_dir() for name, _ in holders(top, SECRET.encode())]
    return [name for name in names if "containerd" not in name]


ROOT = "etc/containerd/config.toml"


def check(node: PrivateNode, *, changed: bool) -> None:
    """The file, and the one original where it was changed."""
    found = copies(node)
    assert found.pop(ROOT) == 0o600
    originals = [name for name in found if name.startswith("state/originals/")]
    assert len(originals) == changed
    assert all(found.pop(name) == 0o600 for name in originals)
    assert found == {}
    assert elsewhere(node) == []
    if (node.directory / "state").exists():
        for directory in ("state", "state/originals"):
            assert (node.directory / directory).stat().st_mode & 0o777 == 0o700


def secret_node(node: PrivateNode) -> None:
    """Write the file with the secret, large enough for every cache, and start the runtime on it."""
    mirrors = "".join(
        f'[{_SECTION}.registry.mirrors."m{number}.example"]\nendpoint = ["https://m{number}"]\n'
        for number in range(400)
    )
    root_of(node).write_text(text(node, tables=_RUNC + _AUTH + mirrors))
    root_of(node).chmod(0o600)
    node.restart()


@pytest.mark.real
@pytest.mark.parametrize("generation", ["1.7", "2.1"])
def test_no_command_leaves_a_readable_copy(generation: str, runtime: Runtime) -> None:
    """plan, apply, apply again, status, an edit and apply, revert."""
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        secret_node(node)
        for command, code, changed in (
            ("plan", 1, False), ("plan -o json", 1, False), ("apply", 0, True),
            ("apply -o json", 0, True), ("status", 0, True), ("plan -o yaml", 0, True),
            ("revert -o json", 0, False),
        ):  # fmt: skip
            result = node.agent(command)
            assert result.returncode == code, output(result)
            assert SECRET not in output(result)
            check(node, changed=changed)


@pytest.mark.real
@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("generation", ["1.7", "2.1"])
def test_killed_command_leaves_no_readable_copy(
    command: str, generation: str, runtime: Runtime, seed: str
) -> None:
    """At some steps: nothing that others can read, and the next command tidies up."""
    chance = random.Random(seed)  # noqa: S311
    with PrivateNode(runtime, BY_NAME["kubeadm-v2"]) as node:
        secret_node(node)
        log = node.directory.parent / f"{node.directory.name}-steps"
        try:
            if command == "revert":
                assert node.agent("apply").returncode == 0
            for kill_at in sorted(chance.sample(range(1, 60), 4)):
                node.agent_in_steps(command, log=log, kill_at=kill_at)
                assert {*copies(node).values()} == {0o600}
                assert elsewhere(node) == []
                node.settle()
            other = "revert" if command == "apply" else "apply"
            for last in (command, other, command):
                result = node.agent(last)
                assert result.returncode == 0, output(result)
                check(node, changed=last == "apply")
        finally:
            log.unlink(missing_ok=True)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """Other steps for each test."""
    return str(request.node.name)


def test_failed_change_leaves_no_readable_copy(tmp_path: Path) -> None:
    """The runtime does not prove the change: it is undone, and remembered as failed."""
    auth = 'plugins."io.containerd.cri.v1.images".registry.configs.r.auth'
    with CliNode(tmp_path) as node:
        node.write(handler("runc", node.section) + f'\n[{auth}]\npassword = "{SECRET}"\n')
        node.config.chmod(0o600)
        node.restart()
        node.script(drop_handler=True)
        result = node.agent("apply", "--proof-timeout=2")
        assert result.returncode == 5, output(result)
        assert SECRET not in output(result)
        assert (node.state / "failed.json").exists()
        assert dict(holders(tmp_path, SECRET.encode())).keys() - {"etc/config.toml"} == set()


def test_drop_in_with_an_inherited_environment_is_not_readable(tmp_path: Path) -> None:
    """Handlers inherit `monitor_env`: who cannot read it cannot read our drop-in."""
    env = f'monitor_env = ["A={SECRET}"]\n'
    text = f"{env}[crio.runtime.runtimes.crun]\n{env}"
    with CrioNode(tmp_path, "1.37.0", text) as node:
        node.config.chmod(0o600)
        result = node.agent("plan", "-o", "json")
        assert SECRET not in output(result)
        result = node.agent("apply")
        assert result.returncode == 0, output(result)
        found = dict(holders(tmp_path, SECRET.encode()))
        assert "etc/crio/crio.conf.d/99-nvidia.conf" in found, found
        assert set(found.values()) == {0o600}, found
        assert SECRET not in output(result)
