"""The environment of gpu-operator's toolkit pod is obeyed; whatever has no effect is named."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent.errors import UsageError
from agent.options.settings import Entry, Settings, resolve
from tests.operator import environment as operator

PID_FILE = "/run/nvidia/toolkit/toolkit.pid"


def settings(*parts: Mapping[str, str], entry: Entry = "nvidia-toolkit") -> Settings:
    """Return what comes of these variables together, a later one over an earlier one."""
    env: dict[str, str] = {}
    for part in (operator.ALWAYS, *parts):
        env |= part
    return resolve({}, env, entry)


SAME = {
    "toolkit_install_dir": "/usr/local/nvidia",
    "pid_file": PID_FILE,
    "host_root": None,
    "restart_mode": "auto",
    "runtime_name": "nvidia",
    "no_runtime_config": False,
}
CONTAINER = {
    "driver_root": "/run/nvidia/driver", "driver_root_ctr_path": "/driver-root",
    "dev_root": "/run/nvidia/driver", "dev_root_ctr_path": "/driver-root",
}  # fmt: skip
ON = {"cdi_enabled": True, "set_as_default": False, "default_is_negotiable": True, "mode": "cdi"}
OFF = {"cdi_enabled": False, "set_as_default": None, "mode": None}
FILES = {
    "runtime": "containerd",
    "config": "/runtime/config-dir/config.toml",
    "drop_in_config": "/runtime/config-dir.d/99-nvidia.toml",
    "drop_in_config_host_path": "/etc/containerd/conf.d/99-nvidia.toml",
    "socket": "/runtime/sock-dir/containerd.sock",
}
CRIO_FILES = {
    "runtime": "crio",
    "config": "/runtime/config-dir/config.toml",
    "drop_in_config": "/runtime/config-dir.d/99-nvidia.conf",
    "drop_in_config_host_path": "/etc/crio/crio.conf.d/99-nvidia.conf",
    "socket": None,
}
NO_FILES = {"config": None, "drop_in_config": None, "socket": None}
HOST = {"driver_root": "/", "driver_root_ctr_path": "/host", "dev_root": "/"}

Values = Mapping[str, object]
CASES: dict[str, tuple[tuple[Mapping[str, str], ...], tuple[Values, ...]]] = {
    "containerd": (
        (operator.CDI, operator.CONTAINERD, operator.DRIVER_CONTAINER),
        (SAME, ON, FILES, CONTAINER, {"crio_config_mode": "config"}),
    ),
    "containerd, CDI off": (
        (operator.CONTAINERD, operator.HOST_DRIVER),
        (SAME, OFF, FILES, HOST),
    ),
    "containerd, root of the host elsewhere": (
        (operator.CDI, operator.CONTAINERD, {"HOST_ROOT": "/mnt/root"}),
        (SAME, ON, FILES),
    ),
    "containerd, another runtime class": (
        (operator.CDI, operator.CONTAINERD, {"CONTAINERD_RUNTIME_CLASS": "nvidia-gpu"}),
        ({**SAME, "runtime_name": "nvidia-gpu"}, ON, FILES),
    ),
    "containerd, another install directory": (
        (operator.CDI, operator.CONTAINERD, {"ROOT": "/opt/nvidia"}),
        ({**SAME, "toolkit_install_dir": "/opt/nvidia"}, ON, FILES),
    ),
    "containerd, default on purpose": (
        (operator.CDI, operator.CONTAINERD, {"NVIDIA_RUNTIME_SET_AS_DEFAULT": "true"}),
        (SAME, {**ON, "set_as_default": True}, FILES),
    ),
    "k3s": (
        (operator.CDI, operator.K3S, operator.HOST_DRIVER),
        (SAME, ON, FILES, HOST),
    ),
    "CRI-O": (
        (operator.CDI, operator.CRIO, operator.DRIVER_CONTAINER),
        (SAME, ON, CRIO_FILES, CONTAINER, {"crio_config_mode": "config"}),
    ),
    "CRI-O, CDI off": (
        (operator.HOOK, operator.CRIO, operator.HOST_DRIVER),
        (SAME, OFF, CRIO_FILES, HOST, {"crio_config_mode": "hook"}),
    ),
    "NRI": (
        (operator.CDI, operator.NRI, operator.NRI_CONTAINERD, operator.HOST_DRIVER),
        ({**SAME, "no_runtime_config": True}, ON, NO_FILES, HOST),
    ),
    "NRI, as before v26.7": (
        (operator.CDI, operator.NRI, operator.CONTAINERD),
        ({**SAME, "no_runtime_config": True}, ON, FILES),
    ),
    "a host driver, and where is not said": (
        (operator.CDI, operator.CONTAINERD, {"IS_HOST_DRIVER": "true"}),
        (SAME, {"driver_root": "/", "driver_root_ctr_path": None}),
    ),
    "a host driver, and somewhere else": (
        ({"IS_HOST_DRIVER": "true", "NVIDIA_DRIVER_ROOT": "/opt/driver"},),
        ({"driver_root": "/opt/driver"},),
    ),
    "no host driver": (
        ({"IS_HOST_DRIVER": "false"},),
        ({"driver_root": None},),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_environment_of_each_runtime_is_understood(case: str) -> None:
    """Each runtime, with CDI and without."""
    given, parts = CASES[case]
    found = settings(*given)
    wanted = {name: value for part in parts for name, value in part.items()}
    assert {name: getattr(found, name) for name in wanted} == wanted


QUIET = [name for name in CASES if name not in ("k3s", "NRI", "NRI, as before v26.7")]


@pytest.mark.parametrize("case", QUIET)
def test_usual_environment_needs_no_word(case: str) -> None:
    """All that the operator sends by itself is acted on, or is nothing to an ordinary pod."""
    assert settings(*CASES[case][0]).warnings == ()


@pytest.mark.parametrize("case", ["NRI", "NRI, as before v26.7"])
def test_plugin_is_not_served(case: str) -> None:
    """Once for the mode, and by name for each of its options."""
    found = settings(*CASES[case][0])
    told, *names = found.warnings
    assert told.startswith("ENABLE_NRI_PLUGIN: the runtime's configuration is left alone")
    assert "nvidia.cdi.k8s.io/" in told
    assert found.ignored == ("NRI_SOCKET", "NRI_NAMESPACE")
    assert [text.split()[0] for text in names] == ["NRI_SOCKET", "NRI_NAMESPACE"]
    assert found.origins["no_runtime_config"] == "ENABLE_NRI_PLUGIN"


def test_plugin_is_passed_over_in_one_run() -> None:
    """NVIDIA's installer passes over the plugin then, and configures the runtime."""
    found = settings(operator.CDI, operator.NRI, operator.CONTAINERD, {"NO_DAEMON": "true"})
    assert not found.no_runtime_config
    assert found.warnings[0].startswith("ENABLE_NRI_PLUGIN is ignored with --no-daemon")


