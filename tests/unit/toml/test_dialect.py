"""Files that some runtime reads although TOML 1.0 forbids them are read, named and kept."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Refused
from agent.toml import dialect, document
from agent.toml.dialect import BURNT_SUSHI, GO_TOML_1, GO_TOML_2, NotText
from agent.toml.document import Append, Set
from tests.unit.support.odd_toml import CRIO, DOCUMENTS, MARKER, ONE, SET, TWO, Odd
from tests.unit.support.toml_documents import random_document

READERS = {ONE: GO_TOML_1, TWO: GO_TOML_2, CRIO: BURNT_SUSHI}
READ = [one for one in DOCUMENTS if one.readers]
odd_documents = pytest.mark.parametrize("odd", DOCUMENTS, ids=str)


def read(data: bytes) -> dict[str, Any] | None:
    """What is read of bytes; None where nothing is."""
    try:
        return dialect.loads(dialect.decoded(data))
    except (NotText, tomllib.TOMLDecodeError):
        return None


@odd_documents
def test_what_somebody_reads_is_read(odd: Odd) -> None:
    """And nothing else: what it then is, is what they read."""
    found = read(odd.document)
    assert (found is not None) == bool(odd.readers)
    if found is not None:
        assert MARKER in repr(found)


@pytest.mark.parametrize("odd", READ, ids=str)
def test_readers_are_told_apart(odd: Odd) -> None:
    """What one of them first_rejected is named with its line, and so is what to do."""
    text = dialect.decoded(odd.document)
    for name, takes in READERS.items():
        found = dialect.first_rejected(text, takes)
        assert (found is None) == (name in odd.readers)
        if found is not None:
            assert found.line == odd.line
            assert "{" not in found.words
            assert found.remedy
    assert [one.line for one in dialect.oddities(text)][:1] == ([odd.line] if odd.line else [])


def test_toml_11_is_read_as_another_reader_reads_it() -> None:
    """tomlkit reads TOML 1.1 by itself."""
    for odd in READ:
        if TWO in odd.readers and odd.line is not None:
            assert read(odd.document) == tomlkit.parse(odd.document.decode()).unwrap()


@given(st.randoms(use_true_random=False))
def test_what_is_plain_is_left_alone(random: Any) -> None:
    """A document of TOML 1.0 is what tomllib says, and there is nothing odd in it."""
    text = random_document(random).text
    assert dialect.oddities(text) == ()
    assert dialect.decoded(text.encode()) == text
    assert dialect.loads(text) == tomllib.loads(text)


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    """Whatever they are."""
    for whole in (data, b"# " + data + b"\n'" + data + b"'"):
        try:
            text = dialect.decoded(whole)
        except NotText:
            continue
        assert dialect.encoded(text) == whole


def test_value_is_what_go_makes_of_it() -> None:
    """As in the dump of containerd 1.6 and 1.7; a comment stays out of it."""
    data = b"'k\xfc' = ['f\xfcr', { a = \"\xed\xa0\x80\" }] # \xfc\n"
    assert read(data) == {"k\ufffd": ["f\ufffdr", {"a": "\ufffd\ufffd\ufffd"}]}


EDITS = (Append(("imports",), "/x.toml"), Set(("a", "b"), "c"), Set(("sandbox_image",), "d"))


@pytest.mark.parametrize("odd", READ, ids=str)
def test_edit_keeps_every_other_byte(odd: Odd) -> None:
    """Or it is refused, by name, and for a reason that a person can act on."""
    text = dialect.decoded(odd.document)
    unsafe = odd.name in {"CR", "one CR", "two CR", "Latin-1 in a string", "Latin-1 in a key"}
    for op in EDITS:
        if unsafe:
            with pytest.raises(Refused, match=r"^cannot edit /f: line \d+ .* 1\.6 and 1\.7 read"):
                document.edit(text, [op], "/f")
            continue
        after = document.encoded(document.edit(text, [op], "/f"))
        assert read(after) == document.apply(read(odd.document) or {}, [op])
        left = [line for line in odd.document.splitlines() if line not in after.splitlines()]
        assert left == []


def test_edit_that_changes_nothing_is_never_refused() -> None:
    """A file that need not be edited is not in the way."""
    text = dialect.decoded(SET.replace(b"\n", b"\r") + b"x = '\xfc'")
    assert document.edit(text, [Set(("sandbox_image",), MARKER)], "/f") == text


def test_edit_inside_an_inline_table_keeps_comments_and_commas() -> None:
    """In the place of what was there, comments and commas kept."""
    text = "x = {\n  a = 1, # one\n  b = { c = 2, }, # two\n}\n"
    ops = [Set(("x", "b", "d"), 3), Set(("x", "a"), 4), Set(("x", "e"), 5)]
    done = document.edit(text, ops, "/f")
    assert done == "x = {\n  a = 4, # one\n  b = { c = 2, d = 3 }, # two\n  e = 5\n}\n"
    done = document.edit(text.replace("}, #", "} #"), ops[2:], "/f")
    assert done == "x = {\n  a = 1, # one\n  b = { c = 2, }, # two\n  e = 5\n}\n"


def test_half_of_a_character_is_not_taken_for_another() -> None:
    """A control character in a comment and the text that stands for it are not mixed up."""
    data = b"# \x1b\xed\xb0\x9b\n"
    assert dialect.encoded(dialect.decoded(data)) == data
