"""A socket without a usable runtime behind it gives exit code 4 or a refusal."""

from __future__ import annotations

import socket as sockets
import stat
from concurrent.futures import ThreadPoolExecutor

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, tells
from tests.conformance import checks
from tests.conformance.trees import touched


def never_answers(node: CliNode, *names: str) -> None:
    """Both commands end with 4 before long; they wait at the same time."""
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(node.agent, ("plan", "apply")))
    for result in results:
        fails(result, 4, str(node.socket), *names)
    tells(node, 4, "RUNTIME_UNREACHABLE", str(node.socket))


def test_runtime_that_never_answers_takes_readiness_away(node: CliNode) -> None:
    """Readiness goes, the files stay; when it answers again, readiness is back."""
    checks.done(node.agent("apply"))
    before, ready = node.tree(), node.ready()
    node.script(silent=True)
    never_answers(node, "no answer in time")
    assert touched(before, node.tree()) == []
    assert node.ready() is None
    node.script()
    checks.done(node.agent("apply"))
    assert node.ready()
    assert ready
    assert touched(before, node.tree()) == []
    assert node.supervisor.starts == 2


def test_socket_that_nobody_serves_exits_with_4(node: CliNode) -> None:
    """Somebody listens and says nothing at all."""
    node.socket = node.directory / "deaf.sock"
    before = node.tree()
    with sockets.socket(sockets.AF_UNIX) as server:
        server.bind(str(node.socket))
        server.listen()
        never_answers(node)
    refuses(node, Refusal(4, "refused", "RUNTIME_UNREACHABLE"))
    assert touched(before, node.tree()) == []


def test_file_in_the_place_of_a_socket_exits_with_4(node: CliNode) -> None:
    """A plain file, a directory, nothing: exit 4 at once."""
    node.socket = node.directory / "other.sock"
    refuses(node, Refusal(4, "other.sock", "RUNTIME_UNREACHABLE"))
    node.socket.touch()
    refuses(node, Refusal(4, "it is not a socket", "RUNTIME_UNREACHABLE"))
    assert stat.S_ISREG(node.socket.stat().st_mode)
    node.socket.unlink()
    node.socket.mkdir()
    refuses(node, Refusal(4, "it is not a socket", "RUNTIME_UNREACHABLE"))


def test_runtime_with_the_cri_off_exits_with_4(node: CliNode) -> None:
    """UNIMPLEMENTED means that the CRI is off: exit 4, and it says so."""
    node.script(unimplemented=True)
    refuses(node, Refusal(4, "does not serve CRI", "CRI_UNIMPLEMENTED"))
    result = node.agent("revert")
    checks.done(result)  # nothing was ever applied, so nothing needs the runtime


def test_unknown_runtime_is_refused(node: CliNode) -> None:
    """What answers is neither containerd nor CRI-O."""
    node.script(runtime_name="other")
    refuses(node, Refusal(4, "other", "RUNTIME_UNREACHABLE"))


def test_other_runtime_than_asked_for_is_refused(node: CliNode) -> None:
    """A containerd behind the socket that CRI-O was asked for."""
    refuses(node, Refusal(3, str(node.socket), early=True), "--runtime=crio")
