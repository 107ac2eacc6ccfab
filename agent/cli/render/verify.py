"""What `verify` prints.

Invariant: pure functions of a verification. One line for each proof, its reason below it; a line
has 80 columns unless a single word is longer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from agent.verify.verify import Verification

_COLUMNS = 80
_SUMMARIES = {
    "ok": "Proven.",
    "failed": "A proof failed: see `toolkit-agent doctor`.",
    "undecided": "Undecided: not everything could be tried.",
}


def data(found: Verification) -> dict[str, Any]:
    """A verification for JSON."""
    return {
        "runtime": found.runtime,
        "defaultHandler": found.default,
        "image": found.image or None,
        "result": found.result,
        "obstacle": found.obstacle or None,
        "proofs": [
            {
                "handler": proof.handler or found.default,
                "isDefault": not proof.handler,
                "proof": proof.what,
                "device": proof.device or None,
                "askedBy": proof.asked_by or None,
                "seenIn": proof.seen_in or None,
                "result": proof.verdict.result,
                "reason": proof.verdict.text or None,
            }
            for proof in found.proofs
        ],
    }


def text(found: Verification) -> str:
    """A verification for a person."""
    lines = [f"Runtime:  {found.runtime}"]
    if found.image:
        lines.append(f"Image:    {found.image}")
    tried = dict.fromkeys((p.device, p.asked_by, p.seen_in) for p in found.proofs if p.asked_by)
    lines += [f"Device:   {device}\nAsked:    by {by}; looked for in {where}"
              for device, by, where in tried]  # fmt: skip
    lines += ["", *_proofs(found)] if found.proofs else []
    if found.obstacle:
        lines += ["", *_wrapped(f"No pod was tried: {found.obstacle}.", "")]
    return "\n".join([*lines, "", _SUMMARIES[found.result]])


def _proofs(found: Verification) -> Iterator[str]:
    default = f"{found.default} (default)".strip()
    named = [(proof.handler or default, proof) for proof in found.proofs]
    width = max(len(name) for name, _ in named)
    for name, proof in named:
        yield f"{proof.verdict.result:<9}  {name:<{width}}  {proof.what}"
        if proof.verdict.text:
            yield from _wrapped(proof.verdict.text, " " * 11)


def _wrapped(words: str, indent: str) -> list[str]:
    """A paragraph without the control characters that words of others have."""
    safe = "".join(char if char.isprintable() else " " for char in words)
    return textwrap.wrap(
        safe, _COLUMNS, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
