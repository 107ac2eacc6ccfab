"""`doctor` on other kinds of nodes: CRI-O, a host root, a user without rights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import crio
from tests.cli.hosted import HostedNode
from tests.cli.test_doctor import base
from tests.conformance import checks
from tests.conformance.program import AgentNode
from tests.conformance.trees import snapshot, touched
from tests.tools.nobody import as_nobody


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for a node with a short name."""
    with tempfile.TemporaryDirectory(prefix="d") as name:
        yield Path(name)


def head(node: AgentNode, *options: str) -> str:
    """The first three lines of a node with a finding, on one line."""
    before = snapshot(node.etc)
    done = node.agent("doctor", *options)
    assert done.stderr == "", checks.said(done)
    assert touched(before, snapshot(node.etc)) == []
    return re.sub(r"\s+", " ", " ".join(done.stdout.splitlines()[:3]))


def crio_handler(name: str, program: object) -> str:
    """The table of a handler of CRI-O."""
    return f'[crio.runtime.runtimes.{name}]\nruntime_path = "{program}"\nruntime_type = "oci"\n'


def test_right_crio_has_no_fault(place: Path) -> None:
    """Configured by this agent."""
    with crio.make(place) as node:
        low = f"--nvidia-container-runtime.runtimes={node.bin / 'crun'}"  # it is not in the PATH
        assert node.agent("apply", low).returncode == 0
        done = node.agent("doctor", low)
        assert done.returncode == 0, checks.said(done)
        assert "fault:" not in done.stdout, checks.said(done)


def test_crio_without_the_handler_s_program(place: Path) -> None:
    """NVIDIA's toolkit was removed, and its drop-in stayed."""
    with crio.make(place) as node:
        program = node.toolkit / "nvidia-container-runtime"
        node.drop_in.write_text(crio_handler("nvidia", program))
        node.restart()
        program.unlink()
        assert "handler nvidia runs" in head(node)


def test_crio_drop_in_in_a_directory_that_is_not_read(place: Path) -> None:
    """nvidia-container-toolkit#1829: the drop-in went to /etc/crio/conf.d."""
    with crio.make(place) as node:
        wrong = node.etc / "conf.d"
        wrong.mkdir()
        (wrong / "99-nvidia.conf").write_text(crio_handler("nvidia", "/bin/true"))
        said = head(node)
        assert said.startswith("fault: ")
        assert "conf.d/99-nvidia.conf is there, and the runtime does not load it" in said


def test_crio_default_of_nothing(place: Path) -> None:
    """Somebody renamed the handler while CRI-O ran."""
    with crio.make(place) as node:
        (node.drop_ins / "10-site.conf").write_text('[crio.runtime]\ndefault_runtime = "gone"\n')
        said = head(node)
        assert said.startswith("fault: ")
        assert "gone" in said


def test_crio_drop_in_on_which_it_does_not_start(place: Path) -> None:
    """A file that is no TOML came while CRI-O ran."""
    with crio.make(place) as node:
        (node.drop_ins / "10-site.conf").write_text("[broken\n")
        said = head(node)
        assert said.startswith("fault: ")
        assert "10-site.conf" in said


def test_crio_foreign_hook(place: Path) -> None:
    """Case 26: the hook of an old package is run for every container, beside native CDI."""
    with crio.make(place) as node:
        (node.hooks / "oci-nvidia-hook.json").write_text(
            '{"version": "1.0.0", "hook": {"path": "/usr/bin/nvidia-container-runtime-hook"},'
            ' "when": {"always": true}, "stages": ["prestart"]}'
        )
        assert "oci-nvidia-hook.json runs /usr/bin/nvidia-container-runtime-hook" in head(node)


@pytest.fixture
def hosted(place: Path) -> Iterator[HostedNode]:
    """A running node whose whole machine is a directory, and that has right handlers."""
    node = HostedNode(place)
    for program in ("bin/true", "usr/bin/runc"):
        (node.host / program).parent.mkdir(parents=True, exist_ok=True)
        (node.host / program).touch(0o755)
    text = base(node).replace(str(node.host), "")
    with node.config.open("a") as file:
        file.write(text)
    with node:
        yield node


def test_cgroup_driver_of_the_kubelet(hosted: HostedNode) -> None:
    """nvidia-container-toolkit#28: SystemdCgroup was lost, and containers are killed at random.
    A warning, because a newer kubelet asks this containerd (2.1) and ignores its own setting."""
    kubelet = hosted.host / "var/lib/kubelet/config.yaml"
    kubelet.parent.mkdir(parents=True)
    kubelet.write_text("kind: KubeletConfiguration\ncgroupDriver: systemd\n")
    said = head(hosted)
    assert said.startswith("warning: the kubelet uses the cgroup driver systemd")
    assert "SystemdCgroup" in said


def test_gpu_without_its_driver(hosted: HostedNode) -> None:
    """nouveau holds the GPU."""
    gpu = hosted.host / "sys/bus/pci/devices/0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "vendor").write_text("0x10de\n")
    (gpu / "class").write_text("0x030200\n")
    (gpu / "driver").symlink_to("../../drivers/nouveau")
    assert "another driver holds the GPUs: nouveau" in head(hosted)


def test_specs_where_the_runtime_does_not_look(hosted: HostedNode) -> None:
    """Talos reads one directory only."""
    directory = hosted.host / "etc/cdi"
    directory.mkdir(parents=True)
    (directory / "nvidia.yaml").write_text("cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n")
    with hosted.config.open("a") as file:
        file.write(f'[{hosted.section}]\n  cdi_spec_dirs = ["/run/cdi"]\n')
    hosted.restart()
    said = head(hosted)
    assert "does not read /etc/cdi" in said
    assert "cdi_spec_dirs" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: run tests/run as root")
def test_without_rights_it_says_what_it_cannot_see(hosted: HostedNode) -> None:
    """No unrelated part fails, and the files that can be read are judged."""
    hosted.config.write_text("[broken\n")
    hosted.directory.chmod(0o755)
    words = [*as_nobody(hosted.directory), sys.executable, "-m", "agent", "doctor"]
    done = subprocess.run(
        [*words, *hosted.options()], capture_output=True, text=True, check=False, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "Traceback" not in done.stderr, checks.said(done)
    assert "doctor does not run as root" in done.stdout, checks.said(done)
    assert "state-dir" not in done.stdout + done.stderr
