"""The toolkit's config.toml equals that of NVIDIA's installer, in every row, with every option."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.decide import Decision, decide
from agent.options.settings import Settings, resolve
from agent.plan.context import Context
from agent.runtimes import low_level
from agent.runtimes.desired_state import Effective
from agent.toolkit import config
from agent.toolkit.tree import Text
from tests.unit.support.made_toolkit import DRIVER, ROWS, TOOLKIT, Host, packages, proposed

_ACCEPT = "accept-nvidia-visible-devices-envvar-when-unprivileged"
_MOUNTS = "accept-nvidia-visible-devices-as-volume-mounts"
_CLI, _RUNTIME = "nvidia-container-cli", "nvidia-container-runtime"
_CDI = f"{_RUNTIME}.modes.cdi"
_MODE, _RUNTIMES, _PREFIXES = (
    f"{_RUNTIME}.mode",
    f"{_RUNTIME}.runtimes",
    f"{_CDI}.annotation-prefixes",
)

# What NVIDIA's installer is expected to write without options but for its places, and with CDI too
# (nvidia-container-toolkit 1.20, cmd/nvidia-ctk-installer/main_test.go, TestApp).
PEER: dict[str, Any] = {
    _MOUNTS: False,
    _ACCEPT: True,
    "disable-require": False,
    "supported-driver-capabilities": "compat32,compute,display,graphics,ngx,utility,video",
    "swarm-resource": "",
    f"{_CLI}.debug": "",
    f"{_CLI}.environment": [],
    f"{_CLI}.ldcache": "",
    f"{_CLI}.ldconfig": f"@{DRIVER}/sbin/ldconfig",
    f"{_CLI}.load-kmods": True,
    f"{_CLI}.no-cgroups": False,
    f"{_CLI}.path": f"{TOOLKIT}/nvidia-container-cli",
    f"{_CLI}.root": DRIVER,
    f"{_CLI}.user": "",
    f"{_RUNTIME}.debug": "/dev/null",
    f"{_RUNTIME}.log-level": "info",
    _MODE: "auto",
    _RUNTIMES: ["runc", "crun"],
    _PREFIXES: ["cdi.k8s.io/"],
    f"{_CDI}.default-kind": "nvidia.com/gpu",
    f"{_CDI}.spec-dirs": ["/etc/cdi", "/var/run/cdi"],
    f"{_RUNTIME}.modes.csv.mount-spec-path":
        "/etc/nvidia-container-runtime/host-files-for-container.d",
    f"{_RUNTIME}.modes.legacy.cuda-compat-mode": "ldconfig",
    f"{_RUNTIME}-hook.path": f"{TOOLKIT}/nvidia-container-runtime-hook",
    f"{_RUNTIME}-hook.skip-mode-detection": True,
    "nvidia-ctk.path": f"{TOOLKIT}/nvidia-ctk",
}  # fmt: skip

# What its reader knows besides (api/config/v1); all of it may be left out.
OPTIONAL = {
    f"{_CLI}.no-pivot": bool,
    f"{_RUNTIME}.modes.csv.compat-container-root": str,
    f"{_RUNTIME}.modes.jit-cdi.nvcdi-feature-flags": list,
    f"{_RUNTIME}.modes.jit-cdi.nvcdi-disable-hooks": list,
    **dict.fromkeys(
        (
            "features.allow-cuda-compat-libs-from-container",
            "features.allow-ldconfig-from-container",
            "features.allow-unknown-oci-spec-fields",
            "features.disable-cuda-compat-lib-hook",
            "features.disable-imex-channel-creation",
            "features.ignore-imex-channel-requests",
            "features.no-additional-gids-for-device-nodes",
        ),
        bool,
    ),
}

_OWN, _BOTH = ["nvidia.cdi.k8s.io/"], ["nvidia.cdi.k8s.io/", "cdi.k8s.io/"]
_CHOSEN = "what was decided for this node, and not what may be guessed for each container"
_PAST = "otherwise any pod has every GPU past the scheduler, by a variable that images set"
_NATIVE = "containerd answers cdi.k8s.io/ itself: two answers inject everything twice"
_ALONE = (
    "nobody else answers; the device plugin is told the first, one for a whole cluster the other"
)
_READ = "where this node's containerd looks for devices, so does its handler"
_FOUND = "this node's own default goes on running its containers"

# Where ours differs with the same options, on a node whose default runtime is /opt/bin/custom:
# by row (CDI is not wanted in the first), with the reason why ours is right.
DIFFERENT: dict[int, dict[str, tuple[Any, str]]] = {
    1: {},
    3: {_ACCEPT: (False, _PAST), _MODE: ("cdi", _CHOSEN), _PREFIXES: (_OWN, _NATIVE),
        f"{_CDI}.spec-dirs": (["/etc/cdi"], _READ)},
    4: {_ACCEPT: (False, _PAST), _MODE: ("cdi", _CHOSEN), _PREFIXES: (_OWN, _NATIVE)},
    5: {_ACCEPT: (False, _PAST), _MODE: ("cdi", _CHOSEN), _PREFIXES: (_BOTH, _ALONE)},
    6: {_ACCEPT: (False, _PAST), _MODE: ("cdi", _CHOSEN), _PREFIXES: (_BOTH, _ALONE)},
}  # fmt: skip
EVERYWHERE = {_RUNTIMES: (["/opt/bin/custom", "runc", "crun"], _FOUND)}
_CUSTOM = Effective("custom", {"custom": {"options": {"BinaryName": "/opt/bin/custom"}}}, None, {})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A node with a driver container, and packages to install from."""
    found = Host(tmp_path)
    found.make({f"{DRIVER}/usr/lib64/libcuda.so.550.54.15": "text", "/opt/bin/custom": "x"})
    found.make(packages(), "/packages")
    return found


def flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Every value by its whole name."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def context(host: Host, **env: str) -> Context:
    """A run under the names and defaults of NVIDIA's installer."""
    source = {"TOOLKIT_SOURCE_ROOT": str(host.at("/packages"))}
    return host.context({**source, **env}, entry="nvidia-toolkit")


def written(ctx: Context, row: int, cri: Effective | None = None) -> dict[str, Any]:
    """What config.toml says then."""
    mode, prefixes = ctx.settings.mode, ctx.settings.annotation_prefixes
    asked = replace(ROWS[row], mode=mode, prefixes=prefixes)
    runtimes = low_level.runtimes(ctx.settings, ctx.host, "containerd", cri, None)
    found = proposed(ctx, decide(asked), runtimes)
    assert found.problem is None
    entry = found.tree[config.CONFIG]
    assert isinstance(entry, Text)
    assert (entry.mode, found.config is not None) == (0o644, True)
    return flat(tomllib.loads(entry.data.decode()))


@pytest.mark.parametrize("row", DIFFERENT)
def test_settings_equal_those_of_nvidias_installer(host: Host, row: int) -> None:
    """The same, key by key, but for the table above."""
    ctx = context(host, CDI_ENABLED="false" if row == 1 else "true")
    different = {key: value for key, (value, _) in {**DIFFERENT[row], **EVERYWHERE}.items()}
    found = written(ctx, row, _CUSTOM)
    assert {key: value for key, value in found.items() if PEER.get(key, ...) != value} == different
    assert found == PEER | different


@pytest.mark.parametrize("row", ROWS)
def test_settings_are_those_of_the_decision(host: Host, row: int) -> None:
    """Mode, annotations and directories are those of the decision."""
    found = written(context(host, CDI_ENABLED="true" if row > 2 else "false"), row)
    answered = {1: PEER[_PREFIXES], 2: PEER[_PREFIXES], 5: _BOTH, 6: _BOTH, 8: []}
    directories = {3: ["/etc/cdi"], 7: ["/a", "/b"]}.get(row, ["/etc/cdi", "/var/run/cdi"])
    assert found == PEER | {
        _MODE: "cdi" if row > 2 else "auto",
        _PREFIXES: answered.get(row, _OWN),
        _ACCEPT: row < 3,
        f"{_CDI}.spec-dirs": directories,
    }


