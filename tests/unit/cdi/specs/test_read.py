"""Bytes of specs are read as Go's YAML reader does; they are data or Broken, never an exception."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cdi.specs import installed, read, spec_files
from agent.cdi.specs.readers import UNKNOWN_READER, reader_of
from agent.cdi.specs.scalar import Plain, go_text, plain_value
from agent.host.paths import HostRoot
from tests.conformance.spec_cases import CASES, REFUSED


def value(text: str) -> Any:
    """What a word without quotes is, as Python has it."""
    found = plain_value(text)
    return found.value if isinstance(found, Plain) else found


@pytest.mark.parametrize(
    ("text", "is_"),
    [("yes", True), ("y", True), ("Off", False), ("~", None), ("", None), ("NULL", None),
     ("yEs", "yEs"), ("0", 0), ("-1", -1), ("+1", 1), ("017", 15), ("0o17", 15), ("08", 8.0),
     ("0x1f", 31), ("0b11", 3), ("1_000", 1000), ("1:30", "1:30"), ("1:0", "1:0"),
     ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("1e+3", 1000.0), ("1.", 1.0),
     ("12.E03", 12000.0), ("1e999", "1e999"), ("1_0.5", 10.5), (".", "."), ("e3", "e3"),
     (".inf", float("inf")), ("0.5.0", "0.5.0"), ("2024-01-01", "2024-01-01"), ("-", "-"),
     ("18446744073709551615", (1 << 64) - 1), ("99999999999999999999", 1e20), ("a", "a"),
     ("0" * 200, 0), ("9" * 5000, "9" * 5000)],
)  # fmt: skip
def test_bare_words_mean_what_yaml_v2_makes_of_them(text: str, is_: object) -> None:
    """YAML 1.1 as yaml.v2 has it."""
    assert value(text) == is_
    assert type(value(text)) is type(is_)


@pytest.mark.parametrize(
    ("number", "text"),
    [(8.0, "8"), (0.1, "0.1"), (100000.0, "100000"), (1234567.0, "1.234567e+06"),
     (1e20, "1e+20"), (1e-7, "1e-07"), (-2.5, "-2.5"), (True, "true"), (7, "7"),
     (float("inf"), "+Inf"), (float("nan"), "NaN"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_written_as_strconv_writes_them(number: float, text: str) -> None:
    """As strconv writes them."""
    assert go_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_as_text(number: float) -> None:
    """The text is the same number."""
    assert float(go_text(number)) == number


@pytest.mark.parametrize(
    ("text", "data"),
    [("{a: b}", {"a": "b"}), ("1: b", {"1": "b"}), ("y: b", {"true": "b"}),
     ("a: !foo b", {"a": "b"}), ("a: !!str 5", {"a": "5"}), ("a: '<<'", {"a": "<<"}),
     ("a: <<", {"a": "<<"}), ("<<: {a: b}\nc: d", {"a": "b", "c": "d"}),
     ("<<: [{a: b}, {c: d}]", {"a": "b", "c": "d"}), ("a: &x b\nc: *x", {"a": "b", "c": "b"}),
     ("a: &x b\nc: &x d\ne: *x", {"a": "b", "c": "d", "e": "d"}), ("<<", "<<"),
     ('{"a": "\\u0062"}', {"a": "b"}), ("'<<': b", {"<<": "b"}), ("%YAML 1.1\n--- a", "a"),
     (r"""{a: '\/', b: \/, c: "\\/", d: é, e: "\\\\/"} # \/""",
      {"a": r"\/", "b": r"\/", "c": r"\/", "d": "é", "e": r"\\/"})],
)  # fmt: skip
def test_documents_are_read_in_utf_8_and_utf_16(text: str, data: object) -> None:
    """In UTF-8 and in UTF-16."""
    assert read.document(text.encode()).data == data
    assert read.document(text.encode("utf-16")).data == data


@pytest.mark.parametrize(
    "text",
    ["[", "{a: 1, a: 2}", "<<: {a: 1}\na: 2", "a: *b", "a: &a [*a]", "? [a]\n: b", "~: a",
     "a: !!int b", "a: !!binary '%'", "<<: a", "<<: [a]", "[" * 300 + "]" * 300,
     "a:\n" + "".join(" " * n + "-\n" for n in range(1, 300)), "\x00", "a: \x07",
     r'{"a": "\/"}', r'a: &x "\\\/"', "%YAML 1.2\n--- a"],
)  # fmt: skip
def test_documents_that_go_refuses_are_broken(text: str) -> None:
    """What Go's reader refuses."""
    for data in (text.encode(), text.encode("utf-16"), text.encode("utf-8-sig")):
        with pytest.raises(read.Broken) as caught:
            read.document(data)
        assert caught.value.text


