"""The output of `verify`.

Invariant: pure functions of a verification. One line for each proof, its reason below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agent.cli.render.base import Screen, Tone
from agent.verify.verify import Verification

_SUMMARIES: Mapping[str, tuple[str, str, Tone]] = {
    "ok": ("Proven:", "pods run, and get what they ask for", "good"),
    "failed": ("Failed:", "a proof failed; see `toolkit-agent doctor`", "bad"),
    "undecided": ("Undecided:", "not everything could be tried", "warn"),
}


def data(verification: Verification) -> dict[str, Any]:
    """A verification for JSON."""
    return {
        "runtime": verification.runtime,
        "defaultHandler": verification.default,
        "image": verification.image or None,
        "result": verification.result,
        "obstacle": verification.obstacle or None,
        "proofs": [
            {
                "handler": proof.handler or verification.default,
                "isDefault": not proof.handler,
                "proof": proof.what,
                "device": proof.device or None,
                "askedBy": proof.asked_by or None,
                "seenIn": proof.seen_in or None,
                "result": proof.verdict.result,
                "reason": proof.verdict.text or None,
            }
            for proof in verification.proofs
        ],
    }


def text(verification: Verification, screen: Screen) -> str:
    """A verification for a person: the verdict, then each proof."""
    label, words, tone = _SUMMARIES[verification.result]
    lines = [*screen.entry(label, words, tone), "", *screen.entry("Runtime:", verification.runtime)]
    lines += screen.entry("Image:", verification.image) if verification.image else []
    tried = dict.fromkeys(
        (p.device, p.asked_by, p.seen_in) for p in verification.proofs if p.asked_by
    )
    for device, by, where in tried:
        lines += screen.entry("Device:", device)
        lines += screen.entry("Asked:", f"by {by}; looked for in {where}")
    lines += ["", *_proofs(verification, screen)] if verification.proofs else []
    if verification.obstacle:
        lines += ["", *screen.entry("No pod:", f"{verification.obstacle}.", "warn")]
    return "\n".join(lines)


def _proofs(verification: Verification, screen: Screen) -> Iterator[str]:
    default = f"{verification.default} (default)".strip()
    named = [(proof.handler or default, proof) for proof in verification.proofs]
    width = max(len(name) for name, _ in named)
    for name, proof in named:
        result = proof.verdict.result
        tone = _SUMMARIES[result][2] if result in _SUMMARIES else None
        yield from screen.entry(result, f"{name:<{width}}  {proof.what}", tone)
        yield from screen.entry("", proof.verdict.text) if proof.verdict.text else ()
