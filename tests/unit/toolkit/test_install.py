"""The toolkit calls the node's own low-level runtimes and lies only where it lasts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import NoToolkit, Refused
from agent.host.paths import HostRoot, Mount
from agent.options.settings import Settings
from agent.runtimes import low_level
from agent.runtimes.desired_state import LINUX, Effective
from agent.toml.document import Data
from agent.toolkit import config, install, tree
from agent.toolkit.install import ToolkitProposal
from agent.toolkit.tree import Text
from tests.unit.support.made_toolkit import (
    LIBRARIES,
    TOOLKIT,
    Host,
    decision,
    packages,
    programs,
    proposed,
)

RUNTIME = "nvidia-container-runtime"
OUR_HANDLER: Data = {"options": {"BinaryName": f"{TOOLKIT}/{RUNTIME}"}}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A node with two runtimes besides runc and crun."""
    found = Host(tmp_path)
    found.make({"/opt/bin/custom": "x", "/usr/libexec/crio/crun": "x", "/usr/bin/youki": "x",
                "/opt/bin/shim": "x", "/opt/bin/text": "text"})  # fmt: skip
    found.make(packages(), "/packages")
    return found


def seams(host: Host) -> tuple[Settings, HostRoot]:
    """What is asked for, and where."""
    ctx = host.context()
    return ctx.settings, ctx.host


def named(binary: str, key: str = "BinaryName", **more: str) -> Data:
    return {"runtime_type": "io.containerd.runc.v2", "options": {key: binary}, **more}


CUSTOM = named("/opt/bin/custom")
KATA: Data = {"runtime_type": "io.containerd.kata.v2", "runtime_path": "/opt/bin/shim"}


@pytest.mark.parametrize(
    ("default", "handlers", "remembered", "expected"),
    [
        ("runc", {"runc": {}}, None, []),
        ("runc", {"runc": {"options": {"BinaryName": ""}}}, None, []),
        ("custom", {"custom": CUSTOM, "runc": {}}, None, ["/opt/bin/custom"]),
        ("custom", {"custom": named("youki")}, None, ["youki"]),
        ("custom", {"custom": named("crun")}, None, ["crun"]),
        ("custom", {"custom": named("/opt/bin/custom", "binaryName")}, None, ["/opt/bin/custom"]),
        ("custom", {"custom": named("/opt/bin/custom", "binaryname")}, None, ["/opt/bin/custom"]),
        # Of two spellings containerd takes the last; of what is not there, nothing.
        ("custom", {"custom": {"options": {"binaryName": "/opt/bin/custom", "BinaryName": "crun"}}},
         None, ["/opt/bin/custom"]),
        ("custom", {"custom": named("/opt/bin/missing")}, None, []),
        ("custom", {"custom": named("/opt/bin/text")}, None, []),
        ("custom", {"custom": named("missing")}, None, []),
        ("custom", {"custom": named("./custom")}, None, []),
        # The default of this node first, then what else it has.
        ("custom", {"custom": CUSTOM, "runc": named("youki")}, None, ["/opt/bin/custom", "youki"]),
        ("runc", {"custom": CUSTOM, "runc": {}}, None, []),
        # A shim is no OCI runtime.
        ("kata", {"kata": KATA, "runc": {}}, None, []),
        ("kata", {"kata": KATA, "runc": named("youki")}, None, ["youki"]),
        ("custom", {"custom": named("/opt/bin/custom", runtime_path="/opt/bin/shim")}, None,
         ["/opt/bin/custom"]),
        # Once ours is the default, what it was before counts, as long as it is there.
        ("nvidia", {"custom": CUSTOM, "nvidia": OUR_HANDLER}, "custom", ["/opt/bin/custom"]),
        ("custom", {"custom": CUSTOM, "nvidia": OUR_HANDLER}, "custom", ["/opt/bin/custom"]),
        ("nvidia", {"runc": {}, "nvidia": OUR_HANDLER}, "gone", []),
        ("nvidia", {"nvidia": OUR_HANDLER}, None, []),
        ("gpu", {"gpu": named("/usr/bin/nvidia-container-runtime.cdi"), "runc": {}}, None, []),
        ("nothing", {}, None, []),
        # The shim before runc's names its program in other places.
        ("old", {"old": {"runtime_type": LINUX, "runtime_engine": "/opt/bin/custom"}}, None,
         ["/opt/bin/custom"]),
        ("old", {"old": {"runtime_type": LINUX, "options": {"Runtime": "youki"}}}, None, ["youki"]),
        ("old", {"old": {"runtime_type": LINUX, "runtime_engine": f"/x/{RUNTIME}"}}, None, []),
        # runc's own name, NVIDIA's program.
        ("runc", {"runc": named(f"/usr/bin/{RUNTIME}")}, None, []),
        ("runc", {"runc": {"runtime_type": "io.containerd.runc.v2", "runtime_path":
                           f"/usr/bin/{RUNTIME}"}}, None, []),
        # What a sandbox calls is its own business.
        ("nvidia", {"nvidia": {**KATA, "options": {"BinaryName": "youki"}}}, None, []),
    ],
)  # fmt: skip
def test_containerds_own_low_level_runtimes_come_first(
    host: Host, default: str, handlers: dict[str, Data], remembered: str | None, expected: list[str]
) -> None:
    """What runs containers there without us, then what PATH has."""
    host.make(programs("/usr/bin", (f"{RUNTIME}.cdi", "crun")))
    found = low_level.runtimes(*seams(host), "containerd", Effective(default, handlers, None, {}),
                              remembered)  # fmt: skip
    assert found == tuple(dict.fromkeys([*expected, "runc", "crun"]))


