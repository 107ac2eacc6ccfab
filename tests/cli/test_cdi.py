"""`cdi list` and `cdi validate` report what a runtime makes of a tree of specs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.cli_node import CliNode, fails, shows
from tests.conformance.foreign_specs import make_root, spec
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.tools import forked
from tests.tools.nobody import as_nobody
from tests.tools.runtimes import ROOT

GOOD = spec("vendor.example/gpu")


def run(root: Path, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the program on a host root, as somebody who has only files."""
    env = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    done = forked.run(forked.AGENT, ["cdi", *words, f"--host-root={root}"], env, root, data=data)
    assert "Traceback" not in done.stderr
    return done


def data(result: subprocess.CompletedProcess[str], code: int = 0) -> Mapping[str, Any]:
    """The JSON document that was printed."""
    assert result.returncode == code, result.stderr
    found: Mapping[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def test_node_without_specs_has_no_problem(root: Path) -> None:
    """Said so; there is nothing wrong with it."""
    result = run(root, "list")
    assert result.returncode == 0
    assert result.stdout.startswith("There are no CDI specs in /etc/cdi, /var/run/cdi.\nNote: ")
    result = run(root, "validate")
    assert result.returncode == 0
    assert result.stdout.startswith("0 files: 0 errors, 0 warnings.\n")


def test_list_shows_the_same_in_every_form(root: Path) -> None:
    """The same in every form."""
    (root / "etc/cdi/a.yaml").write_text(GOOD)
    (root / "run/cdi/a.yaml").write_text(GOOD)
    (root / "run/cdi/nvidia.yaml").write_text(spec("nvidia.com/gpu"))
    (root / "run/cdi/bad.json").write_text("{")
    found = data(run(root, "list", "-o", "json"))
    assert (found["apiVersion"], found["kind"]) == ("toolkit-agent/v1", "CDIDevices")
    assert found["runtime"] is None
    assert yaml.safe_load(run(root, "list", "-o", "yaml").stdout) == found
    rows = [(d["name"], d["file"], d["writer"], d["state"]) for d in found["devices"]]
    gpu = "vendor.example/gpu=gpu0"
    assert rows == [
        (gpu, "/etc/cdi/a.yaml", "vendor.example", "shadowed"),
        (gpu, "/var/run/cdi/a.yaml", "vendor.example", "resolvable"),
        ("nvidia.com/gpu=gpu0", "/var/run/cdi/nvidia.yaml", "nvidia-cdi-refresh", "resolvable"),
    ]
    assert [d["resolvable"] for d in found["devices"]] == [False, True, True]
    table = run(root, "list", "-o", "wide").stdout.splitlines()
    assert table[0].split() == ["DEVICE", "RESOLVABLE", "WRITER", "FILE", "WHY"]
    assert "shadowed: /var/run/cdi/a.yaml defines it too, and wins" in table[1]
    assert "neither YAML nor JSON" in next(line for line in table if "bad.json" in line)
    names = [gpu, "nvidia.com/gpu=gpu0"]
    assert run(root, "list", "-o", "name").stdout.splitlines() == names
    text = run(root, "list").stdout
    assert f"/var/run/cdi/a.yaml (by vendor.example)\n  yes      {gpu}\n" in text
    assert f"  no       {gpu}\n           shadowed: /var/run/cdi/a.yaml defines it too" in text
    assert max(map(len, text.splitlines())) <= 80


def test_output_directory_is_looked_at(root: Path) -> None:
    """Also where it is none of the usual ones; "" is none."""
    (root / "srv").mkdir()
    (root / "srv/a.yaml").write_text(GOOD)
    [device] = data(run(root, "list", "-o", "json", "--cdi-output-dir=/srv"))["devices"]
    assert device["file"] == "/srv/a.yaml"
    assert data(run(root, "list", "-o", "json", "--cdi-output-dir="))["devices"] == []


def test_validate_reports_each_problem_with_its_remedy(root: Path) -> None:
    """Exit code 1 where something is to be told: file, severity, place, what, remedy."""
    (root / "etc/cdi/good.yaml").write_text(GOOD)
    assert run(root, "validate").returncode == 0
    (root / "etc/cdi/good2.yaml").write_text(GOOD)
    (root / "run/cdi/.bad.yaml").write_text(spec("v/gpu") + "foo: 1\n")
    (root / "run/cdi/ignored.yml").write_text("{")
    found = data(run(root, "validate", "-o", "json"), 1)
    assert found["kind"] == "CDIFindings"
    assert yaml.safe_load(run(root, "validate", "-o", "yaml").stdout) == found
    files = [finding["file"] for finding in found["findings"]]
    assert files == ["/var/run/cdi/.bad.yaml"] * 2 + ["/etc/cdi/good.yaml", "/etc/cdi/good2.yaml"]
    assert all(finding["severity"] == "error" for finding in found["findings"])
    assert found["findings"][1]["where"] == "kind"
    text = run(root, "validate").stdout
    error = "  error:   there is no field 'foo' here\n  do:      remove it"
    assert f"/var/run/cdi/.bad.yaml\n{error}" in text
    assert "3 files: 4 errors, 0 warnings." in text


def test_given_files_are_read_by_any_name(root: Path) -> None:
    """By any name, also from standard input; one that is not there is an error."""
    (root / "some.txt").write_text(GOOD)
    (root / "link").symlink_to("some.txt")
    (root / "bad").write_bytes(b"\xff\xfe\x00")
    assert run(root, "validate", "some.txt", "link", "-", data=GOOD.encode()).returncode == 0
    result = run(root, "validate", "some.txt", "bad")
    assert result.returncode == 1
    assert result.stdout.startswith("bad\n  error:   it is neither YAML nor JSON")
    assert run(root, "validate", "-", data=b"").returncode == 1
    os.mkfifo(root / "pipe")
    assert "is a pipe" in run(root, "validate", "pipe").stdout
    fails(run(root, "validate", "none"), 3, "none", "no such file")
    fails(run(root, "validate", "--what"), 2, "--what")
    fails(run(root, "validate", "."), 3, "cannot read .", "directory", "give the files in it")


def test_what_others_write_does_not_reach_the_terminal(root: Path) -> None:
    """Names of devices and files may hold anything."""
    (root / "run/cdi/\x1b[31m\n.yaml").write_text(
        spec(r'"a\eb/c"').replace("gpu0", r'"\e[31m\u202e"')
    )
    for command in ("list", "validate"):
        text = run(root, command).stdout
        assert not {"\x1b", "\u202e"} & set(text)
        assert r"\x1b[31m\n.yaml" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away: run tests/run as root")
def test_unreadable_specs_are_a_warning_without_root(place: Path) -> None:
    """What can be read is judged; what cannot is a warning."""
    root = place
    (root / "run/cdi").mkdir(parents=True)
    (root / "var").symlink_to(".")
    (root / "run/cdi/a.yaml").write_text(GOOD)
    (root / "run/cdi/b.yaml").write_text(GOOD)
    (root / "run/cdi/b.yaml").chmod(0)
    root.chmod(0o755)
    words = [*as_nobody(root), sys.executable]
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from agent.cli import main; main()"
    result = subprocess.run(
        [*words, "-c", code, str(ROOT), "cdi", "validate", f"--host-root={root}", "-o", "json"],
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
        cwd="/", timeout=60, check=False,
    )  # fmt: skip
    [finding] = data(result, 1)["findings"]
    assert (finding["severity"], finding["file"]) == ("warning", "/var/run/cdi/b.yaml")
    assert finding["remedy"] == "run as root"


@pytest.mark.parametrize("words", [["list"], ["validate"], ["validate", "some.yaml"]])
def test_grpc_is_not_loaded_where_no_runtime_is_asked(root: Path, words: list[str]) -> None:
    """There is no socket."""
    (root / "some.yaml").write_text(GOOD)
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "agent", "cdi", *words, f"--host-root={root}"],
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)}, cwd=root, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "agent.reports.specs" in loaded
    assert loaded & {"grpc", "google.protobuf", "structlog", "asyncio"} == set()


