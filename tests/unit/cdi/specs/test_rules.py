"""Each broken rule of a spec is reported, by the file and by the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.cdi.model import ContainerEdits, Device, Spec
from agent.cdi.model import problems as own_problems
from agent.cdi.specs import installed, rules
from agent.cdi.specs.readers import UNKNOWN_READER, Reader, reader_of
from agent.cdi.specs.shape import Problem
from agent.host.paths import HostRoot
from tests.conformance.foreign_specs import spec as foreign_spec
from tests.conformance.spec_cases import CASES, REFUSED, SpecCase, mount, node, spec


def problems(text: str, host: str = "/", who: Reader = UNKNOWN_READER) -> tuple[Problem, ...]:
    return installed.examine("x.yaml", text.encode(), HostRoot(host), who).problems


def said(found: tuple[Problem, ...]) -> str:
    return "\n".join(f"{p.severity} {p.where}: {p.what}; {p.remedy}" for p in found)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_broken_rule_is_reported_with_its_remedy(case: SpecCase) -> None:
    """One is broken, and told with where and what to do; or there is nothing to tell."""
    found = problems(case.text)
    assert case.says in said(found)
    assert bool(found) is bool(case.says), said(found)
    assert all(p.what and p.remedy for p in found)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_version_too_new_for_the_runtime_is_reported(case: SpecCase) -> None:
    """Told where a runtime answered that is too old for it."""
    assert problems(case.text) == ()
    old = problems(case.text, who=reader_of("containerd", "1.7.24~ds1"))
    assert case.says in said(old)
    assert old[0].impact == "file"
    assert problems(case.text, who=reader_of("cri-o", "1.37.0")) == ()
    assert problems(case.text, who=reader_of("containerd", "v2.4.0-beta.0")) == ()


@pytest.mark.parametrize(
    ("name", "version", "newest", "limit"),
    [("containerd", "1.6.20~ds1", None, None), ("containerd", "1.7.24", "0.8.0", "0.8.0"),
     ("containerd", "1.7.2", "0.5.0", "0.8.0"), ("containerd", "1.7.12", "0.5.0", "0.8.0"),
     ("containerd", "1.7.13", "0.6.0", "0.8.0"), ("containerd", "1.7.30", "0.8.0", "0.8.0"),
     ("containerd", "2.0.11", "0.8.0", "1.0.0"), ("containerd", "2.1.9", "1.0.0", "1.0.0"),
     ("containerd", "2.2.7", "1.0.0", "1.1.0"), ("containerd", "2.4.0", "1.1.0", "1.1.0"),
     ("containerd", "3.0.0", "1.1.0", None), ("cri-o", "1.30.1", None, None),
     ("cri-o", "1.37.0", "1.1.0", "1.1.0"), ("cri-o", "1.40", "1.1.0", None),
     ("other", "1.0.0", None, None), ("containerd", "dirty", None, None)],
)  # fmt: skip
def test_rules_hold_for_the_readers_that_were_observed(
    name: str, version: str, newest: str | None, limit: str | None
) -> None:
    """What was seen holds; what lies between is left open."""
    found = reader_of(name, version)
    assert (found.newest, found.limit) == (newest, limit)


def test_version_that_may_be_too_high_is_a_warning() -> None:
    """Between two runtimes that were seen it is a warning."""
    text = spec(version="1.0.0").replace("KIND", "vendor.example/gpu")
    [found] = problems(text, who=reader_of("containerd", "2.0.5"))
    assert found.severity == "warning"
    assert "may read no more than 0.8.0" in found.what


@pytest.mark.parametrize(("version", "dies"), [("1.7.24", True), ("2.3.4", True), ("2.4.0", False)])
def test_name_of_one_letter_is_reported_for_unknown_runtimes(version: str, dies: bool) -> None:
    """Told unless the runtime is known to live with it."""
    for kind in ("v/gpu", "vendor.example/x"):
        found = problems(foreign_spec(kind), who=reader_of("containerd", version))
        assert ("single character" in said(found)) is dies
        assert "single character" in said(problems(foreign_spec(kind)))


def test_empty_item_is_deadly() -> None:
    """It kills what reads it, and the word is said."""
    text = spec("{env: [A=1], hooks: [~]}").replace("KIND", "vendor.example/gpu")
    assert "containerd up to 2.3 dies" in said(problems(text))


@pytest.mark.parametrize(
    ("data", "version"),
    [
        ({"annotations": {"a": "b"}}, "0.6.0"),
        ({"devices": [{"name": "a", "annotations": {"a": "b"}}]}, "0.6.0"),
        ({"containerEdits": {"mounts": [{"type": "bind"}]}}, "0.4.0"),
    ],
)
def test_feature_of_another_writer_needs_its_version(data: dict[str, Any], version: str) -> None:
    """Specs of ours have none of these."""
    assert rules.needed_version(data)[0] == version


def test_own_specs_meet_the_same_rules() -> None:
    """A spec of ours is held to the same."""
    ours = Spec("v/gpu", (Device("0", ContainerEdits(env=("A",))),))
    texts = "\n".join(own_problems(ours))
    assert "single character" in texts
    assert "NAME=value" in texts


def test_links_stay_in_the_host_root(tmp_path: Path) -> None:
    """What a link says is looked up as the host would; one that leads out is no way."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/file").touch()
    (tmp_path / "link").symlink_to("/lib/file")
    (tmp_path / "out").symlink_to("../../../../../../etc/passwd")
    (tmp_path / "circle").symlink_to("circle")
    for path, wrong in (("/link", ""), ("/out", "leads out"), ("/circle", "too many links"),
                        ("/etc/passwd", "is missing"), ("/lib/file/x", "not a directory"),
                        (r"/a\0b", "control character"), ("/" + "x" * 5000, "too long"),
                        ("/" + "x" * 300, "too long")):  # fmt: skip
        text = mount(f'hostPath: "{path}", containerPath: /x, options: [bind]')
        found = problems(text.replace("KIND", "vendor.example/gpu"), str(tmp_path))
        assert bool(found) is bool(wrong), path
        assert wrong in said(found), path


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes: run tests/run as root")
def test_device_nodes_are_found_behind_linked_directories(tmp_path: Path) -> None:
    """In directories that are links; themselves they must not be."""
    (tmp_path / "real").mkdir()
    os.mknod(tmp_path / "real/x", 0o20666, os.makedev(1, 3))
    os.mkfifo(tmp_path / "real/p")
    (tmp_path / "dev").symlink_to("/real")
    (tmp_path / "real/link").symlink_to("x")
    for fields, wrong in (("path: /dev/x", ""), ("path: /dev/x, type: c", ""),
                          ("path: /dev/link", "but a link"), ("path: /dev/x, type: b", "of type c"),
                          ("path: /dev/p, type: p", ""), ("path: /dev/p", ""),
                          ("path: /dev/none", "is missing"), ("path: /real", "no device node"),
                          (r'path: "/dev/\n"', "control character")):  # fmt: skip
        found = problems(node(fields).replace("KIND", "vendor.example/gpu"), str(tmp_path))
        assert bool(found) is bool(wrong), fields
        assert wrong in said(found), fields
