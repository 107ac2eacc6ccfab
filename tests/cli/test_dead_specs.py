"""A foreign GPU spec without a working device is reported; ours takes its place where it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import fails, shows
from tests.cli.gpu_host import GPU, MANAGEMENT, GpuHost
from tests.conformance import checks
from tests.conformance.trees import contents, snapshot
from tests.doubles.nvml.nvml import FakeGpu
from tests.tools.driver import VERSION
from tests.unit.support.gpu_node import MARKS

pytestmark = MARKS

ONE = FakeGpu(0)
KIND = "nvidia.com/gpu"
OLD = "/usr/lib/x86_64-linux-gnu/libcuda.so.535.161.07"
_SPEC = """\
cdiVersion: {version}
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
{more}
  - name: all
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
  mounts:
    - hostPath: {library}
      containerPath: {library}
      options: [ro, nosuid, nodev, bind]
"""
GROUPS = "      additionalGids: [44]"


@pytest.fixture
def node(place: Path) -> Iterator[GpuHost]:
    with GpuHost(place, ONE) as found:
        yield found


def spec(node: GpuHost, version: str = "0.5.0", more: str = "", library: str = "") -> str:
    """What `nvidia-ctk cdi generate` writes, for the driver that is there unless told otherwise."""
    there = next(node.host.rglob(f"libcuda.so.{VERSION}"))
    library = library or f"/{there.relative_to(node.host)}"
    return _SPEC.format(version=version, more=more, library=library)


def listed(node: GpuHost) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What `cdi list` says, by device and directory."""
    found = shows(node.agent("cdi list", "-o", "json"), "CDIDevices")["devices"]
    return {(one["name"], one["file"]): one for one in found}


def test_spec_of_an_older_driver_provides_nothing(node: GpuHost) -> None:
    """Its files are gone: every container that asked for a GPU failed at its start
    (nvidia-container-toolkit#1246). Ours is in the directory that wins, until theirs is right."""
    theirs = node.cdi_etc / "nvidia.yaml"
    theirs.write_text(spec(node, library=OLD))
    says = (
        f"/etc/cdi/nvidia.yaml (nvidia-ctk) describes {KIND}, and no container gets a device "
        "from it:"
    )
    plan = node.agent("plan")
    checks.done(plan, 1)
    assert says in plan.stdout
    assert OLD in plan.stdout
    assert f"/run/cdi/{GPU} takes its place; generate that file again, or remove it" in plan.stdout
    [before] = [one for one in listed(node).values() if one["name"] == f"{KIND}=0"]
    assert (before["state"], OLD in before["why"]) == ("incomplete", True)
    apply = node.agent("apply")
    checks.done(apply)
    assert says in apply.stdout
    assert node.specs() == sorted([MANAGEMENT, GPU, "nvidia.yaml"])
    assert node.names() == ["0", ONE.name, "all"]
    status = shows(node.agent("status", "-o", "json"), "Status")
    assert any(text.startswith(says) for text in status["warnings"])
    states = {file: one["state"] for (name, file), one in listed(node).items() if name[-1] == "0"}
    assert states == {"/etc/cdi/nvidia.yaml": "incomplete", f"/var/run/cdi/{GPU}": "resolvable"}
    assert "Nothing to do" in node.agent("apply").stdout

    theirs.write_text(spec(node))
    checks.done(node.agent("apply"))
    assert node.specs() == sorted([MANAGEMENT, "nvidia.yaml"])
    theirs.write_text(spec(node, library=OLD))
    checks.done(node.agent("apply"))
    assert GPU in node.specs()
    checks.done(node.agent("revert"))
    assert node.specs() == ["nvidia.yaml"]


def test_stale_spec_in_the_winning_directory_is_refused(node: GpuHost) -> None:
    """In the directory that is read last a second file would only cancel the first one: refused,
    and nothing is called ready."""
    checks.done(node.agent("apply"))
    theirs = node.cdi / "nvidia.yaml"
    theirs.write_text(spec(node, library=OLD))
    (node.cdi / GPU).unlink()
    files = contents(snapshot(node.host / "etc"))
    says = f"cannot provide {KIND}: /run/cdi/nvidia.yaml (nvidia-cdi-refresh)"
    assert f"Refused:   {says}" in node.agent("plan").stdout
    for _ in range(2):
        fails(node.agent("apply"), 3, says, OLD, "generate that file again, or remove it")
    assert node.ready() is None
    assert node.specs() == sorted([MANAGEMENT, "nvidia.yaml"])
    assert contents(snapshot(node.host / "etc")) == files
    assert OLD in node.agent("status").stdout
    theirs.write_text(spec(node))
    checks.done(node.agent("apply"))
    assert node.ready() is not None


