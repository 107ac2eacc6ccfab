"""The scripted CRI-O reads and merges files like the real one: order, tables, refusals."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.doubles.crio.generation import VERSIONS, Table, generation_of
from tests.doubles.crio.load import RefusedError, load, walk
from tests.doubles.crio.status import effective_text, info, template_text
from tests.doubles.crio.validate import validate

RUNTIME, HANDLER = "[crio.runtime]\n", "[crio.runtime.runtimes.{}]\n"
NVIDIA = HANDLER.format("nvidia")
RUNC = HANDLER.format("runc")
BIN = "crun runc conmon kata".split()


@dataclass(frozen=True)
class Node:
    """Directories with CRI-O's files and the executables of its PATH."""

    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / "etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("@BIN@", str(self.bin)), encoding="utf-8")

    def load(self, version: str, *, by_key: bool = False) -> Table:
        config, drop_ins = self.root / "etc/crio.conf", self.root / "etc/crio.conf.d"
        return load(generation_of(version), str(config), str(drop_ins), by_key=by_key)

    def effective(self, version: str = "1.37.0") -> tuple[Table, list[str]]:
        """Give what a starting daemon makes of it, and its warnings."""
        document, lines = self.load(version), list[str]()
        validate(
            generation_of(version), document, lambda _, text: lines.append(text), execution=True
        )
        return document, lines


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(tmp_path)
    for name in BIN:
        (node.bin / name).parent.mkdir(exist_ok=True)
        (node.bin / name).touch(0o755)
    node.write({"crio.conf": "", "crio.conf.d/00-empty": ""})
    monkeypatch.setenv("PATH", str(node.bin))
    return node


@pytest.mark.parametrize("version", VERSIONS)
def test_built_in_settings_are_those_of_the_version(version: str, node: Node) -> None:
    document, warnings = node.effective(version)

    runtime, minor = document["runtime"], int(version.split(".")[1])
    name = "crun" if minor >= 31 else "runc"
    assert runtime["default_runtime"] == name
    assert list(runtime["runtimes"]) == [name]
    assert runtime["runtimes"][name]["runtime_path"] == str(node.bin / name)
    assert runtime["runtimes"][name]["runtime_type"] == "oci"
    assert runtime.get("cdi_spec_dirs") == (["/etc/cdi", "/var/run/cdi"] if minor >= 24 else None)
    assert warnings == []


@pytest.mark.parametrize("version", VERSIONS)
def test_status_info_has_what_each_version_shows(version: str, node: Node) -> None:
    document, _ = node.effective(version)

    shown = info(generation_of(version), document)
    minor = int(version.split(".")[1])
    assert set(shown) == ({"config"} if minor >= 27 else set())
    if shown:
        config = json.loads(shown["config"])
        assert set(config) == ({"crio", "sandboxImage"} if minor >= 33 else {"sandboxImage"})


