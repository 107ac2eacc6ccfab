"""The toolkit's config.toml follows the row of the decision and the options."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import fails, shows
from tests.cli.hosted import HostedNode
from tests.cli.installing import CONFIG, RUNTIME, SourceNode, release
from tests.conformance import checks
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.doubles.crio.crio_node import CrioNode
from tests.tools.driver import make_driver

_OFF = "--cdi-enabled=false"
_OWN, _ALL = "nvidia.cdi.k8s.io/", "cdi.k8s.io/"
_DEFAULT_DIRS = ["/etc/cdi", "/var/run/cdi"]


@dataclass(frozen=True)
class Row:
    """What the agent writes into it; `own_dirs`: the runtime's own spec directories are known."""

    number: int
    version: str
    options: tuple[str, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()
    mode: str = "cdi"
    prefixes: tuple[str, ...] = (_OWN,)
    own_dirs: bool = True
    accepts: bool = False


CONTAINERD = (
    Row(1, "2.1.9", (_OFF,), mode="auto", prefixes=(_ALL,), accepts=True),
    Row(1, "1.6.20", (_OFF,), mode="auto", prefixes=(_ALL,), accepts=True, own_dirs=False),
    Row(3, "2.1.9"),
    Row(4, "1.7.24"),
    Row(5, "1.7.24", ("--enable-cdi-in-runtime=false",), prefixes=(_OWN, _ALL)),
    Row(5, "2.1.9", ("--native-cdi=false",)),  # the runtime answers the other one all the same
    Row(6, "1.6.20", prefixes=(_OWN, _ALL), own_dirs=False),
    Row(7, "2.3.4", faults=(("enable_cdi", "absent"),)),
)
CRIO = (
    Row(1, "1.37.0", (_OFF, "--config-mode=config"), mode="auto", prefixes=(_ALL,), accepts=True),
    Row(2, "1.37.0", (_OFF,), mode="auto", prefixes=(_ALL,), accepts=True),
    Row(6, "1.23.5", prefixes=(_OWN, _ALL), own_dirs=False),
    Row(8, "1.37.0", prefixes=()),
    Row(8, "1.24.6", prefixes=()),
)


def name(row: Row) -> str:
    """For a test's name."""
    return f"{row.number}-{row.version}"


def read(toolkit: Path) -> dict[str, Any]:
    """What config.toml says."""
    return tomllib.loads((toolkit / CONFIG).read_text())


def expect(row: Row, found: Mapping[str, Any], dirs: list[str], runtimes: list[str]) -> None:
    """The keys that depend on the row."""
    runtime = found[RUNTIME]
    assert runtime["mode"] == row.mode
    cdi = runtime["modes"]["cdi"]
    assert cdi["annotation-prefixes"] == list(row.prefixes)
    assert cdi["spec-dirs"] == (dirs if row.own_dirs else _DEFAULT_DIRS)
    assert cdi["default-kind"] == "nvidia.com/gpu"
    assert runtime["runtimes"] == runtimes
    assert found["accept-nvidia-visible-devices-envvar-when-unprivileged"] is row.accepts
    assert found["accept-nvidia-visible-devices-as-volume-mounts"] is False


@pytest.mark.parametrize("row", CONTAINERD, ids=name)
def test_prefixes_that_containerd_answers_are_left_to_it(place: Path, row: Row) -> None:
    """Prefixes that the runtime answers itself are left to it, so that nothing comes twice."""
    section = SECTIONS[2 if row.version.startswith("1") else 3]
    known = row.version != "1.6.20"
    dirs = f'[{section}]\ncdi_spec_dirs = ["{place}/cdi"]\n' if known else ""
    with SourceNode(place, row.version, dirs + handler("runc", section)) as node:
        node.script(**dict(row.faults))
        done = shows(node.agent("apply", *row.options, "-o", "json"), "Outcome")
        assert done["decision"]["row"] == row.number
        expect(row, read(node.toolkit), [f"{place}/cdi"], ["runc", "crun"])
        passed = node.answer().runtimes["nvidia"]["ContainerAnnotations"] or []
        fallback = [f"{prefix}*" for prefix in row.prefixes] if row.number in (5, 6) else []
        assert passed == fallback


@pytest.mark.parametrize("row", CRIO, ids=name)
def test_settings_on_crio_are_those_of_the_row(place: Path, row: Row) -> None:
    """The same; a hook asks for the toolkit's settings too."""
    node = CrioNode(place, row.version)
    (node.toolkit / f"{RUNTIME}-hook").touch(0o755)
    with node:
        done = shows(node.agent("apply", *row.options, "-o", "json"), "Outcome")
        assert done["decision"]["row"] == row.number
        expect(row, read(node.toolkit), [str(node.cdi)], ["crun", "runc"])


def test_settings_follow_the_row_and_programs_stay(sourced: SourceNode) -> None:
    """From row to row it follows, and programs are not written again."""
    real = sourced.toolkit / f"{RUNTIME}.real"
    checks.done(sourced.agent("apply"))
    inode = real.stat().st_ino
    for row in (CONTAINERD[0], CONTAINERD[5], CONTAINERD[0], CONTAINERD[2]):
        before = read(sourced.toolkit)
        data = shows(sourced.agent("apply", *row.options, "-o", "json"), "Outcome")
        assert (str(sourced.toolkit) in data["changed"]) == (read(sourced.toolkit) != before)
        expect(row, read(sourced.toolkit), _DEFAULT_DIRS, ["runc", "crun"])
    assert real.stat().st_ino == inode


# Option, its environment name, a value, the key, and what it says then.
_OPTIONS: tuple[tuple[str, str, str, str, object], ...] = (
    ("nvidia-container-runtime.mode", "NVIDIA_CONTAINER_RUNTIME_MODE", "legacy",
     f"{RUNTIME}/mode", "legacy"),
    ("nvidia-container-runtime.modes.cdi.annotation-prefixes",
     "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES", "a.example/,b.example/",
     f"{RUNTIME}/modes/cdi/annotation-prefixes", ["a.example/", "b.example/"]),
    ("nvidia-container-runtime.modes.cdi.default-kind",
     "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND", "management.nvidia.com/gpu",
     f"{RUNTIME}/modes/cdi/default-kind", "management.nvidia.com/gpu"),
    ("nvidia-container-runtime.runtimes", "NVIDIA_CONTAINER_RUNTIME_RUNTIMES", "/opt/kata,youki",
     f"{RUNTIME}/runtimes", ["/opt/kata", "youki"]),
    ("nvidia-container-runtime.debug", "NVIDIA_CONTAINER_RUNTIME_DEBUG", "/var/log/x \"y\".log",
     f"{RUNTIME}/debug", "/var/log/x \"y\".log"),
    ("nvidia-container-runtime.log-level", "NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL", "debug",
     f"{RUNTIME}/log-level", "debug"),
    ("nvidia-container-cli.debug", "NVIDIA_CONTAINER_CLI_DEBUG", "/var/log/cli.log",
     "nvidia-container-cli/debug", "/var/log/cli.log"),
    ("nvidia-container-runtime-hook.skip-mode-detection",
     "NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION", "false",
     f"{RUNTIME}-hook/skip-mode-detection", False),
    ("accept-nvidia-visible-devices-envvar-when-unprivileged",
     "ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED", "true",
     "accept-nvidia-visible-devices-envvar-when-unprivileged", True),
    ("accept-nvidia-visible-devices-as-volume-mounts",
     "ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS", "true",
     "accept-nvidia-visible-devices-as-volume-mounts", True),
    ("opt-in-features", "NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES", "one,two",
     "features", {"one": True, "two": True}),
)  # fmt: skip


def at(found: Mapping[str, Any], path: str) -> object:
    """A value by the names of its keys."""
    value: Any = found
    for key in path.split("/"):
        value = value[key]
    return value


def test_options_are_written_and_go_again(sourced: SourceNode) -> None:
    """All of them at once, from the command line, then from the environment, then gone."""
    checks.done(sourced.agent("apply"))
    plain = read(sourced.toolkit)
    given = [f"--{option}={value}" for option, _, value, _, _ in _OPTIONS]
    checks.done(sourced.agent("apply", *given))
    found = read(sourced.toolkit)
    for option, _, _, key, says in _OPTIONS:
        assert at(found, key) == says, option
    checks.done(sourced.agent("apply"))
    assert read(sourced.toolkit) == plain
    checks.done(sourced.agent("apply", env={name: value for _, name, value, _, _ in _OPTIONS}))
    assert read(sourced.toolkit) == found


def test_envvar_refused_without_cdi(sourced: SourceNode) -> None:
    """Also where the row would have it."""
    option = "--accept-nvidia-visible-devices-envvar-when-unprivileged=false"
    checks.done(sourced.agent("apply", _OFF, option))
    found = read(sourced.toolkit)
    assert found["accept-nvidia-visible-devices-envvar-when-unprivileged"] is False


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nvidia-container-runtime.mode", "perhaps"),
        ("nvidia-container-runtime.log-level", "loud"),
        ("nvidia-container-runtime.modes.cdi.default-kind", "gpu"),
        ("opt-in-features", "a b"),
        ("nvidia-container-runtime.runtimes", "nvidia-container-runtime"),
        ("nvidia-container-runtime.debug", "x\ny"),
        ("toolkit-package-type", "apk"),
    ],
)
def test_senseless_option_is_refused_before_anything_is_done(
    sourced: SourceNode, option: str, value: str
) -> None:
    """Said before anything is done."""
    fails(
        sourced.agent("apply", f"--{option}={value}"), 2, value if value.isprintable() else option
    )
    assert not sourced.toolkit.exists()


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
def test_low_level_runtimes_of_the_node_come_first(place: Path, version: str) -> None:
    """What the node's own handlers run comes first, as far as it is there; never one of ours."""
    section = SECTIONS[2 if version.startswith("1") else 3]
    own, mine = place / "opt/my-crun", place / "opt/other"
    own.parent.mkdir()
    own.touch(0o755)
    release(place, "1.19.0")
    mine.symlink_to(place / f"source-1.19.0/usr/bin/{RUNTIME}")
    text = f'[{section}.containerd]\ndefault_runtime_name = "site"\n'
    text += handler("site", section).replace("/opt/site", str(own))
    text += handler("runc", section).replace("/opt/runc", str(mine))
    with SourceNode(place, version, text) as node:
        checks.done(node.agent("apply", "--set-as-default=true"))
        assert read(node.toolkit)[RUNTIME]["runtimes"] == [str(own), "runc", "crun"]
        # The default of before is remembered.
        assert node.answer().default == "nvidia"
        checks.done(node.agent("apply", "--set-as-default=true", "--proof-timeout=5"))
        assert read(node.toolkit)[RUNTIME]["runtimes"] == [str(own), "runc", "crun"]


