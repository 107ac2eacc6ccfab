"""Statements and comments are found in every corner of TOML's syntax."""

from __future__ import annotations

import itertools
import random as randoms
import tomllib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.toml import scan
from tests.unit.support.toml_documents import random_document

# A text, and its statements as kind, path and value.
TEXTS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "nothing": ("", []),
    "only a comment": ("  # a = 1", []),
    "strings with quotes at their ends": (
        'a = """"x""""\nb = \'\'\'\'y\'\'\'\'\nc = """"""\n',
        [("key", "a", '""""x""""'), ("key", "b", "''''y''''"), ("key", "c", '""""""')],
    ),
    "string over lines that look like others": (
        'a = """\n[b]\nc = 1 # \\"""\n"""\nd = 2',
        [("key", "a", '"""\n[b]\nc = 1 # \\"""\n"""'), ("key", "d", "2")],
    ),
    "hash and brackets in strings": (
        "a = ['#]', \"}\"] # ]\n", [("key", "a", "['#]', \"}\"]")],
    ),
    "keys in every quote": (
        "[ a . 'b.c' . \"\\u0064#\" ]\n'x]' . y=1\n",
        [("table", "a|b.c|d#", ""), ("key", "a|b.c|d#|x]|y", "1")],
    ),
    "dates, numbers, lines of both kinds": (
        "a = 1979-05-27 07:32:00 # x\r\n\r\nb = +inf\nc = 0xF_F",
        [("key", "a", "1979-05-27 07:32:00"), ("key", "b", "+inf"), ("key", "c", "0xF_F")],
    ),
    "arrays of tables": (
        "[[a]]\nb = 1\n[a.c]\nd = {}\n[[a]]\n",
        [("array", "a", ""), ("key", "a|b", "1"), ("table", "a|c", ""), ("key", "a|c|d", "{}"),
         ("array", "a", "")],
    ),
    "lists in lists over lines": (
        "a = [ [1, 2,], # [\n  { b = [3] },\n]\nc = 1\n",
        [("key", "a", "[ [1, 2,], # [\n  { b = [3] },\n]"), ("key", "c", "1")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_statements_have_kind_path_value_and_place(name: str) -> None:
    """Kinds, paths from the root, and values, in their order; their lines follow each other."""
    text, wanted = TEXTS[name]
    tomllib.loads(text)
    found = scan.statements(text)
    assert [(one.kind, "|".join(one.path), text[one.value]) for one in found] == wanted
    for one, following in itertools.pairwise(found):
        assert one.start <= one.code < one.value.stop < one.end <= following.start


def test_entries_of_an_inline_table() -> None:
    """Their keys and values; a comma in a value ends none."""
    text = "t = { a.'b c' = [1, [2, 3], 4], d = { e = 1, f = 2 }, \"g\" = ',' }"
    (one,) = scan.statements(text)
    found = scan.entries(text, one.value)
    assert [(entry.path, text[entry.value]) for entry in found] == [
        (("a", "b c"), "[1, [2, 3], 4]"), (("d",), "{ e = 1, f = 2 }"), (("g",), "','"),
    ]  # fmt: skip


@given(st.randoms(use_true_random=False))
def test_no_comment_is_overlooked(random: randoms.Random) -> None:
    """Above, behind, and in lists; and no string is taken for one."""
    found = random_document(random)
    assert scan.comments(found.text) == Counter(found.comments)


@pytest.mark.parametrize("text", ["a", "a = ", "[a", "[[a]", "a = [", "a = 'x", "= 1"])
def test_what_is_no_toml_is_unreadable(text: str) -> None:
    """Never an endless loop or an index that is out of range; `tomllib` was asked before."""
    with pytest.raises(scan.Unreadable):
        scan.statements(text)
