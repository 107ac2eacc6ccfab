"""The runtime's own executable judges a candidate before anything is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.cri.client import Answer
from agent.errors import Refused
from agent.host.files import FileState
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.base import Endpoint, Runtime
from agent.runtimes.containerd import load, preflight
from agent.runtimes.containerd.adapter import ContainerdNode
from agent.runtimes.containerd.generations import CRI_V2, CRI_V3, generation, section_name
from agent.runtimes.preflight import Candidate, Preflight
from tests.tools import runtimes
from tests.tools.runtimes import Runtime as Real

HOST = HostRoot("/")
HANDLER = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/n"}}

# What the executables print: the files as they are, and with our handler.
BEFORE = f"""
version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins.'{CRI_V3}']
enable_cdi = false
[plugins.'{CRI_V3}'.containerd]
default_runtime_name = "runc"
[plugins.'{CRI_V3}'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.other]
x = 1
"""
AFTER = f"""{BEFORE.replace("false", "true").replace("conf.d/*", "other/*")}
[plugins.'{CRI_V3}'.containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
"""


class Scene:
    """A root file, a drop-in, and an executable that prints what a test says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "config.toml"
        self.drop_in = directory / "conf.d/99-nvidia.toml"
        self.executable = directory / "containerd"
        self.drop_in.parent.mkdir()
        self.root.write_text(f'version = 3\nimports = ["{directory}/conf.d/*.toml"] # mine\n')
        self.answers(f"cat {directory}/before", f"cat {directory}/after")
        (directory / "before").write_text(BEFORE)
        (directory / "after").write_text(AFTER)

    def answers(self, before: str, after: str) -> None:
        """Shell text for the files as they are, and for those with the drop-in."""
        self.executable.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> {self.directory}/calls\n'
            f"[ $1 = -c ] && cat $2 >> {self.directory}/staged\n"
            'if [ $1 = -c ] && grep -q "imports.*/proc/self/fd" $2; '
            f"then {after}; else {before}; fi\n"
        )
        self.executable.chmod(0o755)

    def calls(self) -> list[str]:
        """How it was called."""
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def check(self, executable: bool = True, names: tuple[str, ...] = ("nvidia",)) -> Preflight:
        """Pre-flight the drop-in."""
        gen = generation((2, 1, 0))
        answer = Answer("containerd", "2.1.9", True, {}, ())
        socket = HostPath("/s", "/s")
        node = ContainerdNode(
            host=HOST,
            runtime=Runtime(Endpoint("containerd", socket), None, answer),
            gen=gen,
            files=load.load(HOST, gen, str(self.root)),
            executable=str(self.executable) if executable else None,
            drop_in=HostPath(str(self.drop_in), str(self.drop_in)),
        )
        state = FileState(b"version = 3\n")
        after = load.load(HOST, gen, str(self.root), {str(self.drop_in): state})
        return preflight.check(node, Candidate(after, names, names))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_change_of_our_keys_alone_is_accepted(scene: Scene) -> None:
    """Handler, switch, imports and version may; nothing was written for it."""
    before = sorted(p.name for p in scene.directory.iterdir())
    result = scene.check()
    assert result.done
    assert sorted(p.name for p in scene.directory.iterdir()) == sorted([*before, "calls", "staged"])
    assert not scene.drop_in.exists()


def test_staged_files_are_the_candidates(scene: Scene) -> None:
    """In memory, the root file in its own spelling, importing the others by descriptor only."""
    scene.check()
    first, second = scene.calls()
    assert first.split()[0] == second.split()[0] == "-c"
    assert second.split()[1].startswith("/proc/self/fd/")
    staged = (scene.directory / "staged").read_text()
    assert staged.count("version = 3") == 2
    assert str(scene.directory) not in staged


def test_without_a_root_file_the_built_in_configuration_is_before(scene: Scene) -> None:
    """1.x cannot dump without a file."""
    scene.root.unlink()
    scene.answers(f"cat {scene.directory}/before", f"cat {scene.directory}/before")
    with pytest.raises(Refused, match="would not have the handler nvidia"):
        scene.check()
    assert scene.calls()[0] == "config default"


def test_unknown_executable_is_told(scene: Scene) -> None:
    """With the option that names it."""
    result = scene.check(executable=False)
    assert not result.done
    assert "--executable-path" in result.note


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.chmod(0o644)])
def test_executable_that_cannot_be_run_is_told(spoil: object, scene: Scene) -> None:
    """The merge model has to do."""
    assert callable(spoil)
    spoil(scene.executable)
    result = scene.check()
    assert not result.done
    assert "cannot be asked" in result.note


def test_candidate_that_is_turned_down_is_refused(scene: Scene) -> None:
    """In the executable's words."""
    scene.answers(f"cat {scene.directory}/before", "echo 'containerd: no such key' >&2; exit 1")
    with pytest.raises(Refused, match=r"^cannot apply: .*rejects .*no such key.*nothing was chang"):
        scene.check()


