"""Inputs on which Python gives up in its own way.

The attacker writes an integer of five thousand digits, a key of twenty thousand parts, a list in a
list in a list, half a character, a NUL: Python's answers to these are ValueError, RecursionError,
OverflowError, UnicodeEncodeError. Each input ends with one line and an exit code, wherever it is
read, in bounded time.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Refused
from agent.host import budget
from agent.runtimes import command
from agent.runtimes.containerd.load import matches
from agent.state.store import Store
from agent.toml import dialect, document
from tests.cli.cli_node import CliNode
from tests.conformance import checks
from tests.doubles.containerd.sample import handler

DEEP = 100_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliNode]:
    """A node that is right; a test puts back what it breaks."""
    with CliNode(tmp_path_factory.mktemp("deep")) as node:
        checks.done(node.agent("apply"))
        yield node


TOMLS = {
    "integer of 5,000 digits": b"x = " + b"1" * 5_000,
    "integer of 80 bits": b"x = 0x" + b"f" * 20,
    "hexadecimal without end": b"x = 0x" + b"f" * 500_000,
    "key of 20,000 parts": b".".join([b"a"] * 20_000) + b" = 1",
    "header of 20,000 parts": b"[" + b" . ".join([b'"a"'] * 20_000) + b"]",
    "key of 100 parts in a table": b"x = {" + b".".join([b"'a'"] * 100) + b" = 1}",
    "lists in lists": b"x = " + b"[" * DEEP + b"]" * DEEP,
    "few lists in lists": b"x = " + b"[" * 200 + b"]" * 200,
    "tables in tables": b"x = " + b"{a = " * 300 + b"1" + b"}" * 300,
    "open string with many escapes": b'x = {a = "' + b'\\"' * 40_000,
    "open strings after a lone CR": b"\rx = " + b'"""\\"' * 20_000,
    "many empty tables": b"".join(b"[a%d]\n" % n for n in range(100_000)),
    "NUL": b'x = "\0"',
    "half a character": b'x = "\\ud800"',
    "bytes of UTF-16": b"\xff\xfex\0",
}


@pytest.mark.parametrize("name", TOMLS)
def test_deep_configuration_is_refused_with_one_line(name: str, node: CliNode) -> None:
    """`plan` names the file, and says that `apply` would refuse."""
    before = node.config.read_bytes()
    assert b"version" in before
    node.config.write_bytes(before + b"\n" + TOMLS[name] + b"\n")
    try:
        started = time.monotonic()
        done = node.agent("plan")
    finally:
        node.config.write_bytes(before)
    checks.foresees(done, str(node.config))
    assert time.monotonic() - started < 20  # with the start of the program, on a busy machine


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e400", "-9223372036854775808"])
def test_odd_number_is_left_to_the_runtime(word: str, node: CliNode) -> None:
    """The runtime decides about it; nothing of ours falls over it."""
    before = node.config.read_bytes()
    node.config.write_bytes(before + f"\n[plugins.x]\ny = {word}\n".encode())
    try:
        done = node.agent("plan")
    finally:
        node.config.write_bytes(before)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 3)


@pytest.mark.parametrize("data", TOMLS.values(), ids=TOMLS)
def test_reading_takes_little_time(data: bytes) -> None:
    """Of the processor: five seconds would be a hang."""
    before = time.process_time()
    with pytest.raises(Refused, match=r"^cannot read f: "):
        document.parse(data, "f")
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    "text",
    ['a = "x"', 'a = """x""y"""', '"""a""""" """b"""" ', "'''x'''''", '"\\\\"', "'\\'", '"a\\"b"',
     'a = """x\\"""y"""', "# ' \" \n'a'"],
)  # fmt: skip
def test_strings_have_the_end_that_they_had(text: str) -> None:
    """What is closed is one token, and the tokens are the text."""
    tokens = [found[0] for found in dialect.TOKEN.finditer(text)]
    assert "".join(tokens) == text
    for word in tokens:
        if word[0] in "\"'":
            assert len(word) > 1
            assert word[-1] == word[0]


JOURNALS = {
    "deep": b"[" * DEEP + b"]" * DEEP,
    "deep in a key": b'{"format": 1, "wanted": ' + b'{"a": ' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "rather deep": b'{"format": 1, "wanted": ' + b"[" * 300 + b"]" * 300 + b"}",
    "long number": b'{"format": ' + b"1" * 5_000 + b"}",
    "not a number": b'{"format": NaN}',
    "many values": b'{"format": 1, "entries": [' + b"{}," * 300_000 + b"{}]}",
    "large": b'{"format": 1, "purpose": "' + b"x" * (9 << 20) + b'"}',
    "NUL": b"\0" * 100,
    "byte order mark": b"\xef\xbb\xbf{}",
    "half a character": b'{"format": 1, "entries": [{"host": "\\ud800"}]}',
    "no text": b"\xff\xfe\xfd",
    "empty": b"",
}


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize("file", ["journal.json", "memory.json", "failed.json"])
def test_deep_state_is_refused_by_its_name(name: str, file: str, node: CliNode) -> None:
    """The file is named, and nothing is touched."""
    path, tree = node.state / file, node.tree()
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(JOURNALS[name])
    try:
        done = node.agent("apply")
    finally:
        path.unlink() if before is None else path.write_bytes(before)
    assert "Traceback" not in done.stderr
    if file != "failed.json" or done.returncode:  # of a node that is right nobody asks for it
        assert done.returncode == 3, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"cannot read {path}")
    assert node.tree() == tree