def test_options_that_nothing_acts_on_are_named() -> None:
    """Each by the name under which it was given."""
    env = {"CONTAINERD_USE_LEGACY_CONFIG": "true", "CONTAINERD_RUNTIME_CONFIG_OVERRIDE": "{}"}
    found = settings(operator.CDI, operator.CONTAINERD, env)
    assert set(found.ignored) == set(env)
    for name in env:
        assert f"{name} is accepted, but has no effect in this version" in found.warnings


def test_default_without_effect_is_named() -> None:
    """gpu-operator's own variable counts first: whoever sets the other one has to hear of it."""
    (told,) = settings(operator.CDI, operator.K3S).warnings
    assert told == (
        "CONTAINERD_SET_AS_DEFAULT=true is ignored: NVIDIA_RUNTIME_SET_AS_DEFAULT=false is set, "
        "too, and has precedence; set NVIDIA_RUNTIME_SET_AS_DEFAULT instead"
    )


@pytest.mark.parametrize("word", ["false", "0", "F", ""])
def test_default_that_agrees_is_accepted_in_any_spelling(word: str) -> None:
    """In whatever spelling."""
    assert settings(operator.CDI, {"CONTAINERD_SET_AS_DEFAULT": word}).warnings == ()


def test_default_by_its_second_name_is_obeyed() -> None:
    """With CDI off the operator sends none, and k3s's example is obeyed."""
    found = settings(operator.K3S)
    assert (found.set_as_default, found.warnings) == (True, ())


def test_nonsense_without_effect_is_named() -> None:
    """Upstream never parses it either."""
    (told,) = settings(operator.CDI, {"CONTAINERD_SET_AS_DEFAULT": "perhaps"}).warnings
    assert told.startswith("CONTAINERD_SET_AS_DEFAULT=perhaps is ignored")


@pytest.mark.parametrize(
    ("given", "env", "path"),
    [
        (
            {},
            {"TOOLKIT_PID_FILE": "/a/toolkit.pid", "PID_FILE": "/b/toolkit.pid"},
            "/a/toolkit.pid",
        ),
        ({}, {"TOOLKIT_PID_FILE": "", "PID_FILE": "/b/toolkit.pid"}, None),
        ({"pid_file": "/c/toolkit.pid"}, {}, "/c/toolkit.pid"),
        ({"pid_file": ""}, {"TOOLKIT_PID_FILE": "/a/toolkit.pid"}, None),
    ],
)
@pytest.mark.parametrize("entry", ["nvidia-toolkit", "toolkit-agent"])
def test_empty_pid_file_is_none(
    entry: Entry, given: dict[str, str], env: dict[str, str], path: str | None
) -> None:
    """An empty one is none."""
    assert resolve(given, env, entry).pid_file == path


@pytest.mark.parametrize(("entry", "path"), [("nvidia-toolkit", PID_FILE), ("toolkit-agent", None)])
def test_pid_file_has_a_default_under_upstreams_name_only(entry: Entry, path: str | None) -> None:
    """Under upstream's name it has upstream's place; under ours it is nobody's business."""
    found = resolve({}, {}, entry)
    assert (found.pid_file, found.origins["pid_file"]) == (path, "default")


@pytest.mark.parametrize("path", ["/run/x.pid", "/run/toolkit.pid.old", "/run/toolkit.pid/"])
def test_pid_file_has_its_name(path: str) -> None:
    """As upstream's installer insists."""
    with pytest.raises(UsageError, match=r"^cannot use .*: its name has to be toolkit"):
        resolve({"pid_file": path}, {}, "nvidia-toolkit")


def test_variable_host_root_is_ignored() -> None:
    """HOST_ROOT is a name on the host, and no business of ours."""
    assert settings(operator.HOST_ROOT).host_root is None
    assert settings(operator.HOST_ROOT, {"HOST_ROOT_MOUNT": "/h"}).host_root == "/h"
