"""The scripted toolkit does what was observed of the real one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from agent.cdi import yaml_text
from tests.doubles.toolkit import blocks, cdi, config, runtime
from tests.doubles.toolkit.config import Config
from tests.doubles.toolkit.programs import NAMES
from tests.doubles.toolkit.source import LIBRARIES, make_sources, make_tree

_GPU = "vendor.example/gpu=0"
_SPEC = {
    "cdiVersion": "0.5.0",
    "kind": "vendor.example/gpu",
    "containerEdits": {
        "env": ["CDI_COMMON=1"],
        "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"]}],
    },
    "devices": [
        {
            "name": name,
            "containerEdits": {
                "env": [f"CDI_DEVICE={name}"],
                "deviceNodes": [{"path": "/dev/made-up", "hostPath": "/dev/null"}],
                "mounts": [{"hostPath": "/etc", "containerPath": "/a/b", "options": ["ro"]}],
                "additionalGids": [44, 0],
            },
        }
        for name in ("0", "1")
    ],
}
_CONFIG = """\
accept-nvidia-visible-devices-envvar-when-unprivileged = {accept}
accept-nvidia-visible-devices-as-volume-mounts = {mounts}
[nvidia-container-runtime]
mode = "{mode}"
runtimes = ["/does/not/exist", "scripted-runc"]
[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["nvidia.cdi.k8s.io/"]
default-kind = "vendor.example/gpu"
spec-dirs = ["{cdi}"]
"""


class Bench:
    """A source tree, a low-level runtime that notes its words, a configuration and one bundle."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = make_tree(directory / "source")
        self.cdi, self.bundle = directory / "cdi", directory / "bundle"
        for folder in (self.cdi, self.bundle, directory / "low"):
            folder.mkdir()
        low = directory / "low/scripted-runc"
        low.write_text(f'#!/bin/sh\necho "$@" >>{directory}/low/words\n', encoding="utf-8")
        low.chmod(0o755)
        (self.cdi / "vendor.json").write_text(json.dumps(_SPEC), encoding="utf-8")
        self.configure()

    def configure(self, mode: str = "cdi", accept: str = "false", mounts: str = "false") -> None:
        """Write config.toml."""
        values = {"mode": mode, "accept": accept, "mounts": mounts, "cdi": self.cdi}
        (self.directory / "config.toml").write_text(_CONFIG.format(**values), encoding="utf-8")

    def run(
        self, name: str, *argv: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one program of the tree."""
        usual = {
            "PATH": f"{self.directory}/low:{os.defpath}",
            config.VARIABLE: str(self.directory / "config.toml"),
            runtime.LOG: str(self.directory / "log"),
        }
        words = [str(self.tree / "usr/bin" / name), *argv]
        return subprocess.run(
            words, env=usual | dict(env or {}), capture_output=True, text=True, check=False
        )

    def create(self, spec: object, name: str = "nvidia-container-runtime") -> str:
        """Create a container; what went wrong, empty where nothing did."""
        (self.bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        words = ["--root", "/run/x", "--log", str(self.directory / "log.json"), "create"]
        result = self.run(name, *words, "--bundle", str(self.bundle), "id")
        assert (result.returncode == 0) == (result.stderr == "")
        return result.stderr

    @property
    def spec(self) -> dict[str, Any]:
        """What the low-level runtime finds in the bundle."""
        found: dict[str, Any] = json.loads((self.bundle / "config.json").read_bytes())
        return found

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the programs noted."""
        return [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]


def container(
    env: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    mounts: Sequence[str] = (),
    *,
    privileged: bool = False,
) -> dict[str, Any]:
    """A container as containerd describes it to its OCI runtime."""
    capabilities = {"bounding": ["CAP_KILL", *(["CAP_SYS_ADMIN"] if privileged else [])]}
    return {
        "process": {"env": ["PATH=/bin", *env], "user": {"uid": 0}, "capabilities": capabilities},
        "annotations": dict(annotations or {}),
        "mounts": [{"destination": path, "source": "/dev/null"} for path in mounts],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


_ONE, _BOTH = [_GPU], [_GPU, "vendor.example/gpu=1"]
_ANNOTATED = {"nvidia.cdi.k8s.io/x": _GPU}
_VOLUME = "/var/run/nvidia-container-devices/"


@pytest.mark.parametrize(
    ("asked", "settings", "mode", "devices"),
    [
        (container(), {}, "cdi", []),
        (container(annotations=_ANNOTATED), {}, "cdi", _ONE),
        (container(annotations={"nvidia.cdi.k8s.io/x": ",".join(_BOTH)}), {}, "cdi", _BOTH),
        (container(annotations={"nvidia.cdi.k8s.io/x": "1"}), {}, "cdi", _BOTH[1:]),
        (container(annotations={"cdi.k8s.io/x": _GPU}), {}, "cdi", []),
        (container(["NVIDIA_VISIBLE_DEVICES=0"]), {}, "cdi", []),
        (container(["NVIDIA_VISIBLE_DEVICES=0"], privileged=True), {}, "cdi", _ONE),
        (container(["NVIDIA_VISIBLE_DEVICES=0,1"]), {"accept": "true"}, "cdi", _BOTH),
        (container([f"NVIDIA_VISIBLE_DEVICES={_GPU}"]), {"accept": "true"}, "cdi", _ONE),
        (container(["NVIDIA_VISIBLE_DEVICES=void"]), {"accept": "true"}, "cdi", []),
        (container(["NVIDIA_VISIBLE_DEVICES="]), {"accept": "true"}, "cdi", []),
        (
            container(["NVIDIA_VISIBLE_DEVICES=1"], _ANNOTATED, privileged=True),
            {},
            "cdi",
            _ONE,
        ),
        (container(mounts=[_VOLUME + "0"]), {}, "cdi", []),
        (container(mounts=[_VOLUME + "0"]), {"mounts": "true"}, "cdi", _ONE),
        (container(mounts=[_VOLUME + "cdi/vendor.example/gpu/0"]), {"mounts": "true"}, "cdi", _ONE),
        # Any but CDI's mode looks at no annotation; what the mode is, they decide too.
        (container(annotations=_ANNOTATED), {"mode": "auto"}, "cdi", _ONE),
        (container(annotations=_ANNOTATED), {"mode": "jit-cdi"}, "jit-cdi", []),
        (container(annotations=_ANNOTATED), {"mode": "legacy"}, "legacy", []),
        (container(annotations=_ANNOTATED), {"mode": "csv"}, "csv", []),
        (
            container([f"NVIDIA_VISIBLE_DEVICES={_GPU}"]),
            {"mode": "auto", "accept": "true"},
            "cdi",
            _ONE,
        ),
        (
            container([f"NVIDIA_VISIBLE_DEVICES={_GPU},1"]),
            {"mode": "auto", "accept": "true"},
            "jit-cdi",
            [_GPU, "runtime.nvidia.com/gpu=1"],
        ),
        (
            container(["NVIDIA_VISIBLE_DEVICES=all"]),
            {"mode": "jit-cdi", "accept": "true"},
            "jit-cdi",
            ["runtime.nvidia.com/gpu=all"],
        ),
    ],
)
def test_container_asks_by_annotation_mount_or_variable(
    bench: Bench, asked: object, settings: dict[str, str], mode: str, devices: list[str]
) -> None:
    """By annotation, else by mount, else by variable where that is accepted."""
    bench.configure(**settings)
    assert bench.create(asked) == ""
    call = bench.calls[-1]
    assert (call["mode"], call["devices"]) == (mode, devices)
    assert call["config"] == str(bench.directory / "config.toml")
    if not devices:
        assert bench.spec == asked


def test_edits_of_the_device_are_added_to_the_bundle(bench: Bench) -> None:
    """Everything of the device is in the bundle, and nothing of before is gone."""
    assert bench.create(container(annotations={"nvidia.cdi.k8s.io/x": ",".join(_BOTH)})) == ""
    spec, null = bench.spec, os.stat("/dev/null").st_rdev
    numbers = {"type": "c", "major": os.major(null), "minor": os.minor(null)}
    assert spec["process"]["env"] == ["PATH=/bin", "CDI_COMMON=1", "CDI_DEVICE=1"]
    assert spec["process"]["user"]["additionalGids"] == [44]
    assert spec["linux"]["devices"] == [{"path": "/dev/made-up", **numbers, "fileMode": 0o666}]
    rules = spec["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[1:] == [{"allow": True, **numbers, "access": "rwm"}] * 2
    assert [m["destination"] for m in spec["mounts"]] == ["/a/b"]
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/true", "args": ["true", "x"]}]}


def test_undescribed_device_makes_no_container(bench: Bench) -> None:
    """No container then, and the reason is where a shim looks for it."""
    said = bench.create(container(annotations={"nvidia.cdi.k8s.io/x": "77"}))
    assert "could not apply required modification to OCI specification: " in said
    assert "unresolvable CDI devices vendor.example/gpu=77" in said
    assert json.loads((bench.directory / "log.json").read_text())["msg"] in said
    assert not (bench.directory / "low/words").exists()
    assert "unresolvable" in bench.calls[-1]["error"]


@pytest.mark.parametrize(("end", "mode"), [("cdi", "cdi"), ("legacy", "legacy")])
def test_name_of_the_program_forces_its_mode(bench: Bench, end: str, mode: str) -> None:
    """Whatever the configuration says; in legacy mode a hook does the work."""
    bench.configure(mode="auto", accept="true")
    asked = container(["NVIDIA_VISIBLE_DEVICES=0"])
    assert bench.create(asked, f"nvidia-container-runtime.{end}") == ""
    assert bench.calls[-1]["mode"] == mode
    prestart = bench.spec["hooks"].get("prestart", [])
    names = [hook["args"][0] for hook in prestart]
    assert names == (["nvidia-container-runtime-hook"] if mode == "legacy" else [])
    if prestart:
        assert bench.create(bench.spec, "nvidia-container-runtime.cdi") == ""
        assert bench.spec["hooks"]["prestart"] == []


@pytest.mark.parametrize(
    "words", [["start", "id"], ["--version"], ["features"], ["delete", "--bundle", "create", "id"]]
)
def test_other_subcommands_go_to_the_low_level_runtime(bench: Bench, words: list[str]) -> None:
    """They are the low-level runtime's business alone."""
    assert bench.run("nvidia-container-runtime", *words).returncode == 0
    assert (bench.directory / "low/words").read_text().split() == words
    assert bench.calls[-1]["low_level"] == str(bench.directory / "low/scripted-runc")
    assert "mode" not in bench.calls[-1]


def test_low_level_runtime_of_nvidia_is_an_error(bench: Bench) -> None:
    """An error where the real ones would execute each other for ever."""
    own = bench.tree / "usr/bin/nvidia-container-runtime.cdi"
    text = (bench.directory / "config.toml").read_text().replace("scripted-runc", str(own))
    (bench.directory / "config.toml").write_text(text)
    result = bench.run("nvidia-container-runtime", "start", "id")
    assert result.returncode == 1
    assert "is an nvidia-container-runtime itself" in result.stderr


def test_missing_low_level_runtime_is_an_error_with_names(bench: Bench) -> None:
    """It says which it looked for."""
    (bench.directory / "low/scripted-runc").unlink()
    result = bench.run("nvidia-container-runtime", "start", "id")
    assert (result.returncode, "[/does/not/exist scripted-runc]" in result.stderr) == (1, True)


def test_invalid_mode_starts_nothing(bench: Bench) -> None:
    """A configuration that makes no sense starts nothing."""
    bench.configure(mode="native")
    assert "invalid runtime mode: native" in bench.create(container())


def test_missing_configuration_gives_the_defaults(bench: Bench, tmp_path: Path) -> None:
    """Everything is as the real one has it by itself."""
    assert config.load({"XDG_CONFIG_HOME": str(tmp_path)}) == Config(
        path="",
        accepts_variable=True,
        accepts_mounts=False,
        mode="auto",
        runtimes=("runc", "crun"),
        prefixes=("cdi.k8s.io/",),
        default_kind="nvidia.com/gpu",
        spec_dirs=("/etc/cdi", "/var/run/cdi"),
        hook="nvidia-container-runtime-hook",
    )
    result = bench.run("nvidia-ctk", "config", env={config.VARIABLE: "", "XDG_CONFIG_HOME": "/x"})
    assert result.stdout == config.DEFAULTS
    own = (bench.directory / "config.toml").read_text()
    assert bench.run("nvidia-ctk", "config").stdout == own


def test_other_programs_need_what_the_real_ones_need(bench: Bench) -> None:
    """The hook is content with everything; the CLI needs both libraries, where it is told to."""
    assert bench.run("nvidia-cdi-hook", "update-ldcache", "--folder", "/x").returncode == 0
    assert bench.calls[-1]["argv"] == ["update-ldcache", "--folder", "/x"]
    result = bench.run("nvidia-container-cli", "--version")
    assert (result.returncode, "libnvidia-container.so.1" in result.stderr) == (127, True)
    folder = next(bench.tree.glob("usr/lib/*-linux-gnu"))
    env = {"LD_LIBRARY_PATH": f"{folder}:"}
    assert bench.run("nvidia-container-cli", "--version", env=env).stdout == "cli-version: 1.18.0\n"
    (folder / LIBRARIES[1]).unlink()
    result = bench.run("nvidia-container-cli", "--version", env=env)
    assert (result.returncode, LIBRARIES[1] in result.stderr) == (127, True)


def test_upgraded_tree_has_one_version(tmp_path: Path) -> None:
    """One of each kind; an upgrade leaves nothing of the version before."""
    make_sources(tmp_path)
    for folder in ("deb/usr/lib/*-linux-gnu", "rpm/usr/lib64"):
        libraries = next(tmp_path.glob(folder))
        for name in LIBRARIES:
            assert (libraries / name).resolve().name == f"{name.removesuffix('.1')}.1.18.0"
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    make_sources(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    make_sources(tmp_path, "1.19.0")
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(after) == len(before)
    assert not [path for path in after if "1.18" in path.name]
    for name in NAMES:
        program = tmp_path / "rpm/usr/bin" / name
        assert after[program] != before[program]
        assert program.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a/x.json": "0"}, {"a/x.json"}),
        ({"a/x.json": "0", "a/y.json": "0"}, set()),
        ({"a/x.json": "0", "b/y.json": "0"}, {"b/y.json"}),
        ({"a/x.json": "0", "b/x.json": "0", "b/y.json": "0"}, set()),
        ({"a/x.json": "0", "a/.hidden.json": "1"}, {"a/x.json", "a/.hidden.json"}),
        ({"a/x.json.bak": "0", "a/sub/x.json": "0"}, set()),
        ({"a/x.json": "0", "a/broken.json": ""}, {"a/x.json"}),
    ],
)
def test_description_of_a_device_counts_as_in_the_library(
    tmp_path: Path, files: dict[str, str], found: set[str]
) -> None:
    """Which of several descriptions of a device counts, as the libraries have it."""
    for name, device in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        devices = [{"name": device, "containerEdits": {}}]
        data = {"cdiVersion": "0.5.0", "kind": "vendor.example/gpu", "devices": devices}
        path.write_text(json.dumps(data) if device else "{")
    known = cdi.devices([str(tmp_path / "none"), str(tmp_path / "a"), str(tmp_path / "b")])
    assert {str(Path(d.file).relative_to(tmp_path)) for d in known.values()} == found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (_GPU, True),
        ("management.nvidia.com/gpu=all", True),
        ("k8s.device-plugin.nvidia.com/gpu=GPU-0fe1-22", True),
        ("nvidia.com/gpu=0:1", True),
        ("all", False),
        ("nvidia.com/gpu", False),
        ("=0", False),
        ("nvidia.com/gpu=", False),
    ],
)
def test_qualified_names_are_told_from_others(name: str, expected: bool) -> None:
    assert cdi.is_qualified(name) == expected


_SCALARS = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.none())
_DATA = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(data=st.dictionaries(st.text(min_size=1, max_size=6), _DATA, min_size=1, max_size=4))
def test_specs_of_the_agent_are_read(data: dict[str, Any]) -> None:
    """Every document of the program's own writer."""
    assert blocks.parse("\n".join(yaml_text.lines(data))) == data


@example(data={"a": {"'": ""}})
@example(data={"a": {":0": None, "b:c": "d:e"}})
@given(data=st.dictionaries(st.sampled_from("abcd"), _DATA, min_size=1, max_size=4))
def test_specs_of_others_are_read(data: dict[str, Any]) -> None:
    """The same in the style of a common library, as far as its scalars need no folding."""
    if "\\" not in (text := yaml.safe_dump(data, width=10**6)) and "\n\n" not in text:
        assert blocks.parse(text) == yaml.safe_load(text)


def test_specs_in_nvidias_style_are_read() -> None:
    """Bare words, comments, sequences at the indent of their key."""
    text = """\
---
# a comment
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      major: 195
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void  # not twice
  hooks: []
"""
    assert blocks.parse(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["a: |\n  b\n", "a: &x 1\n", "a: 1\na: 2\n", "a: 1\n b: 2\n"])
def test_unreadable_spec_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        blocks.parse(text)
