"""`cdi list`, `cdi validate` and the agent's own proposal judge one file alike."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cdi.specs import installed, provider, read, readers, spec_files
from agent.cdi.specs.provider import RuntimeView
from agent.cdi.specs.shape import Problems
from agent.host.paths import HostRoot
from agent.options.settings import resolve
from agent.reports import specs
from agent.reports.specs import Inventory
from tests.conformance.foreign_specs import make_root
from tests.conformance.spec_cases import CASES

KIND = "nvidia.com/gpu"
DIRECTORIES = ("etc/cdi", "run/cdi")
_TEXTS = [case.content.replace("KIND", KIND).encode() for case in CASES]
_NAMES = ("nvidia.yaml", "a.json", "nvidia.com-gpu.yaml")


def _device(draw: st.DrawFn) -> dict[str, Any]:
    path = draw(st.sampled_from(["/dev/null", "/dev/nvidia9", "dev/x", ""]))
    made: dict[str, Any] = {
        "deviceNodes": [{"path": path}],
        "env": ["A=1"],
        "mounts": [{"hostPath": draw(st.sampled_from(["/etc", "/gone"])), "containerPath": "/x",
                    "options": ["ro", "bind"]}],
        "hooks": [{"hookName": "prestart", "path": "/gone/nvidia-cdi-hook"}],
        "additionalGids": [44],
        "surprise": 1,
    }  # fmt: skip
    fields = draw(st.sets(st.sampled_from(sorted(made)), max_size=3))
    name = draw(st.sampled_from(["0", "1", "all", "-"]))
    return {"name": name, "containerEdits": {field: made[field] for field in sorted(fields)}}


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A spec, one with a peculiarity, or either with some of its bytes changed."""
    if draw(st.booleans()):
        data = draw(st.sampled_from(_TEXTS))
    else:
        whole = {
            "cdiVersion": draw(st.sampled_from(["0.3.0", "0.5.0", "0.7.0", "1.1.0", "9.9.9"])),
            "kind": draw(st.sampled_from([KIND, "vendor.example/gpu", "nvidia.com"])),
            "devices": [_device(draw) for _ in range(draw(st.integers(0, 3)))],
            "containerEdits": draw(st.sampled_from([{}, {"mounts": [None]}, {"env": ["B"]}])),
        }
        data = json.dumps(whole).encode()
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=2)) + data[place + draw(st.integers(0, 3)) :]
    return data


def _placed(root: Path, files: dict[tuple[str, str], bytes]) -> None:
    for (directory, name), data in files.items():
        (root / directory / name).write_bytes(data)


def _looked(root: Path, *paths: str) -> Inventory:
    options = resolve({"runtime": "containerd", "socket": "/gone.sock"}, {}, "toolkit-agent")
    host = HostRoot(str(root))
    return (
        specs.inventory_of_files(options, host, paths) if paths else specs.inventory(options, host)
    )


def _real(root: Path, name: str) -> str:
    return f"{root}{name.removeprefix('/var')}"


def _agreement(found: Inventory, root: Path) -> None:
    by_file: dict[str, list[Any]] = {file.name: [] for file in found.files}
    for finding in found.findings:
        by_file[finding.file].append(finding.problem)
    for device in found.devices:
        problems = by_file[device.file]
        whole = [p for p in problems if p.impact == "file"]
        assert (device.state == "invalid") == bool(whole)
        if device.state == "resolvable":
            assert not [p for p in problems if p.severity == "error" and p.where.startswith("cont")]
        if device.state in ("incomplete", "conflicting"):
            assert [p for p in problems if p.impact == "use"]
    for file in found.files:
        alone = _looked(root, _real(root, file.name))
        here = [p for p in by_file[file.name] if " too, and the runtime" not in p.what]
        assert [one.problem for one in alone.findings] == here
        bad = any(p.severity == "error" for p in by_file[file.name])
        mine = [device for device in found.devices if device.file == file.name]
        if not bad:
            assert mine
            assert {device.state for device in mine} <= {"resolvable", "shadowed"}
        elif file.broken:
            assert {device.state for device in mine} <= {"invalid"}


