"""`cdi generate` obeys its options, writes to its output and has the right exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import fails
from tests.doubles.nvml.nvml import FakeGpu, FakePart, place
from tests.tools import forked
from tests.tools.driver import LIBRARIES, make_driver
from tests.tools.kernel import make_kernel, make_node
from tests.unit.support.gpu_node import MARKS

pytestmark = MARKS

GPUS = (FakeGpu(0), FakeGpu(1, mig=1, parts=(FakePart(0, 1),)))


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The root of a made-up host whose driver is its own."""
    make_driver(tmp_path)
    make_kernel(tmp_path, tmp_path, GPUS)
    place(tmp_path, GPUS)
    hook = tmp_path / "usr/bin/nvidia-cdi-hook"
    hook.write_text("#!/bin/sh\n", encoding="ascii")
    hook.chmod(0o755)
    return tmp_path


def run(host: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`cdi generate` as a user calls it."""
    words = ("cdi", "generate", f"--host-root={host}", *words)
    return forked.run(forked.AGENT, words, {"PATH": os.defpath, **env}, Path.cwd())


def spec(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it printed, without a word besides."""
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def names(data: dict[str, Any]) -> list[str]:
    return [device["name"] for device in data["devices"]]


def hooks(data: dict[str, Any]) -> list[str]:
    return [hook["args"][1] for hook in data["containerEdits"].get("hooks", ())]


def test_gpu_is_another_name_of_nvml(host: Path) -> None:
    """Names by index and UUID, unless other ones are asked for."""
    made = run(host, "--mode=gpu", "--format=json")
    assert names(spec(made)) == ["0", "1:0", GPUS[0].name, GPUS[1].parts[0].name(1), "all"]
    assert run(host, "--mode=nvml", "--format=json").stdout == made.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--device-name-strategy=index,type-index"],
        ["--device-name-strategy", "index", "--device-name-strategy=type-index"],
    ],
)
def test_lists_are_given_at_once_or_one_by_one(host: Path, words: list[str]) -> None:
    """As NVIDIA's tool takes them."""
    data = spec(run(host, "--mode=nvml", "--format=json", *words))
    assert names(data) == ["0", "1:0", "all", "gpu0", "mig1:0"]


def test_command_line_wins_over_variables_of_the_peer(host: Path) -> None:
    """The command line wins."""
    env = {
        "NVIDIA_CTK_CDI_GENERATE_DEVICE_NAME_STRATEGIES": "type-index",
        "NVIDIA_CTK_CDI_GENERATE_DISABLED_HOOKS": "all",
    }
    data = spec(run(host, "--mode=nvml", "--format=json", **env))
    assert (names(data), hooks(data)) == (["all", "gpu0", "mig1:0"], [])
    data = spec(run(host, "--mode=nvml", "--format=json", "--disable-hook=chmod", **env))
    assert hooks(data)[-1] == "update-application-profile"


@pytest.mark.parametrize("mode", ["management", "gpu"])
def test_hooks_can_be_switched_off(host: Path, mode: str) -> None:
    """One, several, all."""
    for off in (["update-ldcache"], ["update-ldcache", "create-symlinks"], ["all"]):
        words = [f"--disable-hook={name}" for name in off]
        data = spec(run(host, f"--mode={mode}", "--format=json", *words))
        assert not set(off) & set(hooks(data))
        assert bool(hooks(data)) == (off != ["all"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--device-name-strategy=name", "--device-name-strategy=name: give one of"),
        ("--device-name-strategy=", "empty device name strategy"),
        ("--disable-hook=ldconfig", "--disable-hook=ldconfig: give one of"),
        ("--mode=tegra", "give one of management, auto, nvml, gpu, csv, wsl, "),
    ],
)
def test_words_that_make_no_sense_are_usage_errors(host: Path, word: str, said: str) -> None:
    """Said, with what there is."""
    fails(run(host, word), 2, said)


def test_failure_prints_one_line_and_no_spec(host: Path) -> None:
    """Exit code 3, one line, nothing on stdout."""
    place(host, GPUS, ["abort nvmlDeviceGetCount_v2"])
    fails(run(host, "--mode=nvml"), 3, "cannot ask the NVIDIA driver", "crashed (SIGABRT)")
    fails(run(host, "--mode=gdrcopy"), 3, "/dev/gdrdrv")
    make_node(host / "dev/gdrdrv", 240, 0)
    assert names(spec(run(host, "--mode=gdrcopy", "--format=json"))) == ["all"]


