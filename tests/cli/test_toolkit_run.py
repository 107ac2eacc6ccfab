"""`run` repairs and upgrades the toolkit without a restart of the runtime."""

from __future__ import annotations

import shutil
import threading
import tomllib
from pathlib import Path

import pytest

from tests.cli.daemon import published, running, settle
from tests.cli.hosted import HostedNode
from tests.cli.installing import CONFIG, RUNTIME, SourceNode, beside, installed, release
from tests.conformance.trees import snapshot
from tests.tools.driver import make_driver


def remove(path: Path) -> None:
    """It is gone."""
    path.unlink()


def damage(path: Path) -> None:
    """It is another one."""
    path.write_bytes(b"damaged")


def close(path: Path) -> None:
    """Nobody can run it."""
    path.chmod(0)


@pytest.mark.parametrize("harm", [remove, damage, close])
def test_removed_file_of_the_toolkit_comes_back(sourced: SourceNode, harm: object) -> None:
    """It is put back at once, and the runtime goes on."""
    assert callable(harm)
    with running(sourced) as daemon:
        settle(daemon)
        right, starts = installed(sourced.toolkit), sourced.supervisor.starts
        for name in (RUNTIME, f"{RUNTIME}.real", "libnvidia-container.so.1.19.0", CONFIG):
            harm(sourced.toolkit / name)
            daemon.until(lambda: installed(sourced.toolkit) == right)
            settle(daemon)  # who is still at it would find the next one without being woken
        daemon.until(lambda: published(sourced) is not None)
        daemon.until(lambda: beside(sourced.toolkit) == ["toolkit"])
        assert sourced.supervisor.starts == starts
        daemon.end()


def test_removed_directory_of_the_toolkit_comes_back(sourced: SourceNode) -> None:
    """The same, with the directory above."""
    with running(sourced) as daemon:
        settle(daemon)
        right = installed(sourced.toolkit)
        shutil.rmtree(sourced.toolkit)
        daemon.until(lambda: installed(sourced.toolkit) == right)
        settle(daemon)
        shutil.rmtree(sourced.toolkit.parent)
        daemon.until(lambda: installed(sourced.toolkit) == right)
        daemon.end()


def test_right_node_is_looked_at_and_not_touched(sourced: SourceNode) -> None:
    """Nothing is touched, whatever is looked at; that is all that is said."""
    with running(sourced, "--interval=1") as daemon:
        settle(daemon)
        before = snapshot(sourced.toolkit.parent)
        said = daemon.said()
        (sourced.directory / "state-of-others").touch()
        threading.Event().wait(2.5)
        assert snapshot(sourced.toolkit.parent) == before
        more = daemon.said().removeprefix(said).splitlines()
        assert all('"done": "nothing to do"' in line for line in more)
        daemon.end()


@pytest.mark.parametrize("option", ["--cdi-output-dir=", "--cdi-enabled=false"])
def test_config_names_a_driver_root_that_comes_later(empty_host: HostedNode, option: str) -> None:
    """config.toml names its root, also where no spec does."""
    source = release(empty_host.directory, "1.19.0")

    def root() -> object:
        text = (empty_host.toolkit / CONFIG).read_text("utf-8")
        return tomllib.loads(text)["nvidia-container-cli"]["root"]

    with running(empty_host, f"--toolkit-source-root={source}", option) as daemon:
        settle(daemon)
        assert root() == "/"
        make_driver(empty_host.host / "run/nvidia/driver", nodes=False)
        daemon.until(lambda: root() == "/run/nvidia/driver")
        daemon.end()


def test_new_version_of_the_source_is_installed_without_a_restart(sourced: SourceNode) -> None:
    """Found with the next look at the whole node, and installed without a restart."""
    new = release(sourced.directory, "1.20.0")
    assert sourced.source
    with running(sourced, "--interval=1") as daemon:
        settle(daemon)
        starts = sourced.supervisor.starts
        sourced.source.rename(sourced.directory / "old")
        new.rename(sourced.source)
        library = sourced.toolkit / "libnvidia-container.so.1.20.0"
        daemon.until(lambda: library.exists() and beside(sourced.toolkit) == ["toolkit"])
        assert sourced.supervisor.starts == starts
        daemon.end()
