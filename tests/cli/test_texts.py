"""TOML that only some runtimes read is kept, and named where it stops the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, is_refused, refuses, shows
from tests.conformance.trees import touched
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.doubles.crio.crio_node import CrioNode

# As OpenShift's documentation writes workloads.
_WORKLOADS = """\
[crio.runtime.workloads.management]
activation_annotation = "target.workload.example/management"
annotation_prefix = "resources.workload.example"
resources = { "cpushares" = 0, "cpuset" = "0-1,20-21", }
[crio.runtime.workloads.batch]
activation_annotation = "target.workload.example/batch"
annotation_prefix = "resources.workload.example"
resources = {
  "cpushares" = 0, # none
  "cpuset" = "2-3"
}
"""


@pytest.mark.parametrize("text", [_WORKLOADS, "\ufeff" + _WORKLOADS], ids=["TOML 1.1", "BOM"])
def test_odd_drop_ins_that_crio_reads_are_left_alone(place: Path, text: str) -> None:
    """They are nobody's but the admin's: they keep nothing from being done."""
    node = CrioNode(place)
    (node.drop_ins / "05-workloads.conf").write_text(text)
    with node:
        shows(node.agent("apply", "-o", "json"), "Outcome")
        assert (node.drop_ins / "05-workloads.conf").read_text() == text
        assert "nvidia" in node.answer().runtimes
        shows(node.agent("status", "-o", "json"), "Status")
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert not node.drop_in.exists()


@pytest.mark.parametrize(
    ("version", "data", "says"),
    [
        ("1.30.14", _WORKLOADS.encode(), "05-site.conf: toml: "),
        ("1.37.0", b"# \xa4\xb5\n", "line 1 is not UTF-8; CRI-O does not start on it"),
        ("1.37.0", b"# \x1b[0m\n", "line 1 has a control character in a comment"),
        ("1.37.0", b"[crio]\r[crio.image]\r", "line 1 ends with a carriage return alone"),
        ("1.37.0", "[crio]\n".encode("utf-16"), "it is UTF-16"),
    ],
)
def test_crio_file_on_which_it_would_not_start_is_refused(
    place: Path, version: str, data: bytes, says: str
) -> None:
    """Refused with the file and what is the matter with it; nothing is written or restarted."""
    with CrioNode(place, version) as node:
        path = node.drop_ins / "05-site.conf"
        path.write_bytes(data)
        before, pid = node.tree(), node.supervisor.pid
        for command in ("plan", "apply", "apply"):
            is_refused(command, node.agent(command), 3, says)
        status = node.agent("status")
        assert status.returncode == 1
        assert says in status.stdout
        assert touched(before, node.tree()) == []
        assert node.supervisor.pid == pid


def version_last(place: Path, version: str) -> CliNode:
    """A node on whose file somebody appended its version."""
    node = CliNode(place, version, handler("runc", SECTIONS[2]))
    _, _, rest = node.config.read_text().partition("\n")
    node.config.write_text(f"{rest}version = 2\n")
    return node


def test_version_at_the_end_is_named(place: Path) -> None:
    """containerd 2.1 does not read the sections of such a file, and nobody notices."""
    with version_last(place, "2.1.9") as node:
        names = "`version` on line "
        refuses(node, Refusal(3, names))
        said = node.agent("plan").stdout
        assert "has no version of its own; move that line to the top of the file" in said
        assert "config migrate" not in said


def test_version_at_the_end_is_warned_of(place: Path) -> None:
    """containerd 1.7 takes the handlers from elsewhere, and so do we; but it is not what was
    meant."""
    with version_last(place, "1.7.24") as node:
        said = shows(node.agent("plan", "-o", "json"), "Plan", 1)["warnings"]
        assert any("has no version of its own" in text for text in said)


def test_broken_file_is_called_broken(place: Path) -> None:
    """What no runtime reads is not called by another name."""
    with CliNode(place) as node:
        node.config.write_text(node.config.read_text() + "x = [\n")
        refuses(node, Refusal(3, "not valid TOML"))
