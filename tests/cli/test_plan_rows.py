"""What `plan -o json` says in each row, whole: the decision with its reasons, files, restart.

`golden/plan-*.json` were reviewed against the table of decisions. To make them anew, and review
them, run this file with TOOLKIT_AGENT_WRITE_GOLDEN=1.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import CliNode, fails, shows
from tests.doubles.containerd.sample import SECTIONS
from tests.doubles.crio.crio_node import CrioNode

GOLDEN = Path(__file__).with_name("golden")
OFF = "--cdi-enabled=false"
CDI_OFF = f"[{SECTIONS[2]}]\n  enable_cdi = false\n"

# Name: version, what the configuration has besides, faults of the runtime, options.
CONTAINERD: dict[str, tuple[str, str | None, dict[str, Any], tuple[str, ...]]] = {
    "row-1": ("2.1.9", None, {}, (OFF,)),
    "row-3": ("2.1.9", None, {}, ()),
    "row-4": ("1.7.24", None, {}, ()),
    "row-5": ("1.7.24", None, {}, ("--enable-cdi-in-runtime=false",)),
    "row-6": ("1.6.20", None, {}, ()),
    "row-7": ("2.3.4", None, {"enable_cdi": "absent"}, ()),
}
CRIO: dict[str, tuple[str, tuple[str, ...]]] = {
    "row-1-crio": ("1.37.0", (OFF, "--config-mode=config")),
    "row-2": ("1.37.0", (OFF,)),
    "row-6-crio": ("1.23.5", ()),
    "row-8": ("1.37.0", ()),
    "row-8-by-dump": ("1.28.11", ()),
}


def check(name: str, data: Any, directory: Path) -> None:
    """Compare with the golden, this run's own places and numbers aside."""
    data["runtime"]["pid"] = 0
    data["deviceNodes"] = []  # of this machine's driver
    text = json.dumps(data, indent=1, sort_keys=True)
    text = text.replace(str(directory), "/NODE").replace(os.path.realpath(directory), "/NODE")
    text = re.sub(r"\bpid \d+", "pid 0", text) + "\n"
    path = GOLDEN / f"plan-{name}.json"
    if os.environ.get("TOOLKIT_AGENT_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden, found = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
    if os.geteuid() != 0 and found["trial"]:  # namespaces need root
        assert not found["trial"]["done"]
        found["trial"] = golden["trial"]
        found["warnings"] = [w for w in found["warnings"] if not w.startswith("not tried")]
    assert golden == found


@pytest.mark.parametrize("name", CONTAINERD)
def test_plan_on_containerd_is_the_reviewed_one(place: Path, name: str) -> None:
    """One row, explained."""
    version, text, faults, options = CONTAINERD[name]
    with CliNode(place, version, text) as node:
        node.script(**faults)
        data = shows(node.agent("plan", *options, "-o", "json"), "Plan", 1)
        assert data["decision"]["row"] == int(name.split("-")[1])
        check(name, data, node.directory)


@pytest.mark.parametrize("name", CRIO)
def test_plan_on_crio_is_the_reviewed_one(place: Path, name: str) -> None:
    """One row, explained."""
    version, options = CRIO[name]
    node = CrioNode(place, version)
    (node.toolkit / "nvidia-container-runtime-hook").touch(0o755)
    with node:
        data = shows(node.agent("plan", *options, "-o", "json"), "Plan", 1)
        assert data["decision"]["row"] == int(name.split("-")[1])
        check(name, data, node.directory)


def test_unreachable_runtime_has_no_plan(place: Path) -> None:
    """Nothing answers: there is no plan, and one line says why."""
    node = CliNode(place)
    fails(node.agent("plan", "-o", "json"), 4, str(node.socket))


def test_every_row_has_a_golden() -> None:
    """And there is none of a row that is no more."""
    names = {f"plan-{name}.json" for name in (*CONTAINERD, *CRIO)}
    assert {path.name for path in GOLDEN.iterdir()} == names
