"""A runtime's answer, with what a CRI-O tells of its configuration besides the CRI.

Invariant: as in `cri` and `crio_http`.
"""

from __future__ import annotations

from dataclasses import replace

from agent.cri import client
from agent.cri.client import Answer

NAME = "cri-o"


def ask(path: str, name: str, timeout: float = 10.0) -> Answer:
    """As `cri.ask`; a CRI-O whose Status does not show its configuration (before 1.33) is asked for
    it in its own way. Raises Unreachable."""
    answer = client.ask(path, name, timeout)
    if answer.name != NAME or "crio" in (answer.config or {}):
        return answer
    from agent.runtimes.crio import config_request  # not on every node: it takes long to load

    return replace(answer, dump=config_request.effective_config(path, timeout))
