"""Edits of random documents in every spelling: right or refused, never anything else."""

from __future__ import annotations

import random as randoms
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cri.client import Answer
from agent.errors import Refused
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.base import Endpoint, Runtime
from agent.runtimes.containerd.adapter import ContainerdNode
from agent.runtimes.containerd.generations import generation
from agent.state.store import Original
from agent.toml import document
from agent.toml.document import Append, Data, Op, Path, Set, Unset
from agent.transaction.original_files import inverse_operations
from tests.unit.support.toml_documents import CRI, NARROW, Document, operations, random_document

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
    wanted = document.apply(before.data, [op])
    found = tomllib.loads(after)
    if isinstance(op, Unset):  # whether a table that it empties stays is the spelling's matter
        assert leaves(found) == leaves(wanted)
    else:
        assert typed(found) == typed(wanted)
    if wanted == before.data:
        assert after == before.text
        return
    assert document.edit(after, [op], "f") == after
    length = len(op.path)
    others = {p: v for p, v in leaves(before.data).items() if p[:length] != op.path}
    assert others.items() <= leaves(found).items()
    if "\r\n" in before.text:
        assert "\n" not in after.replace("\r\n", "")
    # A comment behind what goes may go with it; one on a line of its own never does.
    whole = own_lines(before)
    takes = isinstance(op, Unset) or isinstance(document.get(before.data, op.path), dict)
    lost = [c for c in before.comments if not kept(c, after)]
    assert [c for c in lost if c in whole or not takes] == []
    if document.get(before.data, op.path) is None:
        assert is_insertion(before.text, after)


def is_insertion(before: str, after: str) -> bool:
    """Tell whether one thing was put in, and all else is as it was, byte for byte."""
    pairs = zip(before, after, strict=False), zip(before[::-1], after[::-1], strict=False)
    start, end = (sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], p)) for p in pairs)
    return start + end >= len(before)


def attempt(found: Document, op: Op) -> str | None:
    """Return the edited text, None where the edit is refused; all else is a failure."""
    try:
        return document.edit(found.text, [op], "/etc/f.toml")
    except Refused:
        return None


@given(random)
def test_documents_mean_what_they_are_made_from(random: randoms.Random) -> None:
    """Otherwise the tests below would test nothing."""
    found = random_document(random)
    assert typed(tomllib.loads(found.text)) == typed(found.data)
    assert all(kept(comment, found.text) for comment in found.comments)


@pytest.mark.timeout(600)
@given(random)
def test_edit_is_right_or_refused(random: randoms.Random) -> None:
    """Right data, untouched neighbours, comments, line ends; a second time nothing."""
    found = random_document(random)
    for op in operations(random, found.data):
        after = attempt(found, op)
        if after is not None:
            check(found, op, after)


@given(random)
def test_edits_together_are_one_after_the_other(random: randoms.Random) -> None:
    """All of them or, where one is refused, none."""
    found = random_document(random)
    ops = operations(random, found.data)
    try:
        after = document.edit(found.text, ops, "f")
    except Refused:
        return
    assert leaves(tomllib.loads(after)) == leaves(document.apply(found.data, ops))


def documents() -> Iterator[tuple[int, Document, list[Op]]]:
    """Give the same documents each time, each with its seed and some edits."""
    for seed in range(DOCUMENTS):
        random = randoms.Random(seed)  # noqa: S311
        found = random_document(random)
        yield seed, found, operations(random, found.data)


def test_edits_are_not_refused() -> None:
    """Whatever the spelling. `tests/bench/toml_refusals.py` does the same with many more."""
    refused = [
        (seed, op) for seed, found, ops in documents() for op in ops if attempt(found, op) is None
    ]
    assert refused == []


@contextmanager
def counted_ways() -> Iterator[Counter[str]]:
    """Count the ways in which texts are changed; an edit of a table is many, part by part."""
    ways: Counter[str] = Counter()
    proposals = document._proposals

    def watched(text: str, op: Op, *data: Data) -> Iterator[tuple[str, str]]:
        for way, proposal in proposals(text, op, *data):
            try:
                yield way, proposal
            except GeneratorExit:  # no more are wanted: it passed the guard
                ways[way] += way != "part by part"
                raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "_proposals", watched)
        yield ways


def test_edits_are_done_by_tomlkit() -> None:
    """Ways of our own are for what it cannot do."""
    with counted_ways() as ways:
        for _, found, ops in documents():
            document.edit(found.text, ops, "f")
    by_tomlkit = sum(number for way, number in ways.items() if way.startswith("tomlkit"))
    assert by_tomlkit > 0.95 * ways.total()


def test_what_was_added_can_be_taken_out_again() -> None:
    """`revert --keep-edits` does that: the data of before comes back, and no comment is lost."""
    for _, found, _ in documents():
        after = attempt(found, Set(HANDLER, {"options": {"BinaryName": "/n"}}))
        assert after is not None
        back = document.edit(after, [Unset(HANDLER)], "f")
        assert leaves(tomllib.loads(back)) == leaves(found.data)
        assert all(kept(comment, back) for comment in found.comments)


def test_what_the_agent_did_is_undone_by_its_own_inverse() -> None:
    """With an edit of the admin in between, which stays."""
    for seed, found, _ in documents():
        random = randoms.Random(seed)  # noqa: S311
        section = ("plugins", random.choice(CRI))
        ours: list[Op] = [
            Append(("imports",), NARROW),
            Set((*section, "containerd", "runtimes", "nvidia"), {"options": {"BinaryName": "/n"}}),
            Set((*section, "containerd", "default_runtime_name"), "nvidia"),
            Set((*section, "enable_cdi"), True),
        ]
        admins = Set((*section, "containerd", "runtimes", "site"), {"runtime_type": "r"})
        after = document.edit(document.edit(found.text, ours, "f"), [admins], "f")
        # With an import of the same name before, it is the admin's and stays.
        inverse = undo(after, found.text)
        back = document.edit(after, inverse, "f")
        wanted = leaves(document.apply(found.data, [admins]))
        assert leaves(tomllib.loads(back)) == wanted
        assert all(kept(c, back) for c in found.comments if c in own_lines(found))


def undo(after: str, before: str) -> list[Op]:
    """Return what takes our keys out of a containerd 2.1's file again."""
    drop_in = HostPath(NARROW, NARROW.replace("*", ""))
    answer = Answer("containerd", "2.1.9", True, {}, ())
    runtime = Runtime(Endpoint("containerd", drop_in), None, answer)
    node = ContainerdNode(HostRoot("/"), runtime, (), None, drop_in, generation((2, 1, 0)))
    data = (document.parse(after.encode(), "f"), document.parse(before.encode(), "f"))
    known = Original(None, 0o644, 0, 0, "")
    return inverse_operations(node, "f", data, known, switch=True, drop_in_goes=True)


def own_lines(found: Document) -> set[str]:
    """Return the comments that have a line of their own."""
    return {line.strip() for line in found.text.splitlines()}