def _proposed(found: Inventory, root: Path) -> None:
    """Every file that gives the runtime no device, or not all of them, is known to the proposal."""
    host = HostRoot(str(root))
    readings = RuntimeView(host, found.directories, found.reader)
    there = [entry for one in found.directories if one.path
             for entry in spec_files.entries(host, one.path)]  # fmt: skip
    theirs = {one.file: one for one in provider.providers(readings, KIND, there, 1)}
    unknown = list(provider.unknown_kind_warnings(readings))
    for file in found.files:
        path = file.name.removeprefix("/var")
        mine = [device for device in found.devices if device.file == file.name]
        if path in theirs:
            bad = [d for d in mine if d.state not in ("resolvable", "shadowed")]
            other = {d.name.partition("=")[0] for d in found.devices} - {KIND}
            if not other:  # conflicts of other kinds are not its business
                assert dict(theirs[path].lost).keys() >= {d.name for d in bad}
                assert bool(theirs[path].why) == (not [d for d in mine if d.state == "resolvable"])
            if file.broken:
                assert file.broken.what in theirs[path].why
        elif file.broken and "nvidia" in path:
            data = Path(_real(root, file.name)).read_bytes()
            assert read.kinds(data) or any(
                path in text and file.broken.what in text for text in unknown
            )


@given(st.dictionaries(st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(_NAMES)),
                       contents(), min_size=1, max_size=3))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_every_reader_judges_one_file_alike(files: dict[tuple[str, str], bytes]) -> None:
    """Of generated specs, of those with peculiarities, and of either with bytes changed."""
    with tempfile.TemporaryDirectory() as made:
        root = make_root(Path(made))
        _placed(root, files)
        found = _looked(root)
        _agreement(found, root)
        _proposed(found, root)


SPEC = '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [%s]}'
DEVICE = '{"name": "%s", "containerEdits": {%s}}'


def test_conflict_is_told_of_every_file(tmp_path: Path) -> None:
    """A device that two files of a directory define is taken from no other directory either: the
    third file was shown as conflicting, and found faultless."""
    root = make_root(tmp_path)
    text = (SPEC % DEVICE % ("0", '"env": ["A=1"]')).encode()
    places = [("etc/cdi", "a.json"), ("etc/cdi", "b.json"), ("run/cdi", "c.json")]
    _placed(root, dict.fromkeys(places, text))
    found = _looked(root)
    assert {device.state for device in found.devices} == {"conflicting"}
    assert {os.path.basename(one.file) for one in found.findings} == {"a.json", "b.json", "c.json"}


def test_very_many_problems_hide_none_of_another_device(tmp_path: Path) -> None:
    """Each device is judged, however much is wrong with those before it."""
    root = make_root(tmp_path)
    mount = '{"hostPath": "/gone", "containerPath": "/x", "options": ["bind"]}'
    many = f'"mounts": [{", ".join([mount] * (Problems.MOST + 1))}]'
    text = SPEC % ", ".join([DEVICE % ("0", many), DEVICE % ("1", f'"mounts": [{mount}]')])
    _placed(root, {("etc/cdi", "a.json"): text.encode()})
    found = _looked(root)
    assert [device.state for device in found.devices] == ["incomplete", "incomplete"]
    assert any(one.problem.where.startswith("devices[1]") for one in found.findings)


def test_new_field_is_judged_alike_in_list_and_file(tmp_path: Path) -> None:
    """A list and a file alone are judged by the same knowledge: a field that came with the newest
    version is a reason to ask the runtime's executable, as the version is."""
    root = make_root(tmp_path)
    text = SPEC % DEVICE % ("0", '"env": ["A=1"], "netDevices": []')
    for version, sure in (("2.2.0", False), ("2.1.9", True), ("2.4.0", None)):
        who = readers.reader_of("containerd", version)
        found = installed.examine("a.json", text.encode(), HostRoot(str(root)), who)
        assert bool(found.broken) == (sure is True)
        assert bool(installed.doubt(found)) == (sure is False)


def test_readers_look_at_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all files are looked at, it is the same ones that are."""
    root = make_root(tmp_path)
    monkeypatch.setattr("agent.host.budget.SPEC_FILES", 3)
    text = (SPEC % DEVICE % ("0", '"env": ["A=1"]')).encode()
    for name in ("a", "b", "c", "d", "nvidia"):
        _placed(root, {("etc/cdi", f"{name}.json"): text.replace(b"nvidia", b"%b" % name.encode())})
    host = HostRoot(str(root))
    found = _looked(root)
    assert [os.path.basename(file.name) for file in found.files] == [
        "a.json", "b.json", "nvidia.json",
    ]  # fmt: skip
    paths = spec_files.entries(host, host.resolve("/etc/cdi"))
    assert [path.name for path, _ in paths] == [os.path.basename(f.name) for f in found.files]
