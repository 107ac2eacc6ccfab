"""What edits are made from, with the options' defaults."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from agent.decide import Decision
from agent.options.settings import Settings, resolve
from agent.runtimes.base import EditRequest
from agent.state.store import Memory
from agent.toolkit.programs import Binary


@lru_cache
def _settings() -> Settings:
    return resolve({}, {}, "toolkit-agent")


def edit_request(
    decision: Decision, available: tuple[Binary, ...], name: str = "nvidia",
    remembered: str | None = None, memory: Memory | None = None,
) -> EditRequest:  # fmt: skip
    """The request for this decision. `name` is that of our default handler, `remembered` the
    default runtime before our first change."""
    known = memory or Memory(default=remembered)
    settings = replace(_settings(), runtime_name=name)
    return EditRequest(settings, cast("Any", None), known, decision, available)