def test_bytes_that_are_no_text_are_broken() -> None:
    """Neither UTF-8 nor UTF-16."""
    for data in (b"\xff", b"a: \xe9", b"\xff\xfea", b"\xfe\xff\xd8\x00"):
        with pytest.raises(read.Broken):
            read.document(data)


def _bomb(levels: int, wide: int = 9) -> str:
    lines = [f"a0: &a0 [{', '.join('x' * wide)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * wide)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [_bomb(9), _bomb(60), _bomb(4, 60), "<<: {a: &a {}}\n" + "- x\n" * 2_000_000,
             pytest.param("x: [" + "a, " * 1_100_000 + "]", marks=pytest.mark.long)],
    ids=["nine", "sixty", "wide", "list", "flow"],
)  # fmt: skip
def test_bombs_of_aliases_end_soon(text: str) -> None:
    """Aliases of aliases, and millions of values, end soon."""
    with pytest.raises(read.Broken):
        read.document(text.encode())


def test_few_aliases_are_fine() -> None:
    """Each device with the same edits is a spec that people write."""
    devices = "".join(f"- {{name: d{n}, containerEdits: *e}}\n" for n in range(90))
    text = f"x: &e {{env: [A=1]}}\ndevices:\n{devices}"
    found = read.document(text.encode()).data
    assert isinstance(found, dict)
    assert len(found["devices"]) == 90


SPECS = [case.text.encode() for case in (*CASES, *REFUSED)]
_HOST = HostRoot("/proc/self/fdinfo")  # nothing that a path could find
_READERS = (UNKNOWN_READER, reader_of("containerd", "1.7.24"), reader_of("containerd", "2.4.0"))


def survives(data: bytes) -> None:
    """Whatever comes out, it is findings with texts, and devices."""
    for who in _READERS:
        found = installed.examine("/etc/cdi/x.yaml", data, _HOST, who)
        for problem in found.problems:
            assert problem.what
            assert problem.remedy
            assert problem.severity in ("error", "warning")
        directory = (spec_files.Directory("/etc/cdi", None),)
        installed.devices([found], directory)
        installed.conflicts([found, found], directory)


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_broken(data: bytes) -> None:
    """No bytes make it fail."""
    survives(data)
    survives(SPECS[0] + data)


@given(st.sampled_from(SPECS), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3))))
def test_mutated_bytes_are_data_or_broken(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    """A spec with some bytes put in the place of others."""
    for at, new in changes:
        data = data[: at % (len(data) + 1)] + new + data[at % (len(data) + 1) + len(new) :]
    survives(data)


_ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1.5, 1 << 70, "", "a", "a=b", "/", "\0", [], {}, [None], [[]], {"a": None},
     [{}], float("inf")]
)  # fmt: skip
_FULL = {
    "cdiVersion": "1.1.0", "kind": "vendor.example/gpu", "annotations": {"a.b/c": "d"},
    "devices": [{"name": "0", "annotations": {"a": "b"}, "containerEdits": {
        "env": ["A=1"], "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/y", "type": "c",
        "major": 1, "minor": 2, "fileMode": 3, "permissions": "rwm", "uid": 4, "gid": 5}],
        "netDevices": [{"hostInterfaceName": "a", "name": "b"}],
        "hooks": [{"hookName": "prestart", "path": "/x", "args": ["a"], "env": ["A=1"],
                   "timeout": 1}],
        "mounts": [{"hostPath": "/x", "containerPath": "/y", "options": ["bind"], "type": "bind"}],
        "intelRdt": {"closID": "x", "schemata": [], "enableMonitoring": True},
        "additionalGids": [1]}}],
    "containerEdits": {"env": ["B=1"]},
}  # fmt: skip


def _places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, item in items:
        found.append((*at, key))
        if isinstance(item, dict | list):
            found += _places(item, (*at, key))
    return found


@given(st.sampled_from(_places(_FULL)), _ODD, st.sampled_from([None, "x", "KIND", "\0", "é"]))
def test_mutated_data_is_judged_without_an_exception(
    place: tuple[Any, ...], odd: object, key: str | None
) -> None:
    """A spec that uses every field, one of them with another value or another name."""
    data = yaml.safe_load(yaml.safe_dump(_FULL))
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    if key is not None and isinstance(inner, dict):
        inner[key] = inner.pop(place[-1])
    else:
        inner[place[-1]] = odd
    survives(yaml.safe_dump(data).encode())


def test_the_whole_spec_is_fine() -> None:
    """The one that is mutated has no fault of its own, but for files that are not there."""
    data = yaml.safe_dump(_FULL).encode()
    found = installed.examine("x.yaml", data, _HOST, reader_of("cri-o", "1.37.0"))
    assert [p for p in found.problems if "missing" not in p.what] == []
