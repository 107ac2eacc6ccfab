"""`cdi generate` from the command line: modes, options that decide the content, and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.node import fails
from tests.tools import forked
from tests.tools.driver import make_driver
from tests.tools.kernel import make_kernel, make_node
from tests.tools.nvml import FakeGpu, FakePart, place
from tests.unit.gpu_node import MARKS

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


def test_variables_of_the_peer(host: Path) -> None:
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
        ("--device-name-strategy=name", "device name strategy 'name'"),
        ("--device-name-strategy=", "empty device name strategy"),
        ("--disable-hook=ldconfig", "hook 'ldconfig'"),
        ("--mode=auto", "'auto' is not one of"),
    ],
)
def test_words_that_make_no_sense(host: Path, word: str, said: str) -> None:
    """Said, with what there is."""
    fails(run(host, word), 2, said)


def test_failures(host: Path) -> None:
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