def test_spec_that_no_runtime_reads_conflicts_with_none(node: GpuHost) -> None:
    """Its version does not go with its fields (nvidia-container-toolkit#38, #1860): it takes part
    in no conflict, in either directory."""
    for directory in (node.cdi_etc, node.cdi):
        (directory / "nvidia.yaml").write_text(spec(node, "0.5.0", GROUPS))
    apply = node.agent("apply")
    checks.done(apply)
    assert "0.5.0 is lower than 0.7.0, which additionalGids" in apply.stdout
    found = {file: one["state"] for (name, file), one in listed(node).items() if name[-1] == "0"}
    assert found == {
        "/etc/cdi/nvidia.yaml": "invalid",
        "/var/run/cdi/nvidia.yaml": "invalid",
        f"/var/run/cdi/{GPU}": "resolvable",
    }


@pytest.mark.parametrize(
    ("version", "number", "more", "ours"),
    [("1.7.24", "1.0.0", GROUPS, True), ("2.1.9", "1.0.0", GROUPS, False),
     ("2.1.9", "0.7.0", GROUPS, False)],
)  # fmt: skip
def test_spec_that_this_runtime_does_not_read_provides_nothing(
    place: Path, version: str, number: str, more: str, ours: bool
) -> None:
    """What this runtime is known not to read provides nothing here."""
    with GpuHost(place, ONE, version=version) as node:
        for directory in (node.cdi_etc, node.cdi):
            (directory / "nvidia.yaml").write_text(spec(node, number, more))
        apply = node.agent("apply")
        checks.done(apply)
        assert (GPU in node.specs()) == ours
        assert ("no container gets a device from it" in apply.stdout) == ours


def test_spec_that_this_runtime_may_not_read_stays_with_a_warning(place: Path) -> None:
    """Where its version does not tell, and its executable neither: theirs stays, with a warning."""
    with GpuHost(place, ONE, version="1.7.12") as node:
        for directory in (node.cdi_etc, node.cdi):
            (directory / "nvidia.yaml").write_text(spec(node, "0.7.0", GROUPS))
        for command in ("plan", "apply", "status"):
            said = node.agent(command).stdout
            assert f"/run/cdi/nvidia.yaml (nvidia-cdi-refresh) describes {KIND}, and the" in said
            assert "containerd 1.7.12 may read no more than 0.5.0" in said
        assert GPU not in node.specs()


def test_ours_goes_where_it_wins(place: Path) -> None:
    """The directory that is read last, whatever it is called; and back again."""
    node = GpuHost(place, ONE)
    section = "[plugins.'io.containerd.cri.v1.runtime']\n"
    order = 'cdi_spec_dirs = ["/var/run/cdi", "/etc/cdi"]\n'
    node.config.write_text(node.config.read_text() + section + order)
    with node:
        theirs = node.cdi / "nvidia.yaml"
        theirs.write_text(spec(node, library=OLD))
        checks.done(node.agent("apply"))
        assert (node.cdi_etc / GPU).exists()
        assert not (node.cdi / GPU).exists()
        assert listed(node)[f"{KIND}=0", f"/etc/cdi/{GPU}"]["state"] == "resolvable"
        assert "Nothing to do" in node.agent("apply").stdout
        theirs.unlink()
        checks.done(node.agent("apply"))
        assert not (node.cdi_etc / GPU).exists()
        assert (node.cdi / GPU).exists()


def test_two_files_that_cancel_each_other_are_refused(node: GpuHost) -> None:
    """They do so for later directories, too: nobody's GPUs can be had."""
    for name in ("a.yaml", "b.yaml"):
        (node.cdi_etc / name).write_text(spec(node))
    fails(node.agent("apply"), 3, f"cannot provide {KIND}: /etc/cdi/b.yaml (nvidia-ctk)", "a.yaml")
    assert node.ready() is None
    (node.cdi_etc / "a.yaml").unlink()
    checks.done(node.agent("apply"))


def test_stale_foreign_file_under_our_name_stays(node: GpuHost) -> None:
    """It is somebody else's, and stays."""
    theirs = node.cdi / GPU
    theirs.write_text(spec(node, library=OLD))
    fails(node.agent("apply"), 3, f"cannot provide {KIND}: /run/cdi/{GPU}")
    assert theirs.read_text() == spec(node, library=OLD)


_HOOK = "  hooks: [{hookName: createContainer, path: /opt/gone/nvidia-cdi-hook, args: [x]}]\n"
_GONE_NODE = "        - path: /dev/nvidia7"
_OPEN = ": ["


def dangling(path: Path, _: str) -> None:
    """Links that lead back to themselves."""
    path.symlink_to("/etc/cdi/loop.yaml")
    (path.parent / "loop.yaml").symlink_to("/etc/cdi/nvidia.yaml")


def written(path: Path, text: str) -> None:
    path.write_text(text)


def hooked(path: Path, text: str) -> None:
    path.write_text(text + _HOOK)


def doubled(path: Path, text: str) -> None:
    path.write_text(text.replace("kind:", "kind: vendor.example/gpu\nkind:"))


def cut(path: Path, text: str) -> None:
    path.write_text(text[: text.index("containerEdits") + 10] + _OPEN)


