"""The management spec is written where the runtime reads it; `run` waits for the driver."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, fails, shows, tells
from tests.cli.daemon import running
from tests.conformance import checks
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.tools.driver import VERSION, make_driver, remove_driver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")

NAME = "management.nvidia.com-gpu.yaml"


class DriverNode(CliNode):
    """A node whose runtime reads specs in `cdi`; its driver, not there yet, will be in `driver`."""

    def __init__(self, directory: Path) -> None:
        self.cdi, self.driver = directory / "cdi", directory / "driver"
        dirs = json.dumps([str(directory / "other"), str(self.cdi)])
        section = SECTIONS[3]
        text = f"[{section}]\ncdi_spec_dirs = {dirs}\n{handler('runc', section)}"
        super().__init__(directory, "2.1.9", text)
        self.spec = self.cdi / NAME

    def options(self) -> list[str]:
        """With a driver root of its own, and specs where they go by default."""
        kept = [word for word in super().options() if not word.startswith("--cdi-output-dir")]
        return [*kept, f"--driver-root={self.driver}", f"--dev-root={self.driver}"]


@pytest.fixture
def node(place: Path) -> Iterator[DriverNode]:
    with DriverNode(place) as found:
        yield found


def test_no_driver_is_refused(node: DriverNode) -> None:
    """Nothing is touched; a plan shows all the same what would be done."""
    before = node.tree()
    result = node.agent("apply")
    fails(result, 3, "there is no NVIDIA driver", str(node.driver), "searched there: /, /lib64")
    tells(node, 3, "NO_DRIVER", "there is no NVIDIA driver")
    assert node.tree() == before
    assert node.supervisor.starts == 1
    data = shows(node.agent("plan", "-o", "json"), "Plan", 1)
    assert data["changes"]
    assert "apply refuses: cannot make a CDI spec" in data["warnings"][-1]
    shown = json.loads(node.agent("status", "-o", "json").stdout)
    assert "there is no NVIDIA driver" in shown["problem"]


def test_spec_is_written_where_the_runtime_reads(node: DriverNode) -> None:
    """In the directory that wins, since the usual one is not read; and only once."""
    make_driver(node.driver)
    changes = shows(node.agent("plan", "-o", "json"), "Plan", 1)["changes"]
    assert changes[0]["path"] == str(node.spec)
    assert "management.nvidia.com/gpu" in changes[0]["diff"]
    assert not node.spec.exists()
    checks.done(node.agent("apply"))
    text, written = node.spec.read_text("utf-8"), node.spec.stat()
    assert f"libcuda.so.{VERSION}" in text
    assert oct(written.st_mode & 0o777) == "0o644"
    assert [path.name for path in node.cdi.iterdir()] == [NAME]
    assert "Nothing to do" in node.agent("apply").stdout
    again = node.spec.stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    checks.done(node.agent("revert"))
    assert list(node.cdi.iterdir()) == []


def test_no_driver_is_needed_without_specs(node: DriverNode) -> None:
    """Without CDI, or with an empty directory, no driver is needed."""
    for option in ("--cdi-output-dir=", "--cdi-enabled=false"):
        checks.done(node.agent("apply", option))
        assert not node.spec.exists()


def test_directory_that_is_not_read_is_refused(node: DriverNode) -> None:
    """Asked for by name, it is refused: nobody would ever see the devices."""
    make_driver(node.driver)
    result = node.agent("apply", f"--cdi-output-dir={node.directory}/elsewhere")
    fails(result, 3, "elsewhere", str(node.cdi))
    checks.done(node.agent("apply", f"--cdi-output-dir={node.directory}/other"))
    assert (node.directory / "other" / NAME).exists()


@pytest.mark.parametrize("name", ["nvidia.yaml", "nvidia.json"])
def test_second_file_with_our_device_gives_way(node: DriverNode, name: str) -> None:
    """The two would cancel each other; NVIDIA's own file has our name and gives way."""
    make_driver(node.driver)
    node.cdi.mkdir()
    text = 'kind: management.nvidia.com/gpu\n' if name.endswith("yaml") else (
        '{\n  "kind": "management.nvidia.com/gpu",\n  "devices": []\n}\n'
    )  # fmt: skip
    (node.cdi / name).write_text(text)
    fails(node.agent("apply"), 3, name, "uses neither of two")
    (node.cdi / name).rename(node.spec)
    checks.done(node.agent("apply"))
    assert "Written by toolkit-agent" in node.spec.read_text("utf-8")


def test_spec_that_cannot_be_written_takes_readiness_along(node: DriverNode) -> None:
    """A node without its devices is not ready."""
    make_driver(node.driver)
    checks.done(node.agent("apply"))
    assert node.ready()
    shutil.rmtree(node.cdi)
    node.cdi.write_text("in the way")
    fails(node.agent("apply"), 3, str(node.cdi))
    assert node.ready() is None
    node.cdi.unlink()
    checks.done(node.agent("apply"))
    assert node.ready()


def test_run_waits_for_the_driver_and_follows_it(node: DriverNode) -> None:
    """It says so, is ready when the driver is there, and describes a new one at once."""
    with running(node) as daemon:
        daemon.until(lambda: node.error().get("TOOLKIT_ERROR_CODE") == "NO_DRIVER")
        assert not (node.validations / "toolkit-ready").exists()
        make_driver(node.driver)
        ready = node.validations / "toolkit-ready"
        daemon.until(ready.exists)
        assert VERSION in node.spec.read_text("utf-8")

        node.spec.unlink()
        daemon.until(node.spec.exists)
        node.spec.write_bytes(b"")
        daemon.until(lambda: VERSION in node.spec.read_text("utf-8"))

        remove_driver(node.driver)
        make_driver(node.driver, "560.28.03")
        daemon.until(lambda: "libcuda.so.560.28.03" in node.spec.read_text("utf-8"))
        daemon.until(ready.exists)

        shutil.rmtree(node.driver / "usr")
        daemon.until(lambda: not ready.exists())
        assert "560.28.03" in node.spec.read_text("utf-8")
        make_driver(node.driver)
        daemon.until(ready.exists)
        daemon.end()


def test_generate_prints_what_apply_writes(node: DriverNode) -> None:
    """To stdout, in both forms; without a driver, exit 3."""
    fails(node.agent("cdi generate"), 3, "there is no NVIDIA driver")
    make_driver(node.driver)
    checks.done(node.agent("apply"))
    assert node.agent("cdi generate").stdout == node.spec.read_text("utf-8")
    text = node.agent("cdi generate", "--mode=management", "--format=json").stdout
    assert json.loads(text)["kind"] == "management.nvidia.com/gpu"


@pytest.mark.parametrize("mode", [0o775, 0o1777])
@pytest.mark.parametrize("name", ["cdi", "other"])
def test_directory_that_others_can_write_is_refused(name: str, mode: int, node: DriverNode) -> None:
    """Whoever puts a spec where the runtime looks is root; a sticky bit does not keep them."""
    make_driver(node.driver)
    directory = node.directory / name
    directory.mkdir()
    directory.chmod(mode)
    before = node.tree()
    result = node.agent("apply")
    fails(result, 3, f"cannot use the CDI directory {directory}", "chmod go-w")
    assert node.tree() == before
    assert node.supervisor.starts == 1
    assert list(directory.iterdir()) == []
    directory.chmod(0o755)
    checks.done(node.agent("apply"))
    assert node.spec.exists()
