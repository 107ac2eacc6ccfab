"""Writes a spec as YAML or JSON.

Invariant: equal specs give equal bytes, and an invalid spec is never written.
"""

from __future__ import annotations

import json

from agent.cdi import yaml_text
from agent.cdi.model import Spec, to_data
from agent.cdi.specs import rules
from agent.errors import Refused

MARK = "# Written by toolkit-agent; changes are overwritten."


def text(spec: Spec, form: str = "yaml", *, mark: bool = True) -> str:
    """The content of a spec's file. `form` is yaml or json. `mark`: a YAML file begins with MARK,
    by which `is_ours` recognizes it. Raises Refused for a spec that is not valid."""
    if problems := rules.problems(spec):
        raise Refused(
            f"cannot write a CDI spec for {spec.kind}: {'; '.join(problems)}; report this"
        )
    data = to_data(spec, rules.minimum_version(spec))
    if form == "json":
        return yaml_text.printable(json.dumps(data, indent=2, ensure_ascii=False)) + "\n"
    head = ["---", MARK] if mark else ["---"]
    return "\n".join([*head, *yaml_text.lines(data)]) + "\n"


def is_ours(data: bytes) -> bool:
    """Does this content of a file have our mark?"""
    return MARK.encode() in data[:200]