def test_low_level_runtimes_stay_where_the_configuration_is_not_ours(place: Path) -> None:
    """gpu-operator switched to NRI: the handlers of before are still there, and what they call."""
    section, own = SECTIONS[3], place / "opt/my-crun"
    own.parent.mkdir()
    own.touch(0o755)
    text = f'[{section}.containerd]\ndefault_runtime_name = "site"\n'
    text += handler("site", section).replace("/opt/site", str(own))
    with SourceNode(place, "2.1.9", text) as node:
        checks.done(node.agent("apply"))
        before = read(node.toolkit)
        assert before[RUNTIME]["runtimes"] == [str(own), "runc", "crun"]
        checks.done(node.agent("apply", env={"NO_RUNTIME_CONFIG": "true"}))
        assert read(node.toolkit) == before


def test_runtime_of_nvidia_is_never_its_own_low_level_runtime(place: Path) -> None:
    """Called by itself, NVIDIA's runtime would go on for ever."""
    section = SECTIONS[2]
    theirs = place / f"usr/bin/{RUNTIME}"
    theirs.parent.mkdir(parents=True)
    theirs.touch(0o755)
    text = f'[{section}.containerd]\ndefault_runtime_name = "nvidia"\n'
    text += handler("nvidia", section).replace("/opt/nvidia", str(theirs))
    text += handler("runc", section)
    with SourceNode(place, "1.7.24", text) as node:
        checks.done(node.agent("apply"))
        assert read(node.toolkit)[RUNTIME]["runtimes"] == ["runc", "crun"]


@pytest.mark.parametrize("suse", [False, True])
def test_driver_of_the_host_is_named_as_the_host_names_it(
    empty_host: HostedNode, suse: bool
) -> None:
    """Its root and its ldconfig, by the host's names; SUSE's nodes belong to a group."""
    host, source = empty_host.host, release(empty_host.directory, "1.19.0")
    make_driver(host / "run/nvidia/driver", nodes=False)
    programs = host / "run/nvidia/driver/sbin"
    programs.mkdir()
    (programs / "ldconfig.real").touch(0o755)
    if suse:
        (host / "etc/os-release").write_text('NAME="SLES"\nID="sles"\nID_LIKE="suse"\n')
    checks.done(empty_host.agent("apply", f"--toolkit-source-root={source}"))
    cli = read(empty_host.toolkit)["nvidia-container-cli"]
    assert cli["root"] == "/run/nvidia/driver"
    assert cli["ldconfig"] == "@/run/nvidia/driver/sbin/ldconfig.real"
    assert cli["path"] == "/usr/local/nvidia/toolkit/nvidia-container-cli"
    assert cli["user"] == ("root:video" if suse else "")
