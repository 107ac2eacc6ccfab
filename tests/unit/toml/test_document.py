"""Edits of TOML: what an operation means, and every shape that is known to break editors.

`test_document_properties.py` does the same on random documents.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import Any

import pytest

from agent.errors import Refused
from agent.toml import document, place
from agent.toml.document import Append, Data, Op, Set, Unset

HANDLER = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/opt/nvidia"}}
RUNTIMES = ("plugins", "x", "containerd", "runtimes")
NVIDIA = (*RUNTIMES, "nvidia")


def edited(text: str, *ops: Op) -> str:
    """Return the edited text, after checking the guard's promises on it."""
    out = document.edit(text, ops, "/etc/f.toml")
    assert tomllib.loads(out) == document.apply(tomllib.loads(text), ops)
    assert document.edit(out, ops, "/etc/f.toml") == out
    return out


# Shapes on which tomlkit alone writes wrong data, invalid TOML or nothing at all, with the edit
# that shows it.
BROKEN: dict[str, tuple[str, Op]] = {
    "dotted root keys, table below": (
        'plugins."x".a.b = 1\nplugins."x".a.c = 2\nplugins."x".d = 3\n',
        Set(NVIDIA, HANDLER),
    ),
    "dotted keys in a table, table below": (
        "[plugins.x]\ncontainerd.snapshotter = 'native'\nother = 1\n",
        Set(NVIDIA, HANDLER),
    ),
    "dotted leaf": (
        "[plugins.x]\ncontainerd.runtimes.runc.runtime_type = 'r'\n[grpc]\nuid = 0\n",
        Set((*RUNTIMES, "runc", "options"), {"SystemdCgroup": True}),
    ),
    "inline plugins": ('plugins = { "x" = { a = 1 } }\n', Set(NVIDIA, HANDLER)),
    "inline table on the path": (
        '[plugins]\n"x" = { containerd = { snapshotter = "native" } }\n',
        Set(NVIDIA, HANDLER),
    ),
    "empty inline table on the path": ("version = 2\nplugins.x = {}\n", Set(NVIDIA, HANDLER)),
    "child before its parent": (
        "[plugins.x.containerd]\nsnapshotter = 'native'\n[grpc]\nuid = 0\n[plugins.x]\na = 1\n",
        Set(NVIDIA, HANDLER),
    ),
    "child before its parent, new key in the parent": (
        "[plugins.x.containerd]\nsnapshotter = 'native'\n[grpc]\nuid = 0\n[plugins.x]\na = 1\n",
        Set(("plugins", "x", "enable_cdi"), True),
    ),
    "tables out of order": (
        "[plugins.x.a]\nk = 1\n[plugins.y]\nk = 2\n[plugins.x.b]\nk = 3\n[plugins.y.c]\nk = 4\n",
        Set(("plugins", "x", "a", "k"), 5),
    ),
    "array of tables out of order": (
        "[[plugins.x.list]]\nk = 1\n[grpc]\nuid = 0\n[[plugins.x.list]]\nk = 2\n",
        Set(NVIDIA, HANDLER),
    ),
    "super-tables only": (
        "[plugins.x.containerd.runtimes.runc.options]\nSystemdCgroup = true\n",
        Set(("plugins", "x", "containerd", "default_runtime_name"), "nvidia"),
    ),
    "same key in three quotes": (
        "[plugins.'x']\na = 1\n[plugins.\"x\".containerd]\nb = 1\n[plugins.x.cni]\nc = 1\n",
        Set(("plugins", "x", "enable_cdi"), True),
    ),
    "handler of dotted keys replaced": (
        "[plugins.x]\ncontainerd.runtimes.nvidia = {}\n",
        Set(NVIDIA, HANDLER),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_shape_that_breaks_editors_is_edited(name: str) -> None:
    """Right data, and a second time nothing."""
    text, op = BROKEN[name]
    edited(text, op)


# A text, an edit, and the text that a person would have made of it.
SPELLINGS: dict[str, tuple[str, Op, str]] = {
    "inline": (
        "plugins = { x = { a = 1 } } # all\n",
        Set(("plugins", "x", "b"), True),
        "plugins = { x = { a = 1, b = true } } # all\n",
    ),
    "inline, nothing on the way": (
        "[plugins]\nx = {}\n",
        Set(("plugins", "x", "containerd", "b"), "c"),
        '[plugins]\nx = { containerd = { b = "c" } }\n',
    ),
    "inline with dotted keys": (
        "x = {a.b = 1, c = 2}\n",
        Set(("x", "a", "d"), {"e": 1}),
        "x = {a.b = 1, a.d = { e = 1 }, c = 2}\n",
    ),
    "inline, changed": (
        "x = { a = [1, 2], b = 'c' }\n",
        Set(("x", "a"), [1, 2, 3]),
        "x = { a = [1, 2, 3], b = 'c' }\n",
    ),
    "inline, first taken out": (
        "x = { a = 1, b = { c = 1 } }\n", Unset(("x", "a")), "x = { b = { c = 1 } }\n",
    ),
    "inline, last taken out with what it leaves empty": (
        "x = { a = 1, b = { c = 1 } }\n", Unset(("x", "b", "c")), "x = { a = 1 }\n",
    ),
    "dotted": (
        "[x]\n  a.b = 1\n  c = 2\n",
        Set(("x", "a", "d"), 3),
        "[x]\n  a.b = 1\n  a.d = 3\n  c = 2\n",
    ),
    "dotted from the root, quoted": (
        "'x'.\"a.b\".c = 1\n[t]\n",
        Set(("x", "a.b", "d"), 2),
        "'x'.\"a.b\".c = 1\n'x'.\"a.b\".d = 2\n[t]\n",
    ),
    "indented keys": (
        "[x]\n\ta = 1\n\n[y]\n\tb = 1", Set(("x", "c"), 2), "[x]\n\ta = 1\n\tc = 2\n\n[y]\n\tb = 1",
    ),
    "header without keys": (
        "[x]\n  [x.y] # here\n  # nothing yet\n[z]\n  k = 1\n",
        Set(("x", "y", "c"), 2),
        "[x]\n  [x.y] # here\n    c = 2\n  # nothing yet\n[z]\n  k = 1\n",
    ),
    "lines of both kinds": (
        "a = 1\r\n[x]\nb = 1\n", Set(("x", "c"), 2), "a = 1\r\n[x]\nb = 1\nc = 2\n",
    ),
    "list closed on a line of its own": (
        "i = [\n  'a', # x\n  'b' # y\n  # z\n]\n",
        Append(("i",), "c"),
        "i = [\n  'a', # x\n  'b', # y\n  # z\n  \"c\"\n]\n",
    ),
    "list with a last comma": (
        "i = [\r\n\t'a',\r\n]", Append(("i",), "c"), "i = [\r\n\t'a',\r\n\t\"c\",\r\n]",
    ),
    "list with one item less": (
        "i = [\n  'a', # x\n  'b'\n]\n", Set(("i",), ["a"]), "i = [\n  'a', # x\n]\n",
    ),
    "list replaced": (
        "[t]\n  i = [ # x\n  1,\n] # y\n", Set(("t", "i"), [2]), "[t]\n  # x\n  i = [2] # y\n",
    ),
    "table taken out": (
        "[a]\nk = 1\n\n# above\n\n[b.c] # behind\n# in it\nl = [\n  # inside\n]\n\n[d]\n",
        Unset(("b", "c")),
        "[a]\nk = 1\n\n# above\n# in it\n# inside\n\n[d]\n",
    ),
    "table made into another": (
        "[t]\na = 1 # x\n# about b\nb.c = 2\nb.d = 3\n[t.e]\n",
        Set(("t",), {"a": 2, "b": {"d": 3}}),
        "[t]\na = 2 # x\n# about b\nb.d = 3\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_edit_keeps_to_the_spelling(name: str) -> None:
    """A key goes where its like are, looks like them, and no other line changes."""
    text, op, wanted = SPELLINGS[name]
    assert edited(text, op) == wanted


@pytest.mark.parametrize(
    "proposal",
    [
        "a = 1\n",
        "# one\na = 2\n",
        "# one\na = true\nb = 1\n",
        "# one\na = 1\na = 1\n",
        "# one\na = '1'\n",
    ],
)
def test_proposal_that_is_not_what_was_wanted_is_refused(
    monkeypatch: pytest.MonkeyPatch, proposal: str
) -> None:
    """Wrong data, a type that Python takes for the same, a lost comment, no TOML at all."""
    monkeypatch.setattr(place, "ways", lambda *_: iter([("other", lambda: proposal)]))
    with pytest.raises(Refused, match=r"^cannot edit /etc/f.toml: .*\[headers\]"):
        document.edit("# one\na = true\n", [Set(("a",), 1)], "/etc/f.toml")


@pytest.mark.parametrize("key", ["above", "behind"])
def test_key_between_a_comment_and_what_it_is_about_is_refused(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Everything would be there, and the comment would be about something else."""
    ways = {"above": "# one\nb = 2\na = 1\n", "behind": "# one\na = 1\nb = 2\n"}
    monkeypatch.setattr(place, "ways", lambda *_: iter([("other", lambda: ways[key])]))
    op = Set(("b",), 2)
    if key == "behind":
        assert edited("# one\na = 1\n", op) == ways[key]
        return
    with pytest.raises(Refused, match=r"^cannot edit f: "):
        document.edit("# one\na = 1\n", [op], "f")


def test_way_that_tomlkit_cannot_go_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, the next way is tried."""
    monkeypatch.setattr(place, "_with_value", lambda *_: int("none"))
    assert edited("[a]\nb = 1 # x\n", Set(("a", "b"), 2)) == "[a]\nb = 2 # x\n"


PLAIN = """\
# The site's containerd.
version = 2  # do not touch

[plugins."x"]
  # Switched off by policy.
  enable_cdi = false # see the wiki
  [plugins."x".containerd]
    default_runtime_name = "runc"

    # Our own runtime.
    [plugins."x".containerd.runtimes.site]
      runtime_type = 'io.containerd.runc.v2'

[grpc] # the socket
  address = "/run/c.sock"
"""


def changed_lines(before: str, after: str) -> tuple[set[str], set[str]]:
    """Return the lines that are gone and those that are new."""
    old, new = set(before.splitlines()), set(after.splitlines())
    return old - new, new - old


def test_scalar_is_changed_in_its_line_only() -> None:
    """Its comment, its indentation and every other line stay."""
    after = edited(PLAIN, Set(("plugins", "x", "enable_cdi"), True))
    assert changed_lines(PLAIN, after) == (
        {"  enable_cdi = false # see the wiki"},
        {"  enable_cdi = true # see the wiki"},
    )


def test_new_table_leaves_every_line_as_it_is() -> None:
    """A handler is added with headers of its own, indented and quoted like the others."""
    after = edited(PLAIN, Set(NVIDIA, HANDLER))
    assert after.removeprefix(PLAIN).splitlines() == [
        "",
        '    [plugins."x".containerd.runtimes.nvidia]',
        '      runtime_type = "io.containerd.runc.v2"',
        "",
        '      [plugins."x".containerd.runtimes.nvidia.options]',
        '        BinaryName = "/opt/nvidia"',
    ]


def test_new_root_key_comes_before_the_first_table() -> None:
    """After `[grpc]` it would be a key of that table."""
    after = edited(PLAIN, Append(("imports",), "/etc/containerd/conf.d/99-nvidia*.toml"))
    gone, new = changed_lines(PLAIN, after)
    assert (gone, new) == (set(), {'imports = ["/etc/containerd/conf.d/99-nvidia*.toml"]'})


def test_root_key_goes_above_the_comment_of_the_first_table() -> None:
    """The comment is about the table, and stays with it."""
    text = "# About grpc.\n[grpc]\nuid = 0\n"
    after = edited(text, Append(("imports",), "/a.toml"))
    assert after.endswith(text)


def test_list_is_extended_with_its_comments() -> None:
    """Entries of the admin stay, with what is said about them."""
    text = 'imports = [\n  "/etc/a.toml", # ours\n  # the others\n  "/etc/b.toml",\n]\n'
    after = edited(text, Append(("imports",), "/etc/n.toml"))
    assert tomllib.loads(after)["imports"] == ["/etc/a.toml", "/etc/b.toml", "/etc/n.toml"]
    assert "# ours" in after
    assert "# the others" in after


@pytest.mark.parametrize(
    "op",
    [
        Set(("plugins", "x", "enable_cdi"), False),
        Append(("imports",), "/etc/a.toml"),
        Unset(("plugins", "x", "absent")),
        Unset(("absent", "x")),
    ],
)
def test_edit_that_changes_nothing_returns_the_same_bytes(op: Op) -> None:
    """Nothing to change, nothing touched, however odd the spelling."""
    text = "imports=['/etc/a.toml',]\r\n\r\n[plugins]\n'x'={enable_cdi=false}   #end"
    assert document.edit(text, [op], "f") == text


@pytest.mark.parametrize("text", ["", "# only a comment", "# only a comment\n", "\n\n", "a = 1"])
def test_edit_starts_from_nothing(text: str) -> None:
    """An empty file, a comment and a missing final newline are ordinary."""
    after = edited(text, Append(("imports",), "/a.toml"), Set(NVIDIA, HANDLER))
    assert "# only" in after or "# only" not in text


def test_crlf_stays_crlf() -> None:
    """Lines of both kinds in one file would look like damage."""
    text = PLAIN.replace("\n", "\r\n")
    after = edited(
        text, Set(("plugins", "x", "enable_cdi"), True), Set(NVIDIA, HANDLER),
        Append(("imports",), "/a.toml"),
    )  # fmt: skip
    assert "\n" not in after.replace("\r\n", "")


def test_unset_takes_the_key_and_what_it_leaves_empty() -> None:
    """A handler that goes leaves no empty `runtimes` of its own behind."""
    text = "[plugins.x]\na = 1\n[plugins.x.containerd.runtimes.nvidia]\nt = 'r'\n"
    assert tomllib.loads(edited(text, Unset(NVIDIA))) == {"plugins": {"x": {"a": 1}}}


def test_unset_of_an_absent_key_changes_nothing() -> None:
    """An empty table that was empty before is the admin's."""
    data: Data = {"plugins": {"x": {}}}
    assert document.apply(data, [Unset(("plugins", "x", "y"))]) == data
    text = "[plugins.x]\n"
    assert document.edit(text, [Unset(("plugins", "x", "y"))], "f") == text


def test_set_does_not_take_true_for_one() -> None:
    """1 == True in Python; in TOML they are two things, and containerd refuses the wrong one."""
    assert tomllib.loads(edited("a = 1\n", Set(("a",), True)))["a"] is True


def test_apply_leaves_its_argument_alone() -> None:
    """The plan compares before and after."""
    data: Data = {"a": {"b": [1]}}
    document.apply(data, [Append(("a", "b"), 2), Set(("a", "c"), 1), Unset(("a", "b"))])
    assert data == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    ("text", "op", "named"),
    [
        ("a = 1\n", Set(("a", "b"), 1), "a is not a table"),
        ("[a]\nb = 'x'\n", Append(("a", "b"), "y"), "a.b: it is not a list"),
        ("[[a]]\nb = 1\n", Set(("a", "b"), 2), "a is not a table"),
    ],
)
def test_path_through_something_else_is_refused(text: str, op: Op, named: str) -> None:
    """Overwriting what is in the way would lose it."""
    with pytest.raises(Refused, match=r"^cannot ") as caught:
        document.edit(text, [op], "f")
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a = \n", "not valid TOML"),
        (b"[a]\n[a]\n", "not valid TOML"),
        (b"a = 1\na = 2\n", "not valid TOML"),
        (b"a = 1\n\xef\xbb\xbfb = 1\n", "not valid TOML"),
        (b"a = '\x01'\n", "not valid TOML"),
        (b"t = { a =\n  1 }\n", "not valid TOML"),
        (b"t = { , }\n", "not valid TOML"),
        (b'a = "\\q"\n', "not valid TOML"),
        (b"\xff\xfea\0", "it is UTF-16"),
        (b"a\0=\0", "it is UTF-16"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_toml_is_refused_by_name(data: bytes, words: str) -> None:
    """What no runtime reads."""
    with pytest.raises(Refused, match=r"^cannot read /etc/f.toml: ") as caught:
        document.parse(data, "/etc/f.toml")
    assert words in caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        True, 0, -1, 1.5, "", 'a "quoted" \\ one', "tab\tnewline\nnul\x00del\x7f",
        "ünïcödé \U0001f600",
        [], ["a", 1], {"a": {"b c": []}}, {}, dt.date(2026, 1, 2), "\ud7ff\ue000",
    ],
)  # fmt: skip
def test_scalar_is_written_as_toml_reads_it(value: Any) -> None:
    """Values of other handlers are inherited, whatever they are."""
    assert tomllib.loads(f"k = {document.scalar(value)}\n")["k"] == value


def test_render_writes_keys_before_tables_and_quotes_what_needs_it() -> None:
    """A key that came after a sub-table would belong to that."""
    table = {"options": {"BinaryName": "/n"}, "runtime_type": "r", "my key": {"a.b": {}}}
    text = document.render(table, ("plugins", "io.containerd.cri.v1.runtime"))
    assert tomllib.loads(text) == {"plugins": {"io.containerd.cri.v1.runtime": table}}
    assert text.splitlines()[0] == '[plugins."io.containerd.cri.v1.runtime"]'


def test_get_stops_where_there_is_no_table() -> None:
    """A wrong type on the way is an absence, not a crash."""
    assert document.get({"a": {"b": 1}}, ("a", "b")) == 1
    assert document.get({"a": 1}, ("a", "b"), "x") == "x"
    assert document.get(None, ("a",)) is None