def test_what_is_left_out_is_told(host: Path) -> None:
    """On stderr; the rest is printed."""
    place(host, [*GPUS, FakeGpu(2, code=15)])
    made = run(host, "--mode=nvml", "--format=json")
    assert made.returncode == 0
    assert made.stderr == "warning: GPU 2 is not in the CDI spec: GPU is lost\n"
    assert names(json.loads(made.stdout))[-1] == "all"


def written(host: Path, *words: str, **env: str) -> Path:
    """Where it says that it wrote a file."""
    made = run(host, *words, **env)
    assert (made.returncode, made.stdout) == (0, "")
    last = made.stderr.splitlines()[-1]
    assert last.startswith("written: /")
    return host / last.removeprefix("written: /")


@pytest.mark.parametrize(
    ("words", "name", "start"),
    [
        (("--output=/etc/cdi/a.yaml",), "a.yaml", "---\ncdiVersion"),
        (("--output=/etc/cdi/a.json",), "a.json", "{\n"),
        (("--output=/etc/cdi/a",), "a.yaml", "---\ncdiVersion"),
        (("--output=/etc/cdi/a", "--format=json"), "a.json", "{\n"),
        (("--output=/etc/cdi/a.yml",), "a.yml.yaml", "---\ncdiVersion"),
        (("--output=/etc/cdi/a.yaml", "--format=json"), "a.yaml", "---\ncdiVersion"),
    ],
)
def test_output_goes_to_host_directories_with_an_ending_that_runtimes_read(
    words: tuple[str, ...], name: str, start: str, host: Path
) -> None:
    """In the host's directories, with an ending that runtimes read, as NVIDIA's tool has it. It is
    its user's file, and not marked as one that the agent writes anew."""
    path = written(host, "--mode=gpu", *words)
    assert path == host / "etc/cdi" / name
    assert [one.name for one in path.parent.iterdir()] == [name]
    assert path.read_text().startswith(start)
    assert "toolkit-agent" not in path.read_text()
    assert path.stat().st_mode & 0o7777 == 0o644
    words = ("cdi", "validate", f"--host-root={host}", str(path))
    listed = forked.run(forked.AGENT, words, {"PATH": os.defpath}, Path.cwd())
    assert listed.returncode == 0, listed.stdout


def test_output_below_the_host_root_is_a_path_of_the_host(host: Path) -> None:
    """A path below the host root is one of the host's."""
    path = written(host, "--mode=gpu", f"--output={host}/opt/cdi/a.yaml")
    assert path == host / "opt/cdi/a.yaml"
    assert path.exists()


def test_output_is_there_as_a_whole_or_not_at_all(host: Path) -> None:
    """A refusal leaves the one from before, and nothing beside it."""
    path = written(host, "--mode=gpu", "--output=/etc/cdi/a.yaml")
    before = path.read_bytes(), path.stat().st_ino
    place(host, GPUS, ["abort nvmlDeviceGetCount_v2"])
    fails(run(host, "--mode=gpu", "--output=/etc/cdi/a.yaml"), 3, "crashed (SIGABRT)")
    assert (path.read_bytes(), path.stat().st_ino) == before
    fails(
        run(host, "--mode=gpu", "--output=/etc/cdi/a.yaml", "--vendor=1"),
        2,
        "--vendor=1: give two or more",
    )
    fails(run(host, "--output=/etc/cdi/a.yaml/b.yaml"), 3, "/etc/cdi/a.yaml is not a directory")
    (host / "etc/b.yaml").mkdir()
    fails(run(host, "--output=/etc/b.yaml"), 3, "cannot write /etc/b.yaml: is a directory")
    assert os.listdir(path.parent) == ["a.yaml"]
    assert written(host, "--output=/etc/cdi/a.yaml").stat().st_ino != before[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device-id=0"], ["0", GPUS[0].name, "all"]),
        (["--device-id", "0", "--device-id=1:0"], ["0", "1:0", "all"]),
        ([f"--devices={GPUS[0].name},0"], ["0", "all"]),
        ([f"--device={GPUS[1].parts[0].name(1)}"], ["1:0", "all"]),
        (["--device-ids=1"], ["1", "all"]),
        (["--device-id=0,all"], ["0", "1:0", "all"]),
        (["--device-id=none"], ["none"]),
        (["--no-all-device"], ["0", "1:0"]),
        (["--no-all-device=false"], ["0", "1:0", "all"]),
    ],
)
def test_wanted_devices_are_chosen_by_index_or_uuid(
    words: list[str], expected: list[str], host: Path
) -> None:
    """By index or UUID; a GPU that is split can be had as a whole."""
    made = run(host, "--mode=nvml", "--format=json", *words)
    assert made.returncode == 0, made.stderr
    assert set(expected) <= set(names(json.loads(made.stdout)))
    indices = {name for name in names(json.loads(made.stdout)) if "-" not in name}
    assert indices == {name for name in expected if "-" not in name}


