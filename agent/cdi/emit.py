"""A spec's bytes, YAML or JSON.

Invariant: equal specs give equal bytes, and nothing that is not valid gets bytes at all. Strings
are quoted throughout, because YAML readers disagree about what a bare `1e3` or `y` is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agent.cdi import rules
from agent.cdi.model import Spec, to_data
from agent.errors import Refused

MARK = "# Written by toolkit-agent; changes are overwritten."


def text(spec: Spec, form: str = "yaml") -> str:
    """The file's content; `form` is yaml or json. Raises Refused for a spec that is not valid."""
    wrong = rules.problems(spec)
    if wrong:
        raise Refused(f"cannot write a CDI spec for {spec.kind}: {'; '.join(wrong)}; report this")
    data = to_data(spec, rules.minimum_version(spec))
    if form == "json":
        return json.dumps(data, indent=2) + "\n"
    return "\n".join(["---", MARK, *_lines(data)]) + "\n"


def is_ours(data: bytes) -> bool:
    """Did we write this file?"""
    return MARK.encode() in data[:200]


def _lines(value: Any) -> Iterator[str]:
    """YAML lines of a mapping or a sequence that is not empty."""
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in items:
        head = "-" if key is None else f"{key}:"
        if not isinstance(item, dict | list) or not item:
            yield f"{head} {json.dumps(item)}"
        elif key is None:
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield head
            yield from (f"  {line}" for line in _lines(item))