def test_configuration_that_is_turned_down_already_is_refused(scene: Scene) -> None:
    """Another fault than ours: repair it first."""
    scene.answers("echo broken >&2; exit 1", "echo broken >&2; exit 1")
    with pytest.raises(Refused, match=rf"^cannot use {scene.root}: .*as it is .broken"):
        scene.check()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("x = 1", "x = 2", "plugins.other.x"),
        ("x = 1", "x = true", "plugins.other.x"),
        ("x = 1", "x = 1\ny = 1", "plugins.other.y"),
        ("[plugins.other]\nx = 1", "", "plugins.other"),
        ('[plugins.other]\n', '[proxy_plugins]\n[plugins.other]\n', "proxy_plugins"),
        ("runtimes.runc]\n", "runtimes.runc]\nx = 1\n", "runtimes.runc.x"),
    ],
)  # fmt: skip
def test_anything_else_that_would_change_is_refused(
    old: str, new: str, named: str, scene: Scene
) -> None:
    """By the key, in the executable's own words for it."""
    assert old in AFTER
    (scene.directory / "after").write_text(AFTER.replace(old, new))
    with pytest.raises(Refused, match=r"^cannot apply: .*would change too") as told:
        scene.check()
    assert named in told.value.message


def test_default_without_a_table_is_refused(scene: Scene) -> None:
    """rc 0 proves little: such a configuration is dumped, and the CRI does not load."""
    text = AFTER.replace('default_runtime_name = "runc"', 'default_runtime_name = "gone"')
    (scene.directory / "after").write_text(text)
    with pytest.raises(Refused, match="would not have the handler gone"):
        scene.check()


def test_handler_that_gets_lost_is_refused(scene: Scene) -> None:
    """Observed on 2.1 where versions are mixed: rc 0, and the handler is not there."""
    (scene.directory / "after").write_text(BEFORE)
    with pytest.raises(Refused, match="would not have the handler nvidia"):
        scene.check()


def test_executable_that_hides_what_it_migrates_is_no_judge(scene: Scene) -> None:
    """The first releases of 2.0 (read in containerd#11747, not run): no dump shows the handlers of
    version 2 files, though the daemon has them."""
    scene.root.write_text(scene.root.read_text().replace("version = 3", "version = 2"))
    (scene.directory / "after").write_text(BEFORE)
    result = scene.check()
    assert not result.done
    assert "does not show" in result.note
    assert len(scene.calls()) == 3


def test_executable_that_shows_what_it_migrates_is_believed(scene: Scene) -> None:
    """It prints the setting of the probe, so the handler is lost indeed."""
    scene.root.write_text(scene.root.read_text().replace("version = 3", "version = 2"))
    shown = BEFORE.replace("enable_cdi", "max_container_log_line_size = 12345\nenable_cdi")
    for name in ("before", "after"):
        (scene.directory / name).write_text(shown)
    with pytest.raises(Refused, match="would not have the handler nvidia"):
        scene.check()


def test_fault_that_is_known_is_refused_without_an_executable(scene: Scene) -> None:
    """What the table of generations says has to do then."""
    scene.root.write_text("disabled_plugins = ['cri']\n" + scene.root.read_text())
    with pytest.raises(Refused, match=r"^cannot use .*config.toml has 'cri' in disabled_plugins"):
        scene.check(executable=False)


@pytest.mark.real
@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
def test_real_executable_accepts_only_candidates(generation: str, tmp_path: Path) -> None:
    """A candidate of each generation's own spelling passes; a change beside it does not."""
    real = runtimes.load().find(generation)
    assert real is not None
    number = 3 if generation == "2.1" else 2
    runc = f"[plugins.'{section_name(number)}'.containerd.runtimes.runc]\n"
    text = (
        f'version = {number}\nroot = "{tmp_path}"\n{runc}runtime_type = "io.containerd.runc.v2"\n'
    )
    ours = (
        f"[plugins.'{section_name(number)}'.containerd.runtimes.nvidia]\n"
        'runtime_type = "io.containerd.runc.v2"\noptions = { BinaryName = "/n" }\n'
    )
    check_real(real, tmp_path, text, text + ours)
    with pytest.raises(Refused, match="root would change too"):
        check_real(real, tmp_path, text, text.replace(f'"{tmp_path}"', '"/elsewhere"') + ours)
    with pytest.raises(Refused, match=r"^cannot apply: .*rejects"):
        check_real(real, tmp_path, text, text.replace(f'"{tmp_path}"', "[1]") + ours)
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]


def check_real(real: Real, directory: Path, before: str, after: str) -> None:
    """Pre-flight a change of a root file with a real executable."""
    root = directory / "config.toml"
    root.write_text(before)
    gen = generation((int(real.generation[0]), int(real.generation[2:]), 0))
    path = HostPath(str(root), str(root))
    files = load.load(HOST, gen, str(root))
    assert {CRI_V2, CRI_V3} & files[0].data["plugins"].keys()
    state = FileState(after.encode(), 0o644, os.geteuid(), os.getegid())
    candidate = load.load(HOST, gen, str(root), {str(root): state})
    answer = Answer("containerd", real.version, True, {}, ())
    runtime = Runtime(Endpoint("containerd", path), None, answer)
    node = ContainerdNode(HOST, runtime, files, str(real.executable), path, gen)
    names = ("nvidia",)
    done = preflight.check(node, Candidate(candidate, names, names))
    assert done.done, done.note