def test_unknown_device_is_refused_with_the_known_ones(host: Path) -> None:
    """Said with what there may be."""
    fails(run(host, "--mode=nvml", "--device-id=7"), 3, "no GPU or MIG device 7", "nvidia-smi -L")
    make_node(host / "dev/nvidia-caps-imex-channels/channel3", 240, 3)
    assert names(spec(run(host, "--mode=imex", "--format=json", "--device-id=channel3"))) == [
        "3", "all"
    ]  # fmt: skip
    fails(run(host, "--mode=imex", "--device-id=4"), 3, "there is no channel 4")


def test_kind_takes_vendor_and_class_in_every_mode(host: Path) -> None:
    """Each of its parts, in every mode."""
    for mode, kind in (("management", "management.nvidia.com/gpu"), ("nvml", "nvidia.com/gpu")):
        assert spec(run(host, f"--mode={mode}", "--format=json"))["kind"] == kind
        found = spec(run(host, f"--mode={mode}", "--format=json", "--vendor=acme.com"))
        assert found["kind"] == "acme.com/gpu"
        words = (f"--mode={mode}", "--format=json", "--cdi-vendor=acme.com", "--cdi-class=card.x")
        assert spec(run(host, *words))["kind"] == "acme.com/card.x"


def test_hook_program_is_taken_by_path_or_by_installed_name(host: Path) -> None:
    """A path as it is, there or not; a name only where it is installed."""

    def first(*words: str) -> tuple[str, list[str]]:
        data = spec(run(host, "--format=json", *words))
        hook = data["containerEdits"]["hooks"][0]
        return hook["path"], hook["args"]

    assert first() == ("/usr/bin/nvidia-cdi-hook", first()[1])
    path, args = first("--nvidia-cdi-hook-path=/opt/none/nvidia-cdi-hook")
    assert (path, args[:2]) == (
        "/opt/none/nvidia-cdi-hook", ["nvidia-cdi-hook", "create-symlinks"]
    )  # fmt: skip
    path, args = first("--nvidia-ctk-path=/opt/nvidia-ctk")
    assert (path, args[:3]) == ("/opt/nvidia-ctk", ["nvidia-ctk", "hook", "create-symlinks"])
    fails(run(host, "--nvidia-cdi-hook-path=nvidia-ctk"), 3, "there is no nvidia-ctk in")
    fails(run(host, "--nvidia-cdi-hook-path=bin/hook"), 2, "give an absolute path, or nvidia-cdi-")


def test_hooks_can_be_switched_on_by_name(host: Path) -> None:
    """One that is switched off, all others being off, and one that is made only so."""
    off = ("--mode=management", "--format=json", "--disable-hook=all")
    assert hooks(spec(run(host, *off, "--enable-hook=update-ldcache"))) == ["update-ldcache"]
    data = spec(run(host, *off, "--enable-hook=chmod", "--ldconfig-path=/sbin/ldconfig"))
    assert hooks(data) == []
    (device,) = data["devices"]
    assert [hook["args"][1:] for hook in device["containerEdits"]["hooks"]] == [
        ["chmod", "--mode", "755", "--path", "/dev/nvidia-caps"]
    ]
    data = spec(run(host, "--format=json", "--ldconfig-path=/sbin/ldconfig"))
    (cache,) = (
        hook for hook in data["containerEdits"]["hooks"] if "update-ldcache" in hook["args"]
    )
    assert cache["args"][2:4] == ["--ldconfig-path", "/sbin/ldconfig"]