@pytest.mark.parametrize(
    ("program", "expected"), [("/opt/bin/custom", ["/opt/bin/custom"]), (RUNTIME, []), ("", [])]
)
def test_low_level_runtime_of_the_shim_comes_before_runc(
    program: str, expected: list[str], host: Host
) -> None:
    """Where its handler names none, its own settings do."""
    handlers: dict[str, Data] = {"old": {"runtime_type": LINUX}}
    host.make(programs("/usr/bin", ("crun",)))
    found = low_level.runtimes(
        host.context().settings,
        host.context().host,
        "containerd",
        Effective("old", handlers, None, {}, program),
        None,
    )
    assert found == (*expected, "runc", "crun")


_CRUN: Data = {"runtime_path": "/usr/libexec/crio/crun", "runtime_type": "oci"}


@pytest.mark.parametrize(
    ("default", "handlers", "expected"),
    [
        ("crun", {"crun": _CRUN, "runc": {"runtime_path": ""}}, ["/usr/libexec/crio/crun"]),
        ("runc", {"runc": {"runtime_path": ""}, "crun": _CRUN}, ["/usr/libexec/crio/crun"]),
        ("custom", {"custom": {"runtime_path": "/opt/bin/custom"}, "crun": _CRUN},
         ["/opt/bin/custom", "/usr/libexec/crio/crun"]),
        ("kata", {"kata": {"runtime_path": "/opt/bin/shim", "runtime_type": "vm"}}, []),
        ("nvidia", {"nvidia": {"runtime_path": f"{TOOLKIT}/{RUNTIME}"}, "crun": _CRUN},
         ["/usr/libexec/crio/crun"]),
    ],
)  # fmt: skip
def test_low_level_runtimes_of_crio_are_its_default_and_crun(
    host: Host, default: str, handlers: dict[str, Data], expected: list[str]
) -> None:
    """It has crun by default, at a place of its own."""
    found = low_level.runtimes(*seams(host), "crio", Effective(default, handlers, None, {}), None)
    assert found == (*expected, "crun", "runc")


def test_low_level_runtime_that_was_asked_for_is_taken(host: Host) -> None:
    """It is nobody's business but the asker's."""
    ctx = host.context({"NVIDIA_CONTAINER_RUNTIME_RUNTIMES": "crun,/not/there"})
    found = low_level.runtimes(
        ctx.settings,
        ctx.host,
        "containerd",
        Effective("custom", {"custom": CUSTOM}, None, {}),
        None,
    )
    assert found == ("crun", "/not/there")
    assert low_level.runtimes(*seams(host), "containerd", None, "custom") == ("runc", "crun")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[nvidia-container-runtime]\nruntimes = ["/opt/bin/custom", "crun", "runc"]',
         ["/opt/bin/custom", "runc", "crun"]),
        ('[nvidia-container-runtime]\nruntimes = ["/opt/bin/gone", 7]', ["runc", "crun"]),
        (f'[nvidia-container-runtime]\nruntimes = ["/opt/bin/{RUNTIME}"]', ["runc", "crun"]),
        ('[nvidia-container-runtime]\nruntimes = "runc"', ["runc", "crun"]),
        ("nvidia-container-runtime = 1", ["runc", "crun"]),
        ("= nothing", ["runc", "crun"]),
    ],
)  # fmt: skip
def test_earlier_low_level_runtimes_stay_without_a_configuration(
    host: Host, text: str, expected: list[str]
) -> None:
    """Where the runtime's configuration is not ours: what config.toml says, never NVIDIA's."""
    host.make(programs("/opt/bin", ("custom", RUNTIME)))
    host.make({f"{TOOLKIT}/.config/nvidia-container-runtime/config.toml": text})
    assert low_level.runtimes(*seams(host), "containerd", None, "x") == tuple(expected)