@pytest.mark.parametrize(
    ("make", "more"),
    [(hooked, ""), (written, _GONE_NODE), (written, "      surprise: 1"), (doubled, ""),
     (cut, ""), (dangling, "")],
    ids=["hook gone", "node gone", "no such field", "key twice", "cut off", "link to itself"],
)  # fmt: skip
def test_our_spec_is_written_beside_one_that_does_not_work(
    node: GpuHost, make: Any, more: str
) -> None:
    """Whatever is the matter: ours is there, and every command gives the reason that `cdi list`
    knows."""
    make(node.cdi_etc / "nvidia.yaml", spec(node, more=more).replace("all", "gpu0"))
    if more == _GONE_NODE:  # the other device as well
        text = (node.cdi_etc / "nvidia.yaml").read_text()
        (node.cdi_etc / "nvidia.yaml").write_text(text.replace("/dev/nvidia0", "/dev/nvidia7"))
    data = shows(node.agent("cdi list", "-o", "json"), "CDIDevices")
    [reason] = {file["problem"] for file in data["files"] if file["path"].endswith("nvidia.yaml")}
    reason = reason or next(one["why"] for one in data["devices"])
    reason = reason.rpartition("]: ")[2]
    for command in ("plan", "apply", "status", "apply"):
        result = node.agent(command)
        assert "/etc/cdi/nvidia.yaml" in result.stdout, result.stderr
        assert reason in result.stdout
    assert GPU in node.specs()
    assert node.names() == ["0", ONE.name, "all"]
    assert node.ready() is not None


def test_spec_with_some_working_devices_stays(node: GpuHost) -> None:
    """Theirs stays, for others of it can be had; which one cannot is said."""
    (node.cdi_etc / "nvidia.yaml").write_text(spec(node, more=_GONE_NODE))
    for command in ("plan", "apply", "status"):
        said = node.agent(command).stdout
        assert f"/etc/cdi/nvidia.yaml (nvidia-ctk) describes {KIND}=0, which no container" in said
        assert "/dev/nvidia7" in said
        assert f"{KIND}=all" not in said
    assert GPU not in node.specs()


def test_working_spec_provides_beside_a_stale_one(node: GpuHost) -> None:
    """The one that works provides; what is wrong with the other is said."""
    (node.cdi_etc / "nvidia.yaml").write_text(spec(node, library=OLD))
    (node.cdi / "nvidia.yaml").write_text(spec(node))
    said = node.agent("apply").stdout
    assert f"/etc/cdi/nvidia.yaml (nvidia-ctk) describes {KIND}=0, {KIND}=all" in said
    assert OLD in said
    (node.cdi_etc / "nvidia.yaml").write_text(spec(node))
    assert "nvidia.yaml" not in "".join(
        line for line in node.agent("apply").stdout.splitlines() if line.startswith("Warning")
    )
    assert GPU not in node.specs()


def test_spec_over_the_budget_counts_as_unknown(node: GpuHost) -> None:
    """Nobody knows what the runtime takes from it. Ours wins over it from a later directory; in one
    directory two could cancel each other, and theirs stays alone."""
    devices = "".join(f"  - {{name: d{n}, containerEdits: {{env: [A=1]}}}}\n" for n in range(7_000))
    checks.done(node.agent("apply"))
    text = f"cdiVersion: 0.5.0\nkind: {KIND}\ndevices:\n{devices}"
    theirs = node.cdi_etc / "nvidia.yaml"
    theirs.write_text(text)
    says = f"(nvidia-ctk) describes {KIND}, and its devices are unknown: it has more than"
    for command in ("plan", "apply", "status"):
        assert f"/etc/cdi/nvidia.yaml {says}" in node.agent(command).stdout
    assert GPU in node.specs()
    theirs.rename(node.cdi / "nvidia.yaml")
    assert "the runtime may not read it: it has more than" in node.agent("apply").stdout
    assert GPU not in node.specs()
    assert node.ready() is not None


def test_foreign_management_spec_read_later_wins(node: GpuHost) -> None:
    """From a directory that is read after ours: tools of the node get what it says."""
    theirs = node.cdi / "installer.yaml"
    text = spec(node, library=OLD).replace(KIND, "management.nvidia.com/gpu")
    theirs.write_text(text)
    says = "/run/cdi/installer.yaml defines management.nvidia.com/gpu too, and wins over /etc/cdi/"
    for command in ("plan", "apply", "status"):
        assert says in node.agent(command, "--cdi-output-dir=/etc/cdi").stdout
    theirs.write_text(text.replace("name: all", "name: other"))
    assert says not in node.agent("apply", "--cdi-output-dir=/etc/cdi").stdout


def test_specs_of_other_vendors_are_none_of_ours(node: GpuHost) -> None:
    """Whatever is wrong with them."""
    (node.cdi_etc / "vendor.yaml").write_text("kind: vendor.example/net\ndevices: [")
    assert "vendor.yaml" not in node.agent("apply").stdout