def test_search_paths_replace_the_usual_directories(host: Path) -> None:
    """They take the place of the usual directories."""
    (host / LIBRARIES).rename(host / "opt")
    assert run(host).returncode == 3
    data = spec(run(host, "--format=json", "--library-search-path=/opt"))
    assert data["containerEdits"]["env"][0] == "NVIDIA_CTK_LIBCUDA_DIR=/opt"
    said = run(host, "--library-search-path=/else")
    fails(said, 3, "there is no NVIDIA driver (libcuda or libnvidia-ml) in /else")
    for directory in ("etc", "conf"):
        (host / directory / "vulkan/icd.d").mkdir(parents=True)
        (host / directory / "vulkan/icd.d/nvidia_icd.json").touch()
    words = ("--mode=nvml", "--format=json", "--library-search-path=/opt")
    for more, source in (((), "/etc"), (("--config-search-path=/conf",), "/conf")):
        mounts = spec(run(host, *words, *more))["containerEdits"]["mounts"]
        found = {one["containerPath"]: one["hostPath"] for one in mounts}
        assert (
            found["/etc/vulkan/icd.d/nvidia_icd.json"] == f"{source}/vulkan/icd.d/nvidia_icd.json"
        )


def test_every_variable_of_the_peer_is_obeyed(host: Path) -> None:
    """As `nvidia-ctk cdi generate` has them."""
    prefix = "NVIDIA_CTK_CDI_GENERATE_"
    env = {
        f"{prefix}MODE": "NVML", f"{prefix}OUTPUT_FORMAT": "JSON", f"{prefix}VENDOR": "acme.com",
        f"{prefix}CLASS": "card", f"{prefix}DEVICE_IDS": "0", f"{prefix}NO_ALL_DEVICE": "true",
        f"{prefix}LDCONFIG_PATH": "/sbin/ld", f"{prefix}ENABLED_HOOKS": "update-ldcache",
        f"{prefix}DISABLED_HOOKS": "all", "NVIDIA_CTK_CDI_HOOK_PATH": "/x/nvidia-cdi-hook",
        f"{prefix}FEATURE_FLAGS": "no-additional-gids-for-device-nodes",
        "NVIDIA_CTK_DRIVER_ROOT": "/", "NVIDIA_CTK_DEV_ROOT": "/",
    }  # fmt: skip
    data = spec(run(host, **env))
    assert (data["kind"], names(data)) == ("acme.com/card", ["0", GPUS[0].name])
    (hook,) = data["containerEdits"]["hooks"]
    assert hook["path"] == "/x/nvidia-cdi-hook"
    assert hook["args"][1:4] == ["update-ldcache", "--ldconfig-path", "/sbin/ld"]
    assert "additionalGids" not in json.dumps(data)
    path = written(host, NVIDIA_CTK_CDI_OUTPUT_FILE_PATH="/etc/cdi/env.json", **env)
    assert json.loads(path.read_text()) == data
    fails(run(host, NVIDIA_CTK_DRIVER_ROOT="/none"), 3, "in /none; install one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--enable-hook=all"], "--enable-hook=all: give one of create-symlinks"),
        (["--vendor=a"], "--vendor=a: give two or more letters"),
        (["--class=a/b"], "--class=a/b: give two or more letters"),
        (["--device-id="], "empty device id"),
        (["--feature-flag=more"], "--feature-flag=more: give one of"),
        (["--format=toml"], "give one of yaml, json"),
        (["--csv.file=devices.csv"], "--csv.file=devices.csv: give an absolute path"),
        (["--ldconfig-path=ldconfig"], "give an absolute path"),
    ],
)
def test_senseless_words_are_refused_before_anything_is_read(
    host: Path, words: list[str], said: str
) -> None:
    """Said, before anything is read."""
    fails(run(host, *words), 2, said)


def test_help_shows_what_concerns_it(host: Path) -> None:
    """And no option of a runtime; all of them are taken, for they are given to every command."""
    shown = run(host, "--help-all").stdout
    for flag in ("--mode", "--output", "--csv.file", "--driver-root", "NVIDIA_CTK_DRIVER_ROOT"):
        assert flag in shown
    for flag in ("--runtime", "--socket", "--restart-mode", "--cdi-output-dir", "--status-dir"):
        assert f"{flag} " not in shown
    assert len(run(host, "--help").stdout.splitlines()) < 70
    assert run(host, "--runtime=containerd", "--restart-mode=none").returncode == 0
