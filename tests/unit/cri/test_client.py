"""A question to a runtime has an answer or an error within its time."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.cri import client
from agent.cri.client import Sandbox, Unimplemented
from agent.errors import Unreachable
from tests.doubles.containerd.double_node import DoubleNode
from tests.doubles.containerd.sample import SECTIONS, handler

NAME = "/run/name.sock"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleNode]:
    """One scripted containerd 2.1 for all; each test scripts it anew."""
    node = DoubleNode(tmp_path_factory.mktemp("n"), "2.1.9")
    node.write(handler("nvidia", SECTIONS[3]))
    with node.run():
        node.wait()
        yield node


def ask(node: DoubleNode, timeout: float = 5.0) -> client.Answer:
    """Ask it."""
    return client.ask(str(node.socket), NAME, timeout)


def sandboxes(node: DoubleNode) -> tuple[Sandbox, ...]:
    """Ask it for its pods."""
    with client.pod_questions(str(node.socket), NAME) as questions:
        return questions.sandboxes()


def test_answer_has_name_version_configuration_and_handlers(node: DoubleNode) -> None:
    """Name, version with its suffix, readiness, the parsed configuration, handlers in order."""
    node.script()
    answer = ask(node)
    assert (answer.name, answer.version) == ("containerd", "2.1.9+unknown")
    assert answer.ready
    assert answer.config is not None
    assert answer.config["enableCDI"] is True
    assert answer.handlers == ("", "nvidia", "runc")


def test_network_that_is_not_ready_is_not_ours(node: DoubleNode) -> None:
    """The double's network never is; only RuntimeReady counts."""
    node.script(runtime_ready=False)
    assert not ask(node).ready
    node.script()
    assert ask(node).ready


def test_handlers_are_listed_without_verbose_information(node: DoubleNode) -> None:
    """A runtime that sends no `info` has no configuration, but still lists its handlers."""
    node.script(no_verbose=True)
    answer = ask(node)
    assert answer.config is None
    assert answer.handlers == ("", "nvidia", "runc")


def test_unserved_cri_is_an_error_of_its_own(node: DoubleNode) -> None:
    """Told apart, with the place to look for the cause; the exit code is that of unreachable."""
    node.script(unimplemented=True)
    with pytest.raises(Unimplemented, match=rf"^cannot use {NAME}: it does not serve CRI v1") as t:
        ask(node)
    assert t.value.exit_code == 4
    with pytest.raises(Unimplemented):
        sandboxes(node)


def test_silent_runtime_ends_in_time(node: DoubleNode) -> None:
    """The deadline is the call's own."""
    node.script(silent=True)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=rf"^cannot reach {NAME}: no answer in time"):
        ask(node, 0.3)
    assert time.monotonic() - began < 4  # the usual deadline is 5 s


def test_socket_that_never_accepts_ends_in_time(tmp_path: Path) -> None:
    """No handshake either."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        began = time.monotonic()
        with pytest.raises(Unreachable, match=rf"^cannot reach {NAME}: "):
            client.ask(str(tmp_path / "s"), NAME, 0.3)
        assert time.monotonic() - began < 4  # the usual deadline is 5 s


def test_error_of_a_starting_runtime_is_unreachable(node: DoubleNode) -> None:
    """containerd 1.6 says UNKNOWN until its server is there: not the same as having no CRI."""
    node.script(fail_first=1000000, fail_code="UNKNOWN")
    with pytest.raises(Unreachable, match="server is not initialized yet") as told:
        ask(node)
    assert not isinstance(told.value, Unimplemented)


@pytest.mark.parametrize("make", [Path.touch, lambda _: None])
def test_missing_listener_fails_at_once(make: object, tmp_path: Path) -> None:
    """At once, not after the deadline."""
    assert callable(make)
    make(tmp_path / "s")
    began = time.monotonic()
    with pytest.raises(Unreachable, match=rf"^cannot reach {NAME}: "):
        client.ask(str(tmp_path / "s"), NAME, 60)
    assert time.monotonic() - began < 20


def test_pods_are_listed_with_their_handlers(node: DoubleNode) -> None:
    """An empty handler is the default."""
    node.script(pods=[{"name": "a", "namespace": "n", "handler": "nvidia"},
                      {"name": "b", "ready": False}])  # fmt: skip
    found = sandboxes(node)
    assert [(p.namespace, p.name, p.handler, p.ready) for p in found] == [
        ("n", "a", "nvidia", True),
        ("default", "b", "", False),
    ]
    assert isinstance(found[0], Sandbox)


def test_containers_are_listed_with_what_only_the_runtime_knows(node: DoubleNode) -> None:
    """Each with its pod and its annotations; nothing of one that has gone meanwhile."""
    pod = {"name": "a", "handler": "nvidia", "annotations": {"x/y": "z"}, "env": ["A=b"],
           "binary": "/opt/nvidia"}  # fmt: skip
    node.script(pods=[pod, {"name": "b", "bare": True}])
    with client.pod_questions(str(node.socket), NAME) as questions:
        first, second = questions.sandboxes()
        (found,) = questions.containers()
        assert (found.sandbox, found.name, found.attempt) == (first.id, "main", 0)
        assert found.annotations == {"x/y": "z"}
        assert questions.sandbox_info(first.id)["runtimeOptions"] == {"binary_name": "/opt/nvidia"}
        assert "A=b" in questions.container_info(found.id)["runtimeSpec"]["process"]["env"]
        node.script()
        assert questions.sandbox_info(second.id) == questions.container_info(found.id) == {}


def test_all_questions_about_pods_share_one_time(node: DoubleNode) -> None:
    """However many there are, the last one ends in time."""
    node.script(pods=[{"name": "a"}])
    began = time.monotonic()
    with client.pod_questions(str(node.socket), NAME, 1.0) as questions:
        (pod,) = questions.sandboxes()
        time.sleep(1.1)
        with pytest.raises(Unreachable, match="no answer in time"):
            questions.sandbox_info(pod.id)
    assert time.monotonic() - began < 4


def test_answer_of_16_mib_is_read(node: DoubleNode) -> None:
    """gRPC itself takes no more than 4 MiB; the kubelet takes 16."""
    name = "p" * 100_000
    node.script(pods=[{"name": f"{name}{number}"} for number in range(60)])
    found = sandboxes(node)
    assert [pod.name for pod in found] == [f"{name}{number}" for number in range(60)]


def test_each_question_has_a_channel_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that has seen a restart stays blind for more than a second."""
    opened, make = [], grpc.insecure_channel

    def opening(target: str, **keywords: Any) -> grpc.Channel:
        opened.append(target)
        return make(target, **keywords)

    monkeypatch.setattr(grpc, "insecure_channel", opening)
    node = DoubleNode(tmp_path, "1.7.24")
    with node.run() as supervisor:
        node.wait()
        ask(node)
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait_until(lambda s: s.starts == 2)
        node.wait()
        opened.clear()
        answer = ask(node)
        assert len(opened) == 1
    assert answer.version == "1.7.24~ds1"
    assert answer.handlers == ()  # 1.x lists none


@pytest.mark.parametrize("text", [None, "", "plain text", "[1]", "3", "{", '{"a": NaN', "\0"])
def test_configuration_that_is_no_object_is_none(text: str | None) -> None:
    """`info` holds plain text as well (lastCNILoadStatus is none)."""
    assert client._json(text) is None
