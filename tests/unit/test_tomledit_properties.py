"""Edits of random documents in every spelling: right or refused, never anything else."""

from __future__ import annotations

import random as randoms
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent import tomledit
from agent.errors import Refused
from agent.tomledit import Append, Op, Path, Set, Unset
from tests.unit.toml_documents import Document, document, operations

random = st.randoms(use_true_random=False)

HANDLER = ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes", "nvidia-cdi")
DOCUMENTS = 300


def typed(value: Any) -> Any:
    """Return data with the type of every scalar, in which True and 1 differ."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, value


def leaves(value: Any, above: Path = ()) -> dict[Path, Any]:
    """Return all that is not a table, by its path."""
    if not isinstance(value, dict):
        return {above: typed(value)}
    return {p: v for key, item in value.items() for p, v in leaves(item, (*above, key)).items()}


def kept(comment: str, text: str) -> bool:
    """Tell whether a comment is in a text (`# note 1` is not in `# note 10`)."""
    return re.search(re.escape(comment) + r"(?!\d)", text) is not None


def check(before: Document, op: Op, after: str) -> None:
    """Check all that an edit promises."""
    wanted = tomledit.apply(before.data, [op])
    found = tomllib.loads(after)
    if isinstance(op, Unset):  # whether a table that it empties stays is the spelling's matter
        assert leaves(found) == leaves(wanted)
    else:
        assert typed(found) == typed(wanted)
    if wanted == before.data:
        assert after == before.text
        return
    assert tomledit.edit(after, [op], "f") == after
    length = len(op.path)
    others = {p: v for p, v in leaves(before.data).items() if p[:length] != op.path}
    assert others.items() <= leaves(found).items()
    if "\r\n" in before.text:
        assert "\n" not in after.replace("\r\n", "")
    # A comment behind what goes may go with it; one on a line of its own never does.
    whole = {line.strip() for line in before.text.splitlines()}
    takes = isinstance(op, Unset) or isinstance(tomledit.get(before.data, op.path), dict)
    lost = [c for c in before.comments if not kept(c, after)]
    assert [c for c in lost if c in whole or not takes] == []


def attempt(found: Document, op: Op) -> str | None:
    """Return the edited text, None where the edit is refused; all else is a failure."""
    try:
        return tomledit.edit(found.text, [op], "/etc/f.toml")
    except Refused:
        return None


@given(random)
def test_documents_mean_what_they_are_made_from(random: randoms.Random) -> None:
    """Otherwise the tests below would test nothing."""
    found = document(random)
    assert typed(tomllib.loads(found.text)) == typed(found.data)
    assert all(kept(comment, found.text) for comment in found.comments)


@given(random)
def test_edit_is_right_or_refused(random: randoms.Random) -> None:
    """Right data, untouched neighbours, comments, line ends; a second time nothing."""
    found = document(random)
    for op in operations(random, found.data):
        after = attempt(found, op)
        if after is not None:
            check(found, op, after)


@given(random)
def test_edits_together_are_one_after_the_other(random: randoms.Random) -> None:
    """All of them or, where one is refused, none."""
    found = document(random)
    ops = operations(random, found.data)
    try:
        after = tomledit.edit(found.text, ops, "f")
    except Refused:
        return
    assert leaves(tomllib.loads(after)) == leaves(tomledit.apply(found.data, ops))


def plain(found: Document) -> bool:
    """Tell whether a document has neither inline tables nor dotted keys: almost all real ones."""
    code = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|#.*", "q", found.text)
    return "{" not in code and not re.search(r"(?m)^\s*[\w-]+\s*\.[^=\n]*=", code)


def plain_documents() -> Iterator[tuple[int, Document, list[Op]]]:
    """Give plain documents, each with its seed and some edits."""
    for seed in range(DOCUMENTS):
        random = randoms.Random(seed)  # noqa: S311 (the same documents each time)
        found = document(random)
        if plain(found):
            yield seed, found, operations(random, found.data)


def test_plain_documents_are_not_refused() -> None:
    """With headers only, in any order and quote, there is always a safe way to add a key.

    Taking out, and replacing a table that has comments, may be refused; adding never.
    """
    refused, tried = [], 0
    for seed, found, ops in plain_documents():
        for op in ops:
            table = isinstance(tomledit.get(found.data, op.path), dict)
            if isinstance(op, Append) or (isinstance(op, Set) and not table):
                tried += 1
                if attempt(found, op) is None:
                    refused.append((seed, op))
    assert refused == []
    assert tried > DOCUMENTS / 2


def test_what_was_added_to_a_plain_document_can_be_taken_out_again() -> None:
    """`revert --keep-edits` does that: the data of before comes back, and no comment is lost."""
    refused = []
    for seed, found, _ in plain_documents():
        after = attempt(found, Set(HANDLER, {"options": {"BinaryName": "/n"}}))
        assert after is not None
        try:
            back = tomledit.edit(after, [Unset(HANDLER)], "f")
        except Refused:
            refused.append(seed)
            continue
        assert leaves(tomllib.loads(back)) == leaves(found.data)
        assert all(kept(comment, back) for comment in found.comments)
    assert refused == []
