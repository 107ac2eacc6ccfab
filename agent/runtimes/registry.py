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
    """A kind of runtime: `kind` as in `RuntimeAdapter`, `cri_name` is its name in answers of the
    CRI, `sockets` are the host paths of its usual CRI sockets, `module` defines its ADAPTER."""

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
    """The adapter of the runtime that gave an answer. Raises KeyError if its kind is not
    registered."""
    return adapter(kind_of(answer.name) or "")


def sockets(asked: str) -> Iterator[tuple[str, str]]:
    """The kind and the host path of each usual socket. `asked` is a value of --runtime: one kind,
    or "auto" for all."""
    for item in REGISTERED:
        if asked in ("auto", item.kind):
            yield from ((item.kind, path) for path in item.sockets)


def present(host: HostRoot, settings: Settings) -> tuple[str, ...]:
    """The kinds of which a usual socket exists. If no socket exists, all kinds that the options
    allow, because the socket may have another path."""
    asked = [*sockets(settings.runtime)]
    existing = [kind for kind, path in asked if os.path.lexists(host.agent_path(path))]
    return tuple(dict.fromkeys(existing or [kind for kind, _ in asked]))


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """As `client.ask`, with the settings that the runtime shows outside the CRI
    (`RuntimeAdapter.completed`). Raises Unreachable."""
    answer = client.ask(path, name, timeout)
    kind = kind_of(answer.name)
    return adapter(kind).completed(answer, path, timeout) if kind else answer


def shown_handler_names(answer: Answer) -> tuple[str | None, tuple[str, ...]]:
    """The name of the default runtime (None if it is not shown), and the sorted names of the
    handlers that the runtime shows."""
    default, tables = adapter_of(answer).shown_handlers(answer)
    return default, tuple(sorted(tables or filter(None, answer.handlers)))


def shows_nvidia(answer: Answer) -> bool:
    """Is the default runtime that the runtime shows NVIDIA's, whatever its name is?"""
    return is_shown_as_nvidia(answer, str(adapter_of(answer).shown_handlers(answer)[0]))


def is_shown_as_nvidia(answer: Answer, name: str) -> bool:
    """Is the handler of this name NVIDIA's, according to the table that the runtime shows?"""
    tables = adapter_of(answer).shown_handlers(answer)[1] or {}
    return is_ours(name, tables.get(name, {}))
