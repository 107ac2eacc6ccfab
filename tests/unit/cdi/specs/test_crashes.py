"""Foreign CDI specs: which files a runtime loads, and which it dies of.

The table is what containerd 1.7.24 and 2.1.9 do with each file (`conformance/test_foreign.py`).
"""

from __future__ import annotations

import json
import os
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cdi.specs import crashes, read, spec_files
from agent.cri.versions import parse_version
from agent.host.files import new_state
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.base import RestartHazard
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import deadly_specs
from agent.runtimes.containerd.generations import CRI_V2, CRI_V3, generation
from tests.conformance.foreign_specs import CASES, Case


@pytest.mark.parametrize("case", [case for case in CASES if not case.lenient], ids=str)
def test_deadly_spec_is_found_exactly_where_the_runtime_dies(case: Case, tmp_path: Path) -> None:
    """In every spelling, under every name; and as root, as the runtime is, without permissions."""
    seen = case.deadly and (case.mode != 0 or os.geteuid() == 0)
    assert found(case.make(tmp_path)) is seen


@pytest.mark.parametrize("case", [case for case in CASES if case.lenient], ids=str)
def test_more_is_found_where_something_else_is_wrong(case: Case, tmp_path: Path) -> None:
    """What saves the runtime there is another fault, which the next version may not mind."""
    assert not case.deadly
    assert found(case.make(tmp_path))


def found(directory: Path, version: str = "2.1.9", **section: object) -> bool:
    """Is one of the directory's files deadly for that containerd, as far as files can tell?"""
    return in_the_way(directory, version, **section) is not None


def in_the_way(directory: Path, version: str, **section: object) -> RestartHazard | None:
    """What it says of the first one."""
    parsed = parse_version(version)
    assert parsed is not None
    number, name = (3, CRI_V3) if parsed >= (2, 0, 0) else (2, CRI_V2)
    settings = {"cdi_spec_dirs": [str(directory)], **section}
    path = HostPath("/c.toml", "/c.toml")
    data = {"version": number, "plugins": {name: settings}}
    file = ConfigFile("/c.toml", path, new_state(), data)
    return deadly_specs.first_deadly(HostRoot("/"), generation(parsed), (file,))


@pytest.mark.parametrize(
    ("version", "section", "dies"),
    [("1.6.20", {"enable_cdi": True}, False), ("1.7.24", {}, False),
     ("1.7.24", {"enable_cdi": True}, True), ("2.1.9", {}, True),
     ("2.1.9", {"enable_cdi": False}, False), ("2.3.4", {}, True), ("2.4.0-beta.0", {}, False),
     ("2.1.9", {"cdi_spec_dirs": []}, False), ("2.1.9", {"cdi_spec_dirs": 7}, False)],
)  # fmt: skip
def test_deadly_spec_counts_only_where_the_runtime_reads_it(
    version: str, section: dict[str, object], dies: bool, tmp_path: Path
) -> None:
    """Not without CDI, not in a directory of no interest, not in a version without the fault."""
    (tmp_path / "site.yaml").write_text("kind: v/gpu")
    assert found(tmp_path, version, **section) is dies


def test_deadly_spec_is_found_below_links_and_odd_names(tmp_path: Path) -> None:
    """As `/var/run/cdi` is on every node."""
    (tmp_path / "run/cdi").mkdir(parents=True)
    (tmp_path / "run/cdi/site.yaml").write_text("kind: v/gpu")
    (tmp_path / "var").symlink_to("run")
    assert found(tmp_path / "var/cdi")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert not found(tmp_path / "dangling/cdi")
    assert found(tmp_path, cdi_spec_dirs=[f"{tmp_path}/none", f"{tmp_path}//run/./cdi/"])


_NAME = st.text("ab_.-1é ", max_size=3)
_KIND = st.one_of(st.builds("{}/{}".format, _NAME, _NAME), st.text(string.printable, max_size=6))