@pytest.mark.parametrize(
    ("link", "table"),
    [
        ("/usr/bin/runc", {}),
        ("/usr/local/sbin/runc", {}),
        ("/opt/runc", named("/opt/runc")),
        ("/usr/bin/mine", named("mine")),
    ],
)
def test_low_level_runtime_is_never_nvidias(host: Host, link: str, table: Data) -> None:
    """A runc that is a link to it would call itself for ever."""
    host.make(programs("/usr/bin", (RUNTIME,)))
    host.make({link: f"-> /usr/bin/{RUNTIME}"})
    effective = Effective("runc", {"runc": table}, None, {})
    found = low_level.runtimes(*seams(host), "containerd", effective, None)
    assert found == (("crun",) if link.endswith("bin/runc") else ("runc", "crun"))


# Where it may lie.


def propose(host: Host, row: int, *mounts: Mount, **env: str) -> ToolkitProposal:
    """What would be installed from packages."""
    source = {"TOOLKIT_SOURCE_ROOT": str(host.at("/packages"))}
    ctx = host.context({**source, **env}, mounts)
    return proposed(ctx, decision(row))


def test_all_files_are_written_into_a_new_directory(host: Host) -> None:
    """All of it is to be written, on a directory of which nothing else is known."""
    proposed = propose(host, 6)
    assert (proposed.problem, proposed.warnings, proposed.is_installed) == (None, (), False)
    assert set(proposed.difference.write) == set(proposed.tree)
    assert {f"{name}.17.0" for name in LIBRARIES} <= set(proposed.tree)
    entry = proposed.tree[RUNTIME]
    assert isinstance(entry, Text)
    assert f"exec {TOOLKIT}/{RUNTIME}.real " in entry.data.decode()
    assert f"={TOOLKIT}/{config.CONFIG}\n" in entry.data.decode()


@pytest.mark.parametrize("row", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("point", "options", "kind", "why"),
    [
        ("/usr/local/nvidia", "rw", "tmpfs", "it is on tmpfs, and empty after a reboot"),
        ("", "rw", "ramfs", "it is on ramfs, and empty after a reboot"),
        ("/usr/local", "rw,nosuid,noexec", "xfs", r"no program can be run there \(noexec\)"),
        ("/usr/local", "rw,nosuid", "xfs", None),
        ("/usr/local/nvidia/toolkit/x", "rw,noexec", "tmpfs", None),
        ("/usr/local/nvid", "rw,noexec", "tmpfs", None),
    ],
)
def test_place_gone_after_a_reboot_is_refused_where_containers_need_it(
    host: Host, row: int, point: str, options: str, kind: str, why: str | None
) -> None:
    """Where nvidia is the default runtime, or an OCI hook of ours is for all containers, nothing
    would start then; elsewhere pods of its own wait for the agent."""
    root = Mount(str(host.root), "8:1", "/", "rw", "ext4")
    proposed = propose(host, row, root, Mount(f"{host.root}{point}", "8:2", "/", options, kind))
    if why is None or row == 3:
        assert proposed.problem is None
        return
    assert proposed.difference == tree.Difference()
    assert proposed.warnings == ()
    message = f"cannot install the toolkit in {TOOLKIT}: {why}, but every container of this node"
    with pytest.raises(Refused, match=message):
        install.write(proposed, host.context().log)
    assert not host.at("/usr").joinpath("local").exists()


def test_place_in_a_container_is_refused(host: Host) -> None:
    """What is installed there goes with it."""
    own = host.directory / "own"
    own.mkdir()
    mounts = (Mount("/", "0:30", "/"), Mount(str(own), "8:1", "/opt/nvidia"))
    assert propose(host, 3, *mounts, TOOLKIT_INSTALL_DIR=str(own)).problem is None
    source = {"TOOLKIT_SOURCE_ROOT": str(host.at("/packages"))}
    ctx = host.context(source, mounts[:1])
    ctx = replace(ctx, host=ctx.host.with_view(str(own), "/usr/local/nvidia"))
    problem = proposed(ctx, decision(3)).problem
    assert isinstance(problem, Refused)
    assert f"cannot install the toolkit in {TOOLKIT}: it is not on a mount of the" in str(problem)


