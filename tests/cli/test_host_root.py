"""Below a host root that is a directory, everything written stays inside and has its host name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.toolkit.config import CONFIG
from tests.cli.cli_node import Refusal, refuses, shows
from tests.cli.hosted import HostedNode
from tests.conformance import checks, statusfile


@pytest.fixture
def hosted(place: Path) -> Iterator[HostedNode]:
    """A node in a directory."""
    with HostedNode(place) as node:
        yield node


def test_everything_written_lies_inside_the_host_root(hosted: HostedNode) -> None:
    """Everything that is written lies inside it, and is named as the host names it."""
    outside = {path.name for path in hosted.directory.iterdir()}
    checks.done(hosted.agent("apply"))
    assert "nvidia" in hosted.answer().runtimes
    assert 'imports = ["/etc/containerd/conf.d/99-nvidia*.toml"]' in hosted.config.read_text()
    assert '"/usr/local/nvidia/toolkit/nvidia-container-runtime"' in hosted.drop_in.read_text()
    values = statusfile.parse((hosted.ready() or b"").decode())
    assert values["TOOLKIT_CRI_SOCKET"] == "/run/containerd/containerd.sock"
    assert values["NVIDIA_CDI_HOOK_PATH"] == "/usr/local/nvidia/toolkit/nvidia-cdi-hook"
    assert {path.name for path in hosted.directory.iterdir()} == outside


@pytest.mark.parametrize("option", ["drop-in-config", "state-dir", "status-dir", "socket"])
def test_option_that_leads_out_of_the_host_root_is_refused(hosted: HostedNode, option: str) -> None:
    """Exit 3, and what lies outside is neither read nor written."""
    outside = hosted.directory / "outside"
    outside.mkdir()
    name = f"/etc/{'../' * 9}{str(outside)[1:]}/x"
    told = "REFUSED" if option in ("drop-in-config", "socket") else None
    refusal = Refusal(3, "leads out of the host root", told, early=option != "drop-in-config")
    refuses(hosted, refusal, f"--{option}={name}")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("where", ["config.toml", "conf.d", "conf.d/99-nvidia.toml"])
def test_link_that_leads_out_of_the_host_root_is_refused(hosted: HostedNode, where: str) -> None:
    """A relative link over the edge is refused, and its target stays as it is."""
    outside = hosted.directory / "outside.toml"
    outside.write_text("version = 3\n")
    link = hosted.etc / where
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(f"{'../' * 9}{str(outside)[1:]}")
    refuses(hosted, Refusal(3, "leads out of the host root"))
    assert outside.read_text() == "version = 3\n"


def test_absolute_link_stays_inside_the_host_root(hosted: HostedNode) -> None:
    """It means what it means to the host; the file that is edited is its target."""
    target = hosted.host / "srv/containerd.toml"
    target.parent.mkdir()
    target.write_text("version = 3\n")
    hosted.config.unlink()
    hosted.config.symlink_to("/srv/containerd.toml")
    found = shows(hosted.agent("plan", "-o", "json"), "Plan", 1)
    changes = {change["path"]: change["action"] for change in found["changes"]}
    assert changes == {
        "/etc/containerd/conf.d/99-nvidia.toml": "create",
        "/srv/containerd.toml": "edit",
        f"/usr/local/nvidia/toolkit/{CONFIG}": "create",
    }