_SWITCHES = "NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES"


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("NVIDIA_CONTAINER_RUNTIME_MODE", "legacy", {_MODE: "legacy"}),
        ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES", "a/, b.c/",
         {_PREFIXES: ["a/", "b.c/"]}),
        ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND", "management.nvidia.com/gpu",
         {f"{_CDI}.default-kind": "management.nvidia.com/gpu"}),
        ("NVIDIA_CONTAINER_RUNTIME_RUNTIMES", "crun, /a b/c", {_RUNTIMES: ["crun", "/a b/c"]}),
        ("NVIDIA_CONTAINER_RUNTIME_DEBUG", "/a b.log", {f"{_RUNTIME}.debug": "/a b.log"}),
        ("NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL", "debug", {f"{_RUNTIME}.log-level": "debug"}),
        ("NVIDIA_CONTAINER_CLI_DEBUG", "/c", {f"{_CLI}.debug": "/c"}),
        ("NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION", "false",
         {f"{_RUNTIME}-hook.skip-mode-detection": False}),
        ("ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED", "true", {_ACCEPT: True}),
        ("ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED", "false", {_ACCEPT: False}),
        ("ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS", "true", {_MOUNTS: True}),
        (_SWITCHES, "disable-imex-channel-creation, allow-unknown-oci-spec-fields",
         {"features.disable-imex-channel-creation": True,
          "features.allow-unknown-oci-spec-fields": True}),
        ("NVIDIA_DRIVER_ROOT", "/", {f"{_CLI}.root": "/", f"{_CLI}.ldconfig": "@/sbin/ldconfig"}),
        ("ROOT", "/opt/a b", {f"{_CLI}.path": "/opt/a b/toolkit/nvidia-container-cli",
                              "nvidia-ctk.path": "/opt/a b/toolkit/nvidia-ctk",
                              f"{_RUNTIME}-hook.path":
                                  "/opt/a b/toolkit/nvidia-container-runtime-hook"}),
    ],
)  # fmt: skip
def test_each_option_changes_its_setting_only(
    host: Host, name: str, value: str, changed: dict[str, Any]
) -> None:
    """Each says what it says in NVIDIA's installer, in any row, and changes nothing else."""
    types = {key: type(item) for key, item in PEER.items()} | OPTIONAL
    for row in (1, 3, 6, 8):
        env = {"CDI_ENABLED": "true" if row > 2 else "false"}
        before = written(context(host, **env), row)
        after = written(context(host, **env, **{name: value}), row)
        assert after == before | changed
        assert set(PEER) <= set(after)
        assert {key: type(item) for key, item in after.items()} == {k: types[k] for k in after}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "@/run/nvidia/driver/sbin/ldconfig"),
        ({"/sbin/ldconfig.real": "x"}, "@/run/nvidia/driver/sbin/ldconfig"),
        ({f"{DRIVER}/sbin/ldconfig.real": "x"}, "@/run/nvidia/driver/sbin/ldconfig.real"),
        ({f"{DRIVER}/usr/sbin/ldconfig.real": "x", f"{DRIVER}/sbin": "-> /usr/sbin"},
         "@/run/nvidia/driver/sbin/ldconfig.real"),
    ],
)  # fmt: skip
def test_ldconfig_is_that_of_the_drivers_root(
    host: Host, files: dict[str, str], expected: str
) -> None:
    """Ubuntu's is a script before the real one; what counts is the driver's own root."""
    host.make(files)
    assert written(context(host), 1)[f"{_CLI}.ldconfig"] == expected


def test_driver_of_the_host_has_the_hosts_root_and_ldconfig(tmp_path: Path) -> None:
    """Without a driver container."""
    host = Host(tmp_path)
    host.make({"/usr/lib64/libcuda.so.550.54.15": "text", "/sbin/ldconfig.real": "x"})
    host.make(packages(), "/packages")
    found = written(context(host), 1)
    assert (found[f"{_CLI}.root"], found[f"{_CLI}.ldconfig"]) == ("/", "@/sbin/ldconfig.real")


@pytest.mark.parametrize(
    ("release", "user"),
    [
        ("ID=ubuntu\nID_LIKE=debian\n", ""),
        ('NAME="SLES"\nID="sles"\nID_LIKE="suse"\n', "root:video"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "root:video"),
        ("ID=fedora\nNAME=suse\n# ID_LIKE=suse\n", ""),
        ("", ""),
        ("\xff\n" * 9, ""),
        ("x" * (1 << 20) + "\nID=suse\n", ""),
    ],
)
def test_user_on_suse_is_in_group_video(host: Host, release: str, user: str) -> None:
    """There /dev/nvidia* are of group video; the file is a link, as a rule."""
    host.make({"/usr/lib/os-release": release, "/etc/os-release": "-> ../usr/lib/os-release"})
    assert written(context(host), 1)[f"{_CLI}.user"] == user


_TEXT = st.text(max_size=12)
_TEXTS = st.lists(_TEXT, max_size=3).map(tuple)


_PROGRAMS = ("nvidia-container-cli", "nvidia-ctk", "nvidia-container-runtime-hook")


@settings(max_examples=40)
@given(
    decided=st.builds(partial(replace, decide(ROWS[3])), mode=_TEXT, prefixes=_TEXTS,
                      spec_dirs=_TEXTS),
    asked=st.builds(partial(replace, resolve({}, {}, "toolkit-agent")), cdi_default_kind=_TEXT,
                    accept_envvar=st.booleans(), accept_mounts=st.booleans(), runtime_debug=_TEXT,
                    runtime_log_level=_TEXT, cli_debug=_TEXT, opt_in_features=_TEXTS),
    runtimes=_TEXTS, texts=st.tuples(_TEXT, _TEXT, _TEXT),
    programs=st.fixed_dictionaries(dict.fromkeys(_PROGRAMS, _TEXT)),
)  # fmt: skip
def test_text_says_what_was_meant(
    decided: Decision, asked: Settings, runtimes: tuple[str, ...], texts: tuple[str, str, str],
    programs: dict[str, str],
) -> None:  # fmt: skip
    """Whatever the names are."""
    wanted = config.data(asked, decided, runtimes, programs, *texts)
    assert tomllib.loads(config.render(wanted).decode()) == wanted