@pytest.mark.parametrize(
    ("victim", "mode", "owner", "why"),
    [
        (TOOLKIT, 0o777, 0, r"can be written by others \(mode 0777\)"),
        (TOOLKIT, 0o755, 65534, "belongs to user 65534"),
        ("/usr/local/nvidia", 0o775, 0, r"can be written by others \(mode 0775\)"),
        ("/usr/local/nvidia", 0o1777, 0, r"can be written by others \(mode 1777\)"),
        ("/usr/local/nvidia", 0o755, 65534, "belongs to user 65534"),
        ("/usr/local", 0o777, 0, r"can be written by others \(mode 0777\)"),
        ("/usr", 0o755, 65534, "belongs to user 65534"),
        ("/usr/local", 0o1777, 0, None),
        (TOOLKIT, 0o700, 0, None),
    ],
)
def test_place_of_somebody_else_is_refused(
    host: Host, victim: str, mode: int, owner: int, why: str | None
) -> None:
    """Root runs what is in there."""
    host.at(TOOLKIT).mkdir(parents=True)
    host.at(victim).chmod(mode)
    if owner:
        if os.geteuid() != 0:
            pytest.skip("another owner: run tests/run as root")
        os.chown(host.at(victim), owner, 0)
    problem = propose(host, 3).problem
    if why is None:
        assert problem is None
    else:
        assert isinstance(problem, Refused)
        part = "it" if victim == TOOLKIT else victim
        start = f"cannot install the toolkit in {TOOLKIT}: {part} "
        with pytest.raises(Refused, match=start + why):
            raise problem


@pytest.mark.parametrize("name", [TOOLKIT, "/usr/local/nvidia", "/usr/local"])
def test_place_that_is_a_file_is_refused(host: Host, name: str) -> None:
    """Refused, and named."""
    host.make({name: "text"})
    try:
        problem = propose(host, 3).problem
    except Refused as error:
        problem = error
    assert isinstance(problem, Refused)
    assert str(problem).startswith("cannot ")
    assert TOOLKIT in str(problem)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (("nvidia-cdi-hook", "nvidia-ctk"), None),
        ((f"{RUNTIME}-hook", "nvidia-container-cli"), f"{RUNTIME}-hook, nvidia-container-cli"),
        (LIBRARIES[1:], LIBRARIES[1]),
    ],
)
def test_what_is_missing_is_said(host: Host, gone: tuple[str, ...], said: str | None) -> None:
    """Where a container could ever need it."""
    for name in gone:
        host.at(f"/packages/usr/{'lib64' if name in LIBRARIES else 'bin'}/{name}").unlink()
    warning = f"{host.at('/packages')} has no {said}: without CDI no container gets a GPU"
    for row in (1, 2, 3, 6):
        proposed = propose(host, row)
        assert proposed.warnings == ((warning,) if said and row < 3 else ())
        assert not set(gone) & set(proposed.tree)


@pytest.mark.parametrize(
    ("gone", "name", "handlers"),
    [
        ((), "nvidia", ["nvidia", "nvidia-cdi", "nvidia-legacy"]),
        ((), "gpu", ["gpu", "nvidia-cdi", "nvidia-legacy"]),
        ((), "nvidia-cdi", ["nvidia", "nvidia-cdi", "nvidia-legacy"]),
        ((".legacy",), "nvidia", ["nvidia", "nvidia-cdi"]),
        ((".cdi", ".legacy"), "nvidia", ["nvidia"]),
        ((".cdi",), "nvidia-cdi", None),
        (("",), "nvidia", None),
    ],
)
def test_handlers_without_a_program_are_left_out_or_refused(
    host: Host, gone: tuple[str, ...], name: str, handlers: list[str] | None
) -> None:
    """Those whose program there is; the others are said, and refused where one is the default."""
    for end in gone:
        host.at(f"/packages/usr/bin/{RUNTIME}{end}").unlink()
    source = {"TOOLKIT_SOURCE_ROOT": str(host.at("/packages")), "NVIDIA_RUNTIME_NAME": name}
    ctx = host.context(source)
    if handlers is None:
        with pytest.raises((NoToolkit, Refused), match="cannot "):
            install.binaries(ctx.settings, install.find_toolkit(ctx.settings, ctx.host))
        return
    found, warnings = install.binaries(ctx.settings, install.find_toolkit(ctx.settings, ctx.host))
    assert [item.handler for item in found] == handlers
    assert len(warnings) == len(gone)
