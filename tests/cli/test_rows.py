"""On containerd each row of the decision undoes what the row before left."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, shows
from tests.conformance import statusfile
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.doubles.runtime.install import make_fake_containerd

NAMES = {"nvidia", "nvidia-cdi", "nvidia-legacy"}


@dataclass(frozen=True)
class Row:
    """How a row is asked for, and what has to be true in it. `cdi` None: as before."""

    number: int
    options: tuple[str, ...] = ()
    default: bool = False
    cdi: bool | None = None
    strategy: str = "cdi-cri"
    prefix: str | None = "cdi.k8s.io/"
    mode: str = "cdi"


_NVIDIA = "nvidia.cdi.k8s.io/"
_OFF = ("--cdi-enabled=false",)
ROW_1 = Row(1, _OFF, default=True, strategy="envvar", prefix=None, mode="auto")
ROW_3 = Row(3, cdi=True)
ROW_4 = Row(4, cdi=True)
ROW_5 = Row(5, ("--native-cdi=false",), default=True, strategy="cdi-annotations", prefix=_NVIDIA)
ROW_6 = Row(6, default=True, strategy="cdi-annotations", prefix=_NVIDIA)

CDI_OFF = {
    2: f"[{SECTIONS[2]}]\n  enable_cdi = false\n",
    3: f"[{SECTIONS[3]}]\n  enable_cdi = false\n",
}
TOURS: dict[str, tuple[str, str, Sequence[Row]]] = {
    "2.1": ("2.1.9", "", (ROW_3, ROW_1, ROW_3, ROW_5, ROW_1, ROW_5, ROW_3)),
    "2.1, CDI off in the file": (
        "2.1.9", CDI_OFF[3], (ROW_4, ROW_1, ROW_4, ROW_5, ROW_1, ROW_5, ROW_4),
    ),
    "1.7": ("1.7.24", "", (ROW_4, ROW_1, ROW_4, ROW_5, ROW_1, ROW_5, ROW_4)),
    "1.6": ("1.6.20", "", (ROW_6, ROW_1, ROW_6)),
}  # fmt: skip


def check(node: CliNode, row: Row) -> None:
    """Carry a row out and look at what there is then."""
    before = node.answer()
    data = shows(node.agent("apply", *row.options, "-o", "json"), "Outcome")
    assert data["decision"]["row"] == row.number
    answer = node.answer()
    assert answer.runtimes.keys() >= NAMES
    assert answer.default == ("nvidia" if row.default else "runc")
    assert row.cdi is None or answer.cdi == row.cdi
    if row.number == 1:
        assert answer.cdi == before.cdi
    passed = answer.runtimes["nvidia"]["ContainerAnnotations"] or []
    fallback = row.number in (5, 6)
    assert passed[:1] == ([f"{_NVIDIA}*"] if fallback else [])
    ready = node.ready()
    assert ready is not None
    values = statusfile.parse(ready.decode())
    assert values["TOOLKIT_RUNTIME_IS_DEFAULT"] == str(row.default).lower()
    assert values["TOOLKIT_RUNTIME_MODE"] == row.mode
    assert values["DEVICE_LIST_STRATEGY"] == row.strategy
    assert values.get("CDI_ANNOTATION_PREFIX") == row.prefix
    again = shows(node.agent("apply", *row.options, "-o", "json"), "Outcome")
    assert (again["changed"], again["restarted"]) == ([], False)


@pytest.mark.parametrize("name", TOURS)
def test_each_row_undoes_the_row_before(place: Path, name: str) -> None:
    """What the earlier row left is gone, the original default is back, and status follows."""
    version, text, rows = TOURS[name]
    section = SECTIONS[2 if version.startswith("1") else 3]
    with CliNode(place, version, text + handler("runc", section)) as node:
        original = node.config.read_bytes()
        for row in rows:
            check(node, row)
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert node.config.read_bytes() == original
        assert not node.drop_in.exists()
        assert node.answer().default == "runc"


def test_a_newer_containerd_is_native(place: Path) -> None:
    """From 1.6 to 1.7 under our feet: the default is taken back and CDI is switched on."""
    section = SECTIONS[2]
    with CliNode(place, "1.6.20", handler("runc", section)) as node:
        original = node.config.read_bytes()
        check(node, ROW_6)
        make_fake_containerd(node.program.parent, "1.7.24", sys.executable)
        node.restart()
        check(node, ROW_4)
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert node.config.read_bytes() == original


def test_a_plan_says_what_the_row_takes_back(place: Path) -> None:
    """Before it is done, and why."""
    with CliNode(place) as node:
        shows(node.agent("apply", *_OFF, "-o", "json"), "Outcome")
        data = shows(node.agent("plan", "-o", "json"), "Plan", 1)
        assert data["decision"]["row"] == 3
        assert "default_runtime_name" in json.dumps(data["changes"])
        assert "the default runtime is nvidia, not runc" in data["restart"]["because"]