class SpecNode(CliNode):
    """A node whose runtime reads specs in two directories of its own."""

    def __init__(self, directory: Path, version: str, switch: str = "") -> None:
        self.dirs = directory / "one", directory / "two"
        section = SECTIONS[2 if version.startswith("1") else 3]
        dirs = json.dumps([str(path) for path in self.dirs])
        text = f"[{section}]\n{switch}\ncdi_spec_dirs = {dirs}\n{handler('runc', section)}"
        super().__init__(directory, version, text)
        for path in self.dirs:
            path.mkdir()


@pytest.fixture
def new(place: Path) -> Iterator[SpecNode]:
    with SpecNode(place, "2.1.9") as node:
        yield node


def test_runtime_is_asked(new: SpecNode) -> None:
    """Its directories count, and its version: 2.1 reads up to 1.0.0."""
    one, two = new.dirs
    (one / "a.yaml").write_text(spec("ab/cd", 'cdiVersion: "1.0.0"\n'))
    (two / "b.yaml").write_text(spec("ab/ef", 'cdiVersion: "1.1.0"\n'))
    other = new.directory / "other"
    other.mkdir()
    (other / "c.yaml").write_text(spec("ab/gh"))
    found = shows(new.agent("cdi list", "-o", "json", f"--cdi-output-dir={other}"), "CDIDevices")
    assert found["runtime"].startswith("containerd 2.1.9")
    assert [(d["path"], d["read"]) for d in found["directories"]] == [
        (str(one), True), (str(two), True), (str(other), False),
    ]  # fmt: skip
    assert [d["state"] for d in found["devices"]] == ["resolvable", "invalid", "unread"]
    [finding] = shows(new.agent("cdi validate", "-o", "json"), "CDIFindings", 1)["findings"]
    assert finding["what"].endswith("reads up to 1.0.0")
    assert finding["remedy"] == "write 0.3.0"


def test_runtime_with_cdi_off_reads_no_spec(place: Path) -> None:
    """It reads nothing, and it is said."""
    with SpecNode(place, "1.7.24", "enable_cdi = false") as node:
        (node.dirs[0] / "a.yaml").write_text(GOOD)
        found = shows(node.agent("cdi list", "-o", "json"), "CDIDevices")
        assert [d["state"] for d in found["devices"]] == ["unread"]
        assert "CDI switched off" in found["notes"][0]


@pytest.mark.parametrize(
    "text", ["version = 3\n", "# by hand\n[plugins]\n  x = 1\n", "", "- a\n"],
    ids=["TOML", "tables of TOML", "empty", "a list"],
)  # fmt: skip
def test_file_of_another_kind_is_not_to_become_a_spec(place: Path, text: str) -> None:
    """Somebody named the wrong file."""
    path = place / "config.toml"
    path.write_text(text)
    done = forked.run(forked.AGENT, ["cdi", "validate", path], {}, place)
    assert done.returncode == 1
    assert "this is no CDI spec: name another file" in done.stdout
    assert "write a spec" not in done.stdout
