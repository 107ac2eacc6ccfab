"""`cdi list` and `cdi validate` say of specs what real runtimes do with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
import pytest

from agent.cdi.specs import readers
from agent.cdi.specs.readers import Reader
from tests.conformance.spec_cases import CASES, REFUSED, SpecCase, spec
from tests.tools.pods import Container, PodNode, Pods
from tests.tools.runtimes import Runtime

pytestmark = pytest.mark.real

generations = pytest.mark.parametrize("generation", ["1.7", "2.1"])
# The container of it is started and is well; only when it goes the hook is missed.
_LATE = {"hook of the container"}


def gets(pods: Pods, device: str, beside: Container) -> str:
    """Ask for a device in a container that is started; what went wrong, empty where nothing did."""
    try:
        pods.create(cdi_devices=[device], beside=beside).start()
    except grpc.RpcError as error:
        return str(error)
    return ""


def listed(node: PodNode) -> Mapping[str, Any]:
    """What the program says of each device, the file as part of the name."""
    result = node.agent("cdi list", "-o", "json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    return {f"{device['file']} {device['name']}": device for device in data["devices"]}


@generations
def test_container_gets_the_device_where_the_program_says_so(
    generation: str, runtime: Runtime
) -> None:
    """A container gets the device exactly where the program says so."""
    cases: dict[str, SpecCase] = {
        f"/var/run/cdi/{number}.yaml": case for number, case in enumerate((*CASES, *REFUSED))
    }
    with PodNode(runtime, cdi=True) as node, Pods(node) as pods:
        node.cdi_directory.mkdir()
        for path, case in cases.items():
            (node.cdi_directory / path.rpartition("/")[2]).write_text(case.text, "utf-8")
        said = listed(node)
        assert sum(device["resolvable"] for device in said.values()) > 30
        wrong, first = {}, pods.create()
        for path, case in cases.items():
            device = said.get(f"{path} {case.qualified}", {"resolvable": False})
            failure = gets(pods, case.qualified, first)
            if device["resolvable"] is bool(failure) and case.name not in _LATE:
                wrong[case.name] = failure or device
        assert wrong == {}


@pytest.mark.parametrize(
    ("generation", "found"),
    [("1.6", ("0.5.0", "1.1.0")), ("1.7", ("0.7.0", "1.0.0")), ("2.1", ("0.7.0", "1.0.0"))],
)
def test_executable_tells_what_it_reads(
    generation: str, found: tuple[str, str], runtime: Runtime
) -> None:
    """1.6 has no CDI and tells nothing; neither of the others has the field of CDI 1.1."""
    who = readers.with_executable(Reader("c", "0.5.0", "1.1.0"), str(runtime.executable))
    assert (who.newest, who.limit) == found


@generations
def test_later_directory_wins_unless_an_earlier_one_conflicts(
    generation: str, runtime: Runtime
) -> None:
    """A later directory does, unless two files of an earlier one are in each other's way."""

    def of(kind: str, value: str) -> str:
        return spec(f"{{env: [FROM={value}]}}").replace("KIND", f"vendor.example/{kind}")

    etc = {"alone": "alone", "both": "both", "x1": "twice", "x2": "twice", "y1": "thrice",
           "y2": "thrice"}  # fmt: skip
    run = {"both": "both", "z1": "here", "z2": "here", "y3": "thrice"}
    with PodNode(runtime, cdi=True) as node, Pods(node) as pods:
        copied = node.directory / "run/etc-cdi"
        for directory, files in ((copied, etc), (node.cdi_directory, run)):
            directory.mkdir()
            for name, kind in files.items():
                (directory / f"{name}.yaml").write_text(of(kind, name), "utf-8")
        (node.cdi_directory / "both.yaml").write_text(of("both", "run"), "utf-8")
        (node.cdi_directory / "broken.yaml").write_text("{", "utf-8")
        assert node.inside(["cp", "-r", "/run/etc-cdi", "/etc/cdi"]).returncode == 0
        node.restart()
        states: dict[str, set[str]] = {}
        for device in listed(node).values():
            states.setdefault(device["name"], set()).add(device["state"])
        first = pods.create()
        for name, found in states.items():
            assert ("resolvable" in found) is not bool(gets(pods, name, first)), (name, found)
        container = pods.create(cdi_devices=["vendor.example/both=a"])
        assert "FROM=run" in container.environment
        assert states == {
            "vendor.example/alone=a": {"resolvable"},
            "vendor.example/both=a": {"resolvable", "shadowed"},
            "vendor.example/twice=a": {"conflicting"},
            "vendor.example/here=a": {"conflicting"},
            "vendor.example/thrice=a": {"conflicting"},
        }