@given(_KIND, st.sampled_from(["plain", "flow", "json", "quoted", "folded", "utf-16"]))
def test_no_spelling_is_missed(kind: str, spelling: str) -> None:
    """Whoever writes it: the kind is read back, and the quick look agrees with the reader."""
    data = {"annotations": {"kind": "v/nested"}, "kind": kind, "devices": [{"name": "x"}]}
    text = {
        "plain": lambda: yaml.safe_dump(data, allow_unicode=True),
        "flow": lambda: yaml.safe_dump(data, default_flow_style=True, sort_keys=False),
        "json": lambda: json.dumps(data, indent="\t"),
        "quoted": lambda: yaml.safe_dump(data, default_style='"', width=10),
        "folded": lambda: yaml.safe_dump(data, default_style=">"),
        "utf-16": lambda: yaml.safe_dump(data, explicit_start=True),
    }[spelling]()
    encoded = text.encode("utf-16" if spelling == "utf-16" else "utf-8")
    assert read.kinds(encoded) == (kind,)
    # No kind that is asked for has what YAML writes in another way.
    assert crashes.has_kind(encoded, kind) or any(char.isspace() or char == "'" for char in kind)
    vendor, _, name = kind.partition("/")
    short = [part for part in (vendor, name) if part in ("a", "b")]
    deadly = crashes.crashing_kind(encoded)
    assert deadly in (None, kind)
    if vendor in ("a", "b") and name:
        assert deadly == kind
    if not short:
        assert deadly is None or len(vendor) == 1 or len(name) == 1


@given(st.binary(max_size=40), st.text("{}[]:,&*!|>'\"%@`-? \n\tkindv/x<", max_size=30))
def test_garbage_is_no_spec(data: bytes, text: str) -> None:
    """Whatever lies there, it is read or it is not; nothing is raised."""
    for document in (data, text.encode(), b"kind: v/x\n" + data):
        crashes.crashing_kind(document)
        assert all(isinstance(kind, str) for kind in read.kinds(document))


@pytest.mark.parametrize("depth", [500, 20_000])
def test_nothing_is_too_deep(depth: int) -> None:
    """A file made to exhaust the reader is read or refused."""
    for opening, closing in (("[", "]"), ("{a: ", "}")):
        document = "a: !x " + opening * depth + closing * depth + "\nkind: v/x\n"
        assert read.kinds(document.encode()) in ((), ("v/x",))


def test_circular_and_repeated_merges_end() -> None:
    """A circle is refused; so is a key that is merged twice, however often."""
    assert read.kinds(b"a: &a {<<: *a, kind: v/x}\n<<: [*a, *a]\n") == ()
    lines = [f"{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}]}}" for n in range(1, 60)]
    document = "\n".join(["0: &b0 {kind: v/x}", *lines, "<<: *b59"])
    assert read.kinds(document.encode()) == ()
    assert read.kinds(b"a: &a {kind: v/x}\nb: &b {<<: *a}\n<<: *b\n") == ("v/x",)


def test_reader_without_libyaml_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML built without it reads the same, if slower."""
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert crashes.crashing_kind(b"kind: v/gpu\n") == "v/gpu"
    assert read.kinds(b"a: " + b"[" * 1000) == ()


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """Directories, pipes, links that lead nowhere; and a directory that is not there."""
    (tmp_path / "d.yaml").mkdir()
    os.mkfifo(tmp_path / "p.yaml")
    (tmp_path / "l.yaml").symlink_to("nowhere")
    (tmp_path / "a.yaml").write_text("kind: ab/cd")
    host = HostRoot("/")
    found = spec_files.entries(host, HostPath(str(tmp_path), "/cdi"))
    assert [(path.host, data) for path, data in found] == [("/cdi/a.yaml", b"kind: ab/cd")]
    assert list(spec_files.entries(host, HostPath(f"{tmp_path}/none", "/cdi"))) == []


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9", "2.4.0"])
@pytest.mark.parametrize("link", [False, True])
def test_pipe_named_like_a_spec_refuses_a_restart(tmp_path: Path, version: str, link: bool) -> None:
    """Whoever reads specs at its start would never get to its end; one by another name is nobody's
    spec."""
    os.mkfifo(tmp_path / "pipe")
    assert in_the_way(tmp_path, version, enable_cdi=True) is None
    (tmp_path / "p.yaml").symlink_to("pipe") if link else os.mkfifo(tmp_path / "p.yaml")
    blocked = in_the_way(tmp_path, version, enable_cdi=True)
    assert isinstance(blocked, RestartHazard)
    assert f"cannot restart containerd: {tmp_path}/p.yaml is a pipe" in str(blocked)