def test_files_are_read_in_the_order_of_a_walk(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/b/x", "a.conf", "a-", ".hidden.tmp", "B", "c.bak", "é"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    found = [str(Path(name).relative_to(tmp_path)) for name in walk(str(tmp_path))]

    # By bytes, and a directory where its own name comes: not by whole paths.
    assert found == [".hidden.tmp", "B", "a/b/x", "a/z", "a-", "a.conf", "b", "c.bak", "é"]


DEFAULTS = [
    # files with a default runtime each, and which wins
    ({"crio.conf": "runc", "crio.conf.d/10-a": "kata"}, "kata"),
    ({"crio.conf.d/10-a": "kata", "crio.conf.d/99-b": "runc"}, "runc"),
    ({"crio.conf.d/99-b.conf": "kata", "crio.conf.d/10-a.conf": "runc"}, "kata"),
    ({"crio.conf.d/10.toml.bak": "kata"}, "kata"),
    ({"crio.conf.d/.99-nvidia.toml.tmp": "kata"}, "kata"),
    ({"crio.conf.d/50/a/b": "kata", "crio.conf.d/40": "runc"}, "kata"),
    ({"crio.conf.d/50/z": "kata", "crio.conf.d/50.conf": "runc"}, "runc"),
    ({"crio.conf.d/A": "kata", "crio.conf.d/a": "runc"}, "runc"),
]


@pytest.mark.parametrize(("files", "expected"), DEFAULTS)
def test_last_file_wins(files: dict[str, str], expected: str, node: Node) -> None:
    handlers = {"crio.conf.d/000": RUNC + HANDLER.format("kata")}
    node.write({n: f"{RUNTIME}default_runtime = '{d}'\n" for n, d in files.items()} | handlers)

    document, _ = node.effective()

    assert document["runtime"]["default_runtime"] == expected


def test_handlers_of_all_files_are_there(node: Node) -> None:
    node.write(
        {
            "crio.conf": RUNC + "runtime_root = '/main'\n",
            "crio.conf.d/10": HANDLER.format("kata") + RUNTIME + "log_level = 'debug'\n",
            "crio.conf.d/20": NVIDIA + "runtime_path = '@BIN@/runc'\n",
        }
    )

    document, _ = node.effective()

    handlers = document["runtime"]["runtimes"]
    assert set(handlers) == {"crun", "runc", "kata", "nvidia"}
    assert handlers["runc"]["runtime_root"] == "/main"
    assert handlers["crun"]["runtime_root"] == "/run/crun"
    assert document["runtime"]["log_level"] == "debug"


def test_handler_that_is_named_again_starts_from_nothing(node: Node) -> None:
    """So the path is the one in PATH, whatever an earlier file says."""
    node.write(
        {
            "crio.conf": RUNC + "runtime_path = '@BIN@/kata'\nmonitor_cgroup = 'pod'\n",
            "crio.conf.d/10": RUNC + "runtime_root = '/srv'\n[crio.runtime.runtimes.crun]\n",
        }
    )

    document, _ = node.effective()
    runc, crun = (document["runtime"]["runtimes"][name] for name in ("runc", "crun"))

    assert (runc["runtime_path"], runc["runtime_root"]) == (str(node.bin / "runc"), "/srv")
    assert runc["monitor_cgroup"] == ""
    assert (crun["runtime_root"], crun["runtime_type"]) == ("", "")
    by_key = node.load("1.37.0", by_key=True)["runtime"]["runtimes"]
    assert by_key["runc"]["runtime_path"] == str(node.bin / "kata")
    assert by_key["runc"]["runtime_root"] == "/srv"


def test_arrays_are_replaced_and_unknown_keys_ignored(node: Node) -> None:
    node.write(
        {
            "crio.conf": RUNTIME + "cdi_spec_dirs = ['/a', '/b', '/c']\nenable_cdi = true\n[foo]\n",
            "crio.conf.d/10": RUNTIME + "cdi_spec_dirs = ['/d']\n",
            "crio.conf.d/20": "[crio.runtime.unknown]\nx = 1\n[crio.Runtime]\nLOG_level = 'warn'\n",
        }
    )

    node.write({"crio.conf.d/30": RUNTIME + "runtimes = 3\n"})  # what is no map is let pass

    document, _ = node.effective()

    assert document["runtime"]["cdi_spec_dirs"] == ["/d"]
    assert set(document["runtime"]["runtimes"]) == {"crun"}
    assert "enable_cdi" not in document["runtime"]
    # The decoder takes a name in any case where the exact one is unknown.
    assert document["runtime"]["log_level"] == "warn"
    node.load("1.23.5")  # has no cdi_spec_dirs, so it is as unknown as the rest


BROKEN = [
    ("x = = 3", "Unexpected character"),
    ("[a]\n[a]\n", "already exists"),
    ("crio = 3", "integer|int"),
    (RUNTIME + "default_runtime = 3", "destination has type string"),
    (RUNTIME + "cdi_spec_dirs = '/x'", "destination has type slice"),
    (RUNTIME + "cdi_spec_dirs = [1]", "destination has type slice"),
    (RUNTIME + "selinux = 'no'", "destination has type boolean"),
    (RUNTIME + "pids_limit = 1.0", "destination has type integer"),
    ("[crio.runtime.runtimes]\nrunc = 'x'", "destination has type map"),
    ("[[crio.runtime.runtimes.runc]]\nruntime_path = 'x'", "destination has type map"),
    ("[[crio]]\n", "destination has type map"),
    (NVIDIA + "runtime_path = true", "destination has type string"),
    (NVIDIA + "allowed_annotations = 'x'", "destination has type slice"),
]


@pytest.mark.parametrize("name", ["crio.conf", "crio.conf.d/99.toml", "crio.conf.d/x/99.bak"])
@pytest.mark.parametrize(("text", "reason"), BROKEN)
def test_broken_file_is_refused_by_its_name(name: str, text: str, reason: str, node: Node) -> None:
    node.write({name: text})

    with pytest.raises(RefusedError, match=reason) as caught:
        node.load("1.37.0")
    assert f"unable to decode configuration {node.root}/etc/{name}: toml: " in str(caught.value)


def test_what_cannot_be_read_is_refused(node: Node) -> None:
    drop_ins = node.root / "etc/crio.conf.d"
    for name, target in {"link": "/nowhere", "folder": "..", "ff": "."}.items():
        (drop_ins / name).symlink_to(target)
        with pytest.raises(RefusedError, match=f"open .*/{name}: "):
            node.load("1.37.0")
        (drop_ins / name).unlink()
    (drop_ins / "x").write_bytes(b"x = '\xff'")
    with pytest.raises(RefusedError, match=r"unable to decode configuration .*/x: toml: "):
        node.load("1.37.0")
    (drop_ins / "x").unlink()
    (node.root / "etc/crio.conf").unlink()
    with pytest.raises(RefusedError, match=r"open .*crio.conf: no such file or directory"):
        node.load("1.37.0")
    node.write({"crio.conf": ""})
    for path in drop_ins.iterdir():
        path.unlink()
    drop_ins.rmdir()
    node.load("1.37.0")  # a directory that is not there is none


HANDLERS = [
    # a handler's table, and its path or the reason why it is ignored
    ("runtime_path = '@BIN@/kata'", "kata"),
    ("runtime_path = '/nowhere/nvidia'", "invalid runtime_path"),
    ("runtime_root = '/x'", "not found in $PATH"),
    ("inherit_default_runtime = true", "crun"),
    ("runtime_path = '@BIN@/kata'\nruntime_type = 'odd'", "invalid `runtime_type`"),
    ("runtime_path = '@BIN@/kata'\nallowed_annotations = ['odd']", "invalid allowed_annotation"),
    ("runtime_path = '@BIN@/kata'\nruntime_config_path = '/x'", "can only be used with"),
    ("runtime_path = '@BIN@/kata'\nallowed_annotations = ['io.kubernetes.cri-o.Devices']", "kata"),
]


@pytest.mark.parametrize(("text", "expected"), HANDLERS)
def test_handler_that_is_no_good_is_ignored_unless_it_is_the_default(
    text: str, expected: str, node: Node
) -> None:
    node.write({"crio.conf.d/10": f"{NVIDIA}{text}\n"})

    document, warnings = node.effective()

    handlers = document["runtime"]["runtimes"]
    if expected in BIN:
        assert handlers["nvidia"]["runtime_path"] == str(node.bin / expected)
        assert warnings == []
        return
    assert set(handlers) == {"crun"}
    [warning] = warnings
    assert warning.startswith('Runtime handler "nvidia" is being ignored due to: ')
    assert expected in warning
    node.write({"crio.conf.d/20": RUNTIME + "default_runtime = 'nvidia'\n"})
    with pytest.raises(RefusedError, match="runtime validation: "):
        node.effective()


def test_inheriting_is_unknown_to_old_versions(node: Node) -> None:
    node.write({"crio.conf.d/10": f"{NVIDIA}inherit_default_runtime = true\n"})

    assert "nvidia" not in node.effective("1.30.14")[0]["runtime"]["runtimes"]
    assert "nvidia" in node.effective("1.32.11")[0]["runtime"]["runtimes"]


@pytest.mark.parametrize("version", VERSIONS)
def test_default_needs_a_handler_and_its_program(version: str, node: Node) -> None:
    node.write({"crio.conf.d/10": RUNTIME + "default_runtime = 'nvidia'\n"})
    with pytest.raises(RefusedError, match=r"\[crio.runtime.runtimes.nvidia\] was found"):
        node.effective(version)
    node.write({"crio.conf.d/10": RUNTIME + "default_runtime = ''\n"})
    built_in = generation_of(version).default_runtime
    assert node.effective(version)[0]["runtime"]["default_runtime"] == built_in
    (node.bin / built_in).unlink()
    with pytest.raises(RefusedError, match="not found in"):
        node.effective(version)


def test_monitor_of_all_handlers_wins_and_has_to_be_there(node: Node) -> None:
    handler = NVIDIA + "runtime_path = '@BIN@/runc'\nmonitor_path = '/nowhere'\n"
    node.write({"crio.conf.d/10": handler})
    with pytest.raises(RefusedError, match="monitor fields for runtime nvidia: invalid conmon"):
        node.effective()
    node.write({"crio.conf.d/20": RUNTIME + "conmon = '@BIN@/kata'\nconmon_cgroup = 'pod'\n"})

    for name, found in node.effective()[0]["runtime"]["runtimes"].items():
        assert found["monitor_path"] == str(node.bin / "kata"), name
        assert found["monitor_cgroup"] == "pod"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_printed_is_read_again_as_the_same(version: str, node: Node) -> None:
    generation = generation_of(version)
    node.write({"crio.conf.d/10": NVIDIA + "runtime_path = '@BIN@/runc'\n"})
    document, _ = node.effective(version)

    node.write({"crio.conf.d/10": effective_text(generation, document)})
    again, _ = node.effective(version)

    assert again == document
    template = template_text(generation, node.load(version))
    assert "runtimes" in tomllib.loads(template)["crio"]["runtime"]
    assert tomllib.loads(template_text(generation, generation.defaults()))["crio"]["api"] == {}


CAPTURES = Path(__file__).resolve().parents[2] / "data/captures"
PACKAGED = """
[crio.runtime]
default_runtime = "crun"
conmon_cgroup = "pod"
[crio.runtime.runtimes.crun]
runtime_path = "@BIN@/crun"
runtime_root = "/run/crun"
monitor_path = "@BIN@/conmon"
allowed_annotations = ["io.containers.trace-syscall"]
[crio.runtime.runtimes.runc]
runtime_path = "@BIN@/runc"
runtime_root = "/run/runc"
monitor_path = "@BIN@/conmon"
"""
OURS = """
[crio.runtime.runtimes.{}]
runtime_path = "@BIN@/kata"
runtime_type = "oci"
runtime_root = "/run/crun"
monitor_path = "@BIN@/conmon"
allowed_annotations = ["io.containers.trace-syscall"]
"""
PATHS = ("runtime_path", "monitor_path")  # the double's are the test's own


def settings(table: Table) -> Table:
    """What is compared of a handler: lists of annotations that it is denied are cut."""
    cut = {key: value for key, value in table.items() if key not in PATHS}
    return {key: bool(value) if key == "DisallowedAnnotations" else value
            for key, value in cut.items()}  # fmt: skip


@pytest.mark.parametrize(("version", "capture"), [("1.30.14", "1.30.14"), ("1.37.0", "1.37")])
def test_packaged_node_is_as_captured(version: str, capture: str, node: Node) -> None:
    """Handlers, key by key, as a real CRI-O shows the packaged files and a drop-in of ours."""
    ours = "".join(map(OURS.format, ("nvidia", "nvidia-cdi", "nvidia-legacy")))
    node.write({"crio.conf.d/10-crio.conf": PACKAGED, "crio.conf.d/99-nvidia.conf": ours})
    document, _ = node.effective(version)
    generation = generation_of(version)

    shown = tomllib.loads(effective_text(generation, document))["crio"]["runtime"]
    real = tomllib.loads((CAPTURES / f"cri-o-{capture}/packaged-node.toml").read_text())
    expected = real["crio"]["runtime"]
    assert shown["default_runtime"] == expected["default_runtime"]
    assert list(shown["runtimes"]) == list(expected["runtimes"])
    for name, table in expected["runtimes"].items():
        assert settings(shown["runtimes"][name]) == settings(table), name


@pytest.mark.parametrize(("version", "capture"), [("1.30.14", "1.30.14"), ("1.37.0", "1.37")])
def test_status_is_as_captured(version: str, capture: str, node: Node) -> None:
    """The same by Status: nothing but the image before 1.33."""
    node.write({"crio.conf.d/10-crio.conf": PACKAGED})
    shown = json.loads(info(generation_of(version), node.effective(version)[0])["config"])
    status = json.loads((CAPTURES / f"cri-o-{capture}/status.json").read_text())
    assert shown.keys() == status["config"].keys()
    if "crio" in shown:
        real, ours = status["config"]["crio"]["Runtimes"], shown["crio"]["Runtimes"]
        for name in ("crun", "runc"):
            assert ours[name].keys() == real[name].keys()
            for key, value in real[name].items():
                if key not in ("RuntimePath", "MonitorPath", "DisallowedAnnotations"):
                    assert ours[name][key] == value, (name, key)


@pytest.mark.parametrize(("version", "capture"), [("1.30.14", "1.30.14"), ("1.37.0", "1.37")])
def test_default_template_is_as_captured(version: str, capture: str) -> None:
    """`crio config --default` has a setting of the section in the table of its last handler."""
    generation = generation_of(version)
    text = template_text(generation, generation.defaults(), everything=True)
    real = tomllib.loads((CAPTURES / f"cri-o-{capture}/default-handler.toml").read_text())
    [(name, table)] = real["crio"]["runtime"]["runtimes"].items()
    printed = tomllib.loads(text)["crio"]["runtime"]["runtimes"]
    assert list(printed) == [name]
    known = {key: value for key, value in table.items() if value}
    assert known["hostnetwork_disable_selinux"] is True
    # The double has no cgroup of systemd's; what is empty it does not print.
    assert {key: printed[name].get(key) for key in known if key != "monitor_cgroup"} == {
        key: value for key, value in known.items() if key != "monitor_cgroup"
    }
