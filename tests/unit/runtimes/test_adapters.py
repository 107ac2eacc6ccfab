"""Every runtime keeps the same contract, also one that nobody but this test knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.cri.client import Answer
from agent.decide import Evidence as Seen
from agent.decide import Question, Switch, decide
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import resolve
from agent.runtimes import registry
from agent.runtimes.base import ConfiguredRuntime, EditRequest, Edits, Endpoint, Runtime
from agent.runtimes.desired_state import is_ours
from agent.state.store import Memory, Original, Store
from agent.toml import document
from agent.toolkit.programs import Binary
from agent.transaction.original_files import inverse_operations
from tests.unit.support import made_up_runtime

PROGRAM = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
ROW_6 = decide(
    Question(True, "containerd", "1.6.20", (Seen("cri-status", Switch.ABSENT, None),), True)
)
# What each says of itself at the start, and a comment of an admin's in its file.
STARTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "containerd": ("1.7.24", "/etc/containerd/config.toml", "# theirs\nversion = 2\n", {
        "containerd": {"defaultRuntimeName": "runc", "runtimes": {
            "runc": {"runtimeType": "io.containerd.runc.v2"}}},
    }),
    "crio": ("1.37.0", "/etc/crio/crio.conf", "# theirs\n[crio.runtime]\n", {
        "crio": {"DefaultRuntime": "crun", "Runtimes": {"crun": {"RuntimePath": "/usr/bin/crun"}}},
    }),
    "made-up": ("1.0.0", made_up_runtime.FILE, "# theirs\n", {"handlers": {}, "default": "runc"}),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """A host with one such runtime."""

    kind: str
    host: HostRoot
    store: Store
    node: ConfiguredRuntime

    def edits(self, node: ConfiguredRuntime | None = None) -> Edits:
        """Return what makes it right by row 6, where NVIDIA's runtime is the default."""
        settings = resolve({}, {}, "toolkit-agent")
        available = (Binary("nvidia", PROGRAM),)
        request = EditRequest(settings, self.store, Memory(), ROW_6, available)
        return (node or self.node).edits(request)[0]

    def after(self) -> ConfiguredRuntime:
        """Return the node with these edits written."""
        for change in self.edits().changes:
            path = Path(change.path.agent)
            path.parent.mkdir(parents=True, exist_ok=True)
            assert change.after is not None
            path.write_bytes(change.after.data)
        return look(self.kind, self.host)


def look(kind: str, host: HostRoot) -> ConfiguredRuntime:
    """Return such a runtime as it is found."""
    version, _, _, config = STARTS[kind]
    (item,) = (item for item in registry.REGISTERED if item.kind == kind)
    socket = HostPath(host.agent_path(item.sockets[0]), item.sockets[0])
    answer = Answer(item.cri_name, version, True, config, ())
    runtime = Runtime(Endpoint(kind, socket), None, answer)
    settings = resolve({}, {}, "toolkit-agent")
    return registry.adapter(kind).configured_runtime(settings, host, runtime)


@pytest.fixture(params=STARTS)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Each kind of runtime on a host of its own."""
    kind = str(request.param)
    monkeypatch.setattr(registry, "REGISTERED", [*registry.REGISTERED, made_up_runtime.REGISTERED])
    _, file, text, _ = STARTS[kind]
    path = tmp_path / "host" / file.lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    host = HostRoot(str(tmp_path / "host"))
    return World(kind, host, Store("/var/lib/toolkit-agent", host), look(kind, host))


def test_adapter_names_its_kind(world: World) -> None:
    """By what it calls itself, and by what options call it."""
    adapter = world.node.adapter
    assert adapter.kind == world.kind
    assert registry.adapter_of(world.node.runtime.answer) is adapter
    assert (world.kind, world.node.runtime.socket.host) in [*registry.sockets("auto")]


def test_default_is_a_handler_and_not_ours(world: World) -> None:
    """Before anything is written, by the files and by what runs."""
    for effective in (world.node.effective(world.node.files), world.node.running()):
        assert effective.default in effective.runtimes
        assert not is_ours(effective.default, effective.table(effective.default))


def test_edits_make_the_files_as_desired(world: World) -> None:
    """The handler calls NVIDIA's program and is the default; a second look finds nothing to do."""
    node = world.after()
    effective = node.effective(node.files)
    assert effective.default == "nvidia"
    assert is_ours("other", effective.table("nvidia"))
    assert world.edits(node).changes == ()


def test_comments_of_others_stay(world: World) -> None:
    """In the file that somebody wrote."""
    node = world.after()
    assert node.root.state is not None
    assert b"# theirs" in node.root.state.data


def test_edits_are_unproven_until_the_runtime_shows_them(world: World) -> None:
    """The running runtime was started on the old files."""
    desired = world.edits().desired
    answer = world.node.runtime.answer
    assert world.node.adapter.unproven(desired, answer)
    assert not world.node.adapter.unproven(replace(desired, handlers={}, default=None), answer)


def test_own_keys_go_again(world: World) -> None:
    """What takes our keys out of each file leaves none of ours in force."""
    node = world.after()
    known = Original(None, 0o644, 0, 0, "")
    overlay = {}
    for file in node.files:
        if file.state is None:
            continue
        ops = inverse_operations(
            node, file.path.host, (file.data, {}), known, switch=True, drop_in_goes=True
        )
        text = document.decoded(file.state.data, file.path.host)
        data = document.encoded(document.edit(text, ops, file.path.host))
        overlay[file.path.host] = replace(file.state, data=data)
    effective = node.effective(node.load(overlay))
    assert not [name for name, table in effective.runtimes.items() if is_ours(name, table)]
    assert not is_ours(effective.default, {})


def test_files_are_watched(world: World) -> None:
    """Those that are loaded, and those of a runtime that does not answer."""
    watched = {*world.node.watch_paths()}
    assert {file.name for file in world.node.files if file.state} <= watched
    settings = resolve({}, {}, "toolkit-agent")
    assert next(world.node.adapter.watch_paths(settings, world.host, None)) in watched


def test_pods_of_the_default_are_judged(world: World) -> None:
    """A pod without a handler is one of the default's."""
    states = world.node.pod_states(world.node.running(), None)
    assert "" in states
    assert world.node.running().runtimes.keys() <= states.keys()
