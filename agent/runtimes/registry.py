"""The known kinds of runtimes.

Invariant: a kind's own modules are loaded when a node has such a runtime, and not before.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from agent.cri import client
from agent.cri.client import Answer
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.runtimes.base import RuntimeAdapter
from agent.runtimes.desired_state import is_ours


@dataclass(frozen=True)
class Registered:
    """A kind of runtime: `kind` as in `RuntimeAdapter`, `cri_name` is the name that it gives in the
    CRI, `sockets` are the host paths where it usually listens, `module` has its ADAPTER."""

    kind: str
    cri_name: str
    sockets: tuple[str, ...]
    module: str


REGISTERED = [
    Registered(
        "containerd", "containerd",
        ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"),
        "agent.runtimes.containerd.adapter",
    ),
    Registered("crio", "cri-o", ("/run/crio/crio.sock",), "agent.runtimes.crio.adapter"),
]  # fmt: skip


def adapter(kind: str) -> RuntimeAdapter:
    """The adapter of a kind. Raises KeyError for one that is not registered."""
    modules = {item.kind: item.module for item in REGISTERED}
    loaded: RuntimeAdapter = importlib.import_module(modules[kind]).ADAPTER
    return loaded


def kind_of(cri_name: str) -> str | None:
    """The kind of the runtime with this name in the CRI, None if it is not registered."""
    return next((item.kind for item in REGISTERED if item.cri_name == cri_name), None)


def adapter_of(answer: Answer) -> RuntimeAdapter:
    """The adapter of the runtime that gave an answer. Raises KeyError as `adapter`."""
    return adapter(kind_of(answer.name) or "")


def sockets(asked: str) -> Iterator[tuple[str, str]]:
    """Kinds and host paths of the sockets to look at for --runtime: one kind, or "auto"."""
    for item in REGISTERED:
        if asked in ("auto", item.kind):
            yield from ((item.kind, path) for path in item.sockets)


def present(host: HostRoot, settings: Settings) -> tuple[str, ...]:
    """The kinds whose usual socket exists; all that the options allow if none does, because the
    socket may be elsewhere."""
    asked = [*sockets(settings.runtime)]
    found = [kind for kind, path in asked if os.path.lexists(host.agent_path(path))]
    return tuple(dict.fromkeys(found or [kind for kind, _ in asked]))


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """As `client.ask`, with what the runtime shows besides the CRI. Raises Unreachable."""
    answer = client.ask(path, name, timeout)
    kind = kind_of(answer.name)
    return adapter(kind).completed(answer, path, timeout) if kind else answer


def shown(answer: Answer) -> tuple[str | None, tuple[str, ...]]:
    """The default runtime and the handlers that the runtime shows; None and () if it shows
    none."""
    default, tables = adapter_of(answer).shown(answer)
    return default, tuple(sorted(tables or filter(None, answer.handlers)))


def shows_nvidia(answer: Answer) -> bool:
    """Does the runtime show a default runtime that is NVIDIA's, whatever its name?"""
    return is_shown_as_nvidia(answer, str(adapter_of(answer).shown(answer)[0]))


def is_shown_as_nvidia(answer: Answer, name: str) -> bool:
    """Is the handler of this name NVIDIA's, as the runtime shows it?"""
    tables = adapter_of(answer).shown(answer)[1] or {}
    return is_ours(name, tables.get(name, {}))