_JOURNAL: dict[str, Any] = {
    "format": 1, "purpose": "apply", "boot_id": "b", "stage": "written", "entries": [],
    "wanted": {"handlers": {}, "default": None, "enable_cdi": False, "absent": []}, "before": [],
    "process": None, "kind": "containerd", "socket": "/run/x", "restart": None,
    "memory": {"files": {}, "default": None, "enabled_cdi": False, "cdi_refused": None},
    "old_memory": {"files": {}, "default": None, "enabled_cdi": False, "cdi_refused": None},
    "fingerprint": "f",
}  # fmt: skip
_ENTRY: dict[str, Any] = {
    "host": "/etc/x", "before": None, "after": None, "mode": 0o644, "uid": 0, "gid": 0,
}  # fmt: skip
WRONG: dict[str, dict[str, Any]] = {
    "wanted": {"wanted": {"handlers": {"x": 1}}}, "nothing wanted": {"wanted": {}},
    "before": {"before": [None]}, "process": {"process": ["a", 1]},
    "process of 400 digits": {"process": [10**400, 1]}, "twin": {"twin": "é"},
    "barrier": {"barrier": "abc"}, "socket": {"socket": "/a\0b"},
    "memory": {"memory": {"files": 1}},
    "executable": {"executable": 1.5}, "restart": {"restart": [1]}, "stuck": {"stuck": "ab"},
    "host with NUL": {"entries": [{**_ENTRY, "host": "/\0"}]},
    "host that is a number": {"entries": [{**_ENTRY, "host": 7}]},
    "mode": {"entries": [{**_ENTRY, "mode": 10**30}]},
    "a million directories": {"entries": [{**_ENTRY, "made": 10**9}]},
    "entries": {"entries": {"a": 1}}, "more fields": {"surprise": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_journal_of_other_types_is_refused(name: str, node: CliNode) -> None:
    """It is JSON, and what stands in it is not what should. Nothing is undone by half."""
    path, tree = node.state / "journal.json", node.tree()
    path.write_text(json.dumps({**_JOURNAL, "socket": str(node.socket), **WRONG[name]}))
    try:
        done = node.agent("apply")
    finally:
        path.unlink(missing_ok=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("cannot read ")
    assert node.tree() == tree


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """State that would exceed the budget of its reader is refused before it is written."""
    from agent.state.store import Memory, Original

    store = Store(str(tmp_path))
    large = Original("d", 0o644, 0, 0, "w", text="x" * (9 << 20))
    with pytest.raises(Refused, match=r"^cannot write .*memory\.json: it is larger than"):
        store.remember(Memory({"/x": large}))
    assert list(tmp_path.iterdir()) == []


VALUES: dict[str, Any] = {
    "a byte of a path": "/a\udcff", "half a pair": "\ud800", "both halves": "\U0001f600",
    "low half": "\udc00", "halves the wrong way": "\ude00\ud83d",
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_halves_of_characters_are_written_as_text(name: str) -> None:
    """What comes out can be written; a byte of a path stays."""
    value = VALUES[name]
    found = budget.json_value(json.dumps({"x": [value], value: 1}), budget.INFO)
    text = found["x"][0]
    text.encode("utf-8", "surrogateescape")
    assert text in found
    if name in ("a byte of a path", "both halves"):
        assert text == value


@pytest.mark.parametrize("depth", [1, budget.JSON_DEPTH - 1, budget.JSON_DEPTH + 1, 5_000])
def test_depth_of_json_is_limited(depth: int) -> None:
    text = '{"a":' * depth + "1" + "}" * depth
    if depth > budget.JSON_DEPTH:
        with pytest.raises(budget.OverBudget, match="nested"):
            budget.json_value(text, budget.INFO)
    else:
        assert budget.json_value(text, budget.INFO)


def test_line_of_a_log_is_read_in_linear_time() -> None:
    """Quotes that are not closed, words that are not assigned: each is looked at once."""
    rng = random.Random(1)  # noqa: S311 - no secret
    before = time.process_time()
    for line in ("a" * 65_000, 'a="' * 20_000, 'x="\\"' * 15_000, "level=a " * 8_000,
                 "".join(rng.choice('a="\\ ') for _ in range(60_000))):  # fmt: skip
        command.entry(line)
    assert time.process_time() - before < 3


def test_pattern_of_many_stars_ends_soon() -> None:
    before = time.process_time()
    assert not matches("/" + "*a" * 30 + "b", "/" + "a" * 250)
    assert matches("/" + "*a" * 30 + "*", "/" + "a" * 250)
    assert not matches("/" + "a" * 1_000_000, "/a")
    assert time.process_time() - before < 1


def test_endless_directories_are_refused(tmp_path: Path) -> None:
    """CRI-O walks down the directory of its drop-ins; so deep nobody has one."""
    from agent.host.paths import HostRoot
    from agent.runtimes.crio import load

    (tmp_path / ("d/" * 600)).mkdir(parents=True)
    with pytest.raises(Refused, match=r"^cannot use .*nested"):
        load.load(HostRoot("/"), "", str(tmp_path))


def test_endless_imports_are_refused(node: CliNode) -> None:
    """Of the whole disk, and of files one by one."""
    before = node.config.read_bytes()
    many = ", ".join(f'"/nowhere/{number}*.toml"' for number in range(600))
    text = handler("runc", node.section)
    for imports in (many, '"/*/*/*/*/*/*/*"'):
        node.config.write_bytes(
            b"imports = [" + imports.encode() + b"]\n" + before.split(b"\n", 1)[1]
        )
        try:
            done = node.agent("plan")
        finally:
            node.config.write_bytes(before)
        assert "Traceback" not in done.stderr
        checks.foresees(done, "")
    assert text
