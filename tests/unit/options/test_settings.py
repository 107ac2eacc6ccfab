"""Every option and variable of gpu-operator and of upstream's installer is read, in their order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent import cli
from agent.errors import UsageError
from agent.options.settings import Entry, Settings, resolve
from agent.options.table import OPTIONS

_CRT = "--nvidia-container-runtime"
_ENV = "NVIDIA_CONTAINER_RUNTIME_"

# One line per option: its flag and its variables, the first one that is set wins. As in
# nvidia-container-toolkit's installer v1.20, and in `nvidia-ctk cdi generate` what is about specs;
# ours are those with AGENT_, and --status-dir.
TABLE = f"""
--cdi-enabled CDI_ENABLED ENABLE_CDI
--enable-cdi-in-runtime RUNTIME_ENABLE_CDI
--runtime RUNTIME
--config RUNTIME_CONFIG CONTAINERD_CONFIG CRIO_CONFIG DOCKER_CONFIG
--drop-in-config RUNTIME_DROP_IN_CONFIG
--drop-in-config-host-path RUNTIME_DROP_IN_CONFIG_HOST_PATH
--config-source RUNTIME_CONFIG_SOURCES RUNTIME_CONFIG_SOURCE
--executable-path RUNTIME_EXECUTABLE_PATH
--socket RUNTIME_SOCKET CONTAINERD_SOCKET DOCKER_SOCKET
--restart-mode RUNTIME_RESTART_MODE CONTAINERD_RESTART_MODE
--host-root HOST_ROOT_MOUNT
--runtime-name NVIDIA_RUNTIME_NAME CONTAINERD_RUNTIME_CLASS DOCKER_RUNTIME_NAME
--set-as-default NVIDIA_RUNTIME_SET_AS_DEFAULT CONTAINERD_SET_AS_DEFAULT DOCKER_SET_AS_DEFAULT
{_CRT}.mode {_ENV}MODE
{_CRT}.modes.cdi.default-kind {_ENV}MODES_CDI_DEFAULT_KIND
{_CRT}.modes.cdi.annotation-prefixes {_ENV}MODES_CDI_ANNOTATION_PREFIXES
{_CRT}.runtimes {_ENV}RUNTIMES
{_CRT}.debug {_ENV}DEBUG
{_CRT}.log-level {_ENV}LOG_LEVEL
--nvidia-container-cli.debug NVIDIA_CONTAINER_CLI_DEBUG
{_CRT}-hook.skip-mode-detection {_ENV}HOOK_SKIP_MODE_DETECTION
--accept-nvidia-visible-devices-envvar-when-unprivileged \
 ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED
--accept-nvidia-visible-devices-as-volume-mounts ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS
--driver-root NVIDIA_DRIVER_ROOT DRIVER_ROOT
--driver-root-ctr-path DRIVER_ROOT_CTR_PATH
--dev-root NVIDIA_DEV_ROOT DEV_ROOT
--dev-root-ctr-path DEV_ROOT_CTR_PATH
--is-host-driver IS_HOST_DRIVER
--toolkit-install-dir TOOLKIT_INSTALL_DIR ROOT
--pid-file TOOLKIT_PID_FILE PID_FILE
--cdi-output-dir CDI_OUTPUT_DIR
--cdi-kind CDI_KIND
--create-device-nodes CREATE_DEVICE_NODES
--device-name-strategy NVIDIA_CTK_CDI_GENERATE_DEVICE_NAME_STRATEGIES
--disable-hook NVIDIA_CTK_CDI_GENERATE_DISABLED_HOOKS
--enable-hook NVIDIA_CTK_CDI_GENERATE_ENABLED_HOOKS
--ldconfig-path NVIDIA_CTK_CDI_GENERATE_LDCONFIG_PATH
--library-search-path NVIDIA_CTK_CDI_GENERATE_LIBRARY_SEARCH_PATHS
--config-search-path NVIDIA_CTK_CDI_GENERATE_CONFIG_SEARCH_PATHS
--csv.file NVIDIA_CTK_CDI_GENERATE_CSV_FILES
--csv.ignore-pattern NVIDIA_CTK_CDI_GENERATE_CSV_IGNORE_PATTERNS
--csv.compat-container-root NVIDIA_CTK_CDI_GENERATE_CSV_CONTAINER_COMPAT_ROOT
--config-mode CRIO_CONFIG_MODE
--hooks-dir CRIO_HOOKS_DIR
--hook-filename CRIO_HOOK_FILENAME
--runtime-type CONTAINERD_RUNTIME_TYPE
--use-legacy-config CONTAINERD_USE_LEGACY_CONFIG
--runtime-config-override RUNTIME_CONFIG_OVERRIDE CONTAINERD_RUNTIME_CONFIG_OVERRIDE
--no-daemon NO_DAEMON
--no-runtime-config NO_RUNTIME_CONFIG
--debug TOOLKIT_DEBUG
--enable-nri-plugin ENABLE_NRI_PLUGIN
--nri-socket NRI_SOCKET
--nri-namespace NRI_NAMESPACE
--nri-plugin-index NRI_PLUGIN_INDEX
--nri-management-cdi-device-namespaces NRI_MANAGEMENT_CDI_DEVICE_NAMESPACES
--opt-in-features NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES
--toolkit-source-root TOOLKIT_SOURCE_ROOT
--toolkit-package-type TOOLKIT_PACKAGE_TYPE
--status-dir OUTPUT_DIR
--state-dir AGENT_STATE_DIR
--proof-timeout AGENT_PROOF_TIMEOUT
--verify AGENT_VERIFY
--interval AGENT_INTERVAL
--restart-spread AGENT_RESTART_SPREAD
--node-name NODE_NAME
--ready-file AGENT_READY_FILE
--native-cdi AGENT_NATIVE_CDI
--device-list-strategy AGENT_DEVICE_LIST_STRATEGY
--kubelet-version KUBELET_VERSION
--ignore-errors
"""
EXPECTED = {
    words[0]: tuple(words[1:])
    for line in TABLE.replace("\\\n", "").splitlines()
    if (words := line.split())
}
KNOWN = {flag: option for option in OPTIONS for flag in option.all_flags}

# A value that an option takes, by kind.
GOOD = {
    "text": "some-text", "path": "/some/path", "file": "x", "bool": "true", "list": "envvar",
    "duration": "5m", "version": "1.30",
}  # fmt: skip


# Those that take less than any of their kind.
PARTICULAR = {
    "pid_file": "/some/toolkit.pid",
    "annotation_prefixes": "example.com/", "cdi_kind": "example.com/gpu",
    "cdi_default_kind": "example.com/gpu", "crio_hook_filename": "hook.json",
    "runtime_log_level": "debug", "create_device_nodes": "control",
    "device_name_strategies": "uuid", "disabled_hooks": "update-ldcache",
    "enabled_hooks": "chmod", "csv_files": "/some.csv", "library_search_paths": "/some",
    "config_search_paths": "/some",
}  # fmt: skip


def good(flag: str) -> str:
    """Return a value that this option takes."""
    option = KNOWN[flag]
    if option.name in PARTICULAR:
        return PARTICULAR[option.name]
    return option.choices[0] if option.choices else GOOD[option.kind]


def with_env(env: dict[str, str], entry: Entry = "toolkit-agent") -> Settings:
    """Return settings of an environment alone."""
    return resolve({}, env, entry)


@pytest.mark.parametrize("flag", EXPECTED)
def test_option_has_its_variables_in_that_order(flag: str) -> None:
    """The operator's DaemonSet sets them; another order would give another value."""
    assert KNOWN[flag].env == EXPECTED[flag]


def test_there_are_no_other_variables() -> None:
    """One that is in no table is in nobody's documentation."""
    known = {name for option in OPTIONS for name in option.env}
    assert known == {name for names in EXPECTED.values() for name in names}
    assert len(known) == sum(len(option.env) for option in OPTIONS)


@pytest.mark.parametrize(
    "alias",
    ["--enable-cdi", "--root", "--nvidia-runtime-name", "--runtime-class", "--nvidia-driver-root",
     "--nvidia-container-runtime-mode", "-n", "-p", "-r"],
)  # fmt: skip
def test_older_names_of_flags_are_taken(alias: str) -> None:
    """Upstream's aliases are in people's manifests."""
    assert alias in KNOWN


@pytest.mark.parametrize("flag", EXPECTED)
def test_option_takes_a_value_from_each_of_its_variables(flag: str) -> None:
    """And says which of them it was; one that nothing acts on yet is listed as such."""
    option = KNOWN[flag]
    for name in EXPECTED[flag]:
        settings = with_env({"ENABLE_NRI_PLUGIN": "true", name: good(flag)})
        assert settings.origins[option.name] == name
        assert (name in settings.ignored) == (not option.supported)
        if option.supported:
            assert getattr(settings, option.name) is not None


def test_first_variable_that_is_set_wins() -> None:
    """Also against a later one with another value."""
    env = {
        "CONTAINERD_CONFIG": "/second", "RUNTIME_CONFIG": "/first", "DOCKER_CONFIG": "/last",
        "CONTAINERD_SET_AS_DEFAULT": "true", "NVIDIA_RUNTIME_SET_AS_DEFAULT": "false",
    }  # fmt: skip
    settings = with_env(env)
    assert (settings.config, settings.set_as_default) == ("/first", False)
    assert settings.origins["config"] == "RUNTIME_CONFIG"


def test_command_line_wins_over_the_environment() -> None:
    """Whoever types a flag means it."""
    settings = resolve({"config": "/flag"}, {"RUNTIME_CONFIG": "/env"}, "toolkit-agent")
    assert (settings.config, settings.origins["config"]) == ("/flag", "command line")


@pytest.mark.parametrize("flag", EXPECTED)
@pytest.mark.parametrize("value", ["", "  "])
def test_empty_variable_is_not_an_error(flag: str, value: str) -> None:
    """A chart renders `value: ""` for what nobody set; a node must not fail on it."""
    option = KNOWN[flag]
    settings = with_env(dict.fromkeys(EXPECTED[flag], value))
    if option.supported and not option.keep_empty:
        assert settings.origins[option.name] == "default"


def test_empty_variable_leaves_the_word_to_the_next() -> None:
    """It is as if it were not set."""
    settings = with_env({"RUNTIME_CONFIG": "", "CONTAINERD_CONFIG": "/second"})
    assert settings.config == "/second"


def test_empty_cdi_output_dir_means_none() -> None:
    """Its default is a directory, so that empty has to say something of its own."""
    assert with_env({}).cdi_output_dir == "/var/run/cdi"
    assert with_env({"CDI_OUTPUT_DIR": ""}).cdi_output_dir is None
    assert resolve({"cdi_output_dir": ""}, {}, "toolkit-agent").cdi_output_dir is None


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True", " true "])
def test_true_is_read_in_each_of_gos_spellings(text: str) -> None:
    """As strconv.ParseBool; MicroK8s sends 1 and 0."""
    assert with_env({"RUNTIME_ENABLE_CDI": text}).enable_cdi_in_runtime is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false_is_read_in_each_of_gos_spellings(text: str) -> None:
    """As strconv.ParseBool."""
    assert with_env({"RUNTIME_ENABLE_CDI": text}).enable_cdi_in_runtime is False


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("cdi-cri", ("cdi-cri",)),
        (" cdi-annotations , cdi-cri ", ("cdi-annotations", "cdi-cri")),
        ("envvar,,volume-mounts,", ("envvar", "volume-mounts")),
    ],
)
def test_list_is_trimmed(text: str, items: tuple[str, ...]) -> None:
    """A space after a comma is no part of a name."""
    assert with_env({"AGENT_DEVICE_LIST_STRATEGY": text}).device_list_strategy == items


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("300", 300), ("300s", 300), ("5m", 300), ("1h", 3600), ("1h2m3.5s", 3723.5)],
)
def test_durations_are_read_as_go_writes_them(text: str, seconds: float) -> None:
    """As Go writes them, and plain numbers."""
    assert with_env({"AGENT_RESTART_SPREAD": text}).restart_spread == seconds


@pytest.mark.parametrize(
    "text", ["-1", "5x", "m", "5m5m", "s5", "25h", "1e3", "5 m", "\u0665", "nan"]
)
def test_senseless_duration_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="AGENT_RESTART_SPREAD"):
        with_env({"AGENT_RESTART_SPREAD": text})


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("2.5", 2.5), ("90s", 90.0)])
def test_seconds_are_read_with_and_without_unit(text: str, seconds: float) -> None:
    """Both are written in manifests."""
    assert with_env({"AGENT_PROOF_TIMEOUT": text}).proof_timeout == seconds


@pytest.mark.parametrize(
    ("text", "version"), [("1.27", (1, 27)), ("v1.31.2-gke.1", (1, 31)), ("v1.28+", (1, 28))]
)
def test_kubelet_version_is_read_as_nodes_spell_it(text: str, version: tuple[int, int]) -> None:
    """With a v, a patch and a vendor's suffix."""
    assert with_env({"KUBELET_VERSION": text}).kubelet_version == version


def test_socket_may_be_an_address() -> None:
    """crictl and the kubelet write unix:// before it."""
    settings = with_env({"RUNTIME_SOCKET": "unix:///run/containerd/containerd.sock"})
    assert settings.socket == "/run/containerd/containerd.sock"


BAD = [
    ("CDI_ENABLED", "yes"),
    ("CDI_ENABLED", "tRUE"),
    ("NO_DAEMON", "2"),
    ("RUNTIME", "podman"),
    ("RUNTIME", "docker"),
    ("RUNTIME_RESTART_MODE", "reload"),
    ("AGENT_NATIVE_CDI", "maybe"),
    ("CRIO_CONFIG_MODE", "both"),
    ("NVIDIA_CONTAINER_RUNTIME_MODE", "native"),
    ("RUNTIME_CONFIG", "relative/config.toml"),
    ("RUNTIME_SOCKET", "tcp://127.0.0.1:80"),
    ("AGENT_PROOF_TIMEOUT", "soon"),
    ("AGENT_PROOF_TIMEOUT", "0"),
    ("AGENT_PROOF_TIMEOUT", "-1"),
    ("AGENT_PROOF_TIMEOUT", "nan"),
    ("AGENT_PROOF_TIMEOUT", "inf"),
    ("KUBELET_VERSION", "new"),
    ("NVIDIA_RUNTIME_NAME", "nvidia runtime"),
    ("NVIDIA_RUNTIME_NAME", "-nvidia"),
    ("NVIDIA_RUNTIME_NAME", "n" * 64),
    ("NVIDIA_RUNTIME_NAME", 'n"\n[plugins'),
    ("AGENT_DEVICE_LIST_STRATEGY", "cdi"),
    ("AGENT_DEVICE_LIST_STRATEGY", ","),
    ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES", "cdi.k8s.io"),
    ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES", 'a"b/'),
    ("OUTPUT_DIR", "/run/a\nb"),
    ("ROOT", "/opt/a\0b"),
    ("IS_HOST_DRIVER", "maybe"),
    ("TOOLKIT_PID_FILE", "toolkit.pid"),
    ("TOOLKIT_PID_FILE", "/run/other.pid"),
    ("PID_FILE", "/run/toolkit.pid/"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_value_that_cannot_be_used_is_refused(name: str, value: str) -> None:
    """Before anything is touched, in a sentence that starts as all of them do."""
    with pytest.raises(UsageError, match=r"^cannot ") as caught:
        with_env({name: value})
    assert caught.value.exit_code == 2


def test_refusal_names_where_the_value_came_from() -> None:
    """A person looks for that very word in a manifest or on a command line."""
    with pytest.raises(UsageError, match=r"^cannot use ENABLE_CDI=yes: "):
        with_env({"ENABLE_CDI": "yes"})
    with pytest.raises(UsageError, match=r"^cannot use --cdi-enabled=yes: "):
        resolve({"cdi_enabled": "yes"}, {"ENABLE_CDI": "true"}, "toolkit-agent")


DEFAULTS = {
    "runtime": "auto", "socket": None, "config": None, "drop_in_config": None,
    "drop_in_config_host_path": None, "executable_path": None, "restart_mode": "auto",
    "host_root": None, "runtime_name": "nvidia", "set_as_default": None,
    "runtime_type": "io.containerd.runc.v2", "enable_cdi_in_runtime": None, "native_cdi": "auto",
    "mode": None, "annotation_prefixes": None, "device_list_strategy": None,
    "kubelet_version": None, "cdi_output_dir": "/var/run/cdi", "crio_config_mode": None,
    "crio_hooks_dir": "/usr/share/containers/oci/hooks.d",
    "crio_hook_filename": "oci-nvidia-hook.json",
    "toolkit_install_dir": "/usr/local/nvidia", "status_dir": "/run/nvidia/validations",
    "state_dir": "/var/lib/toolkit-agent", "proof_timeout": 60.0, "no_runtime_config": False,
    "no_daemon": False, "debug": False, "ignored": (), "toolkit_source_root": None,
    "toolkit_package_type": "auto", "create_device_nodes": ("control",),
    "cdi_default_kind": "nvidia.com/gpu", "low_level_runtimes": None,
    "runtime_debug": "/dev/null", "runtime_log_level": "info", "cli_debug": "",
    "hook_skip_mode_detection": True, "accept_envvar": None, "accept_mounts": False,
    "opt_in_features": None,
}  # fmt: skip


@pytest.mark.parametrize(("entry", "cdi"), [("toolkit-agent", True), ("nvidia-toolkit", False)])
def test_defaults_differ_by_program_name_in_cdi_only(entry: Entry, cdi: bool) -> None:
    """CDI is on under our own name and off under upstream's; the rest is the same."""
    settings = with_env({"PATH": "/bin", "HOME": "/root"}, entry)
    found = {name: getattr(settings, name) for name in DEFAULTS}
    assert found == DEFAULTS
    assert (settings.cdi_enabled, settings.may_enable_cdi) == (cdi, cdi)
    assert set(settings.origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("env", "may"),
    [
        ({}, True),
        ({"CDI_ENABLED": "false"}, False),
        ({"RUNTIME_ENABLE_CDI": "false"}, False),
        ({"CDI_ENABLED": "false", "RUNTIME_ENABLE_CDI": "true"}, True),
    ],
)
def test_switch_may_be_set_as_asked_or_where_cdi_is_wanted(env: dict[str, str], may: bool) -> None:
    """RUNTIME_ENABLE_CDI follows CDI_ENABLED where it is not set."""
    assert with_env(env).may_enable_cdi is may


@pytest.mark.parametrize(
    ("entry", "given", "negotiable"),
    [
        ("nvidia-toolkit", None, True),
        ("nvidia-toolkit", "false", False),
        ("toolkit-agent", None, False),
        ("toolkit-agent", "false", False),
    ],
)
def test_default_is_negotiable_only_from_the_operator(
    entry: Entry, given: str | None, negotiable: bool
) -> None:
    """It always sends false along; a person who types it means it."""
    env = {"NVIDIA_RUNTIME_SET_AS_DEFAULT": "false"}
    settings = resolve({"set_as_default": given}, env, entry)
    assert settings.default_is_negotiable is negotiable
    assert settings.set_as_default is False


def parsed(*words: str) -> dict[str, Any]:
    """Return what the command line makes of some words."""
    return cli.cli.commands["plan"].make_context("plan", list(words)).params


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--set-as-default"], True),
        (["--set-as-default", "--debug"], True),
        (["--set-as-default=true"], True),
        (["--set-as-default=false"], False),
        (["--set-as-default=0"], False),
        (["--set-as-default", "false"], False),
        ([], None),
    ],
)
def test_boolean_flag_is_written_as_upstream_s(words: list[str], value: bool | None) -> None:
    """Alone it means true; the next word counts only where it is a boolean."""
    params = parsed(*words)
    del params["output"]
    assert resolve(params, {}, "toolkit-agent").set_as_default is value


def test_every_flag_reaches_the_settings() -> None:
    """One that click knows and the table does not would be lost without a word."""
    words = [f"{flag}={good(flag)}" for flag in EXPECTED]
    params = parsed(*words)
    del params["output"]
    settings = resolve(params, {}, "toolkit-agent")
    assert set(settings.origins.values()) == {"command line"}
    assert len(settings.ignored) == sum(not option.supported for option in OPTIONS)


def test_origins_can_be_shown() -> None:
    """They are strings by the option's name, for a person who asks why."""
    origins = with_env({"ROOT": "/opt/nvidia"}).origins
    assert json.loads(json.dumps(dict(origins)))["toolkit_install_dir"] == "ROOT"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CREATE_DEVICE_NODES", "all", "give one of control, none"),
        ("NVIDIA_CONTAINER_RUNTIME_RUNTIMES", "bin/runc", "give a name or an absolute path"),
        ("NVIDIA_CONTAINER_RUNTIME_RUNTIMES", "runc,a\x1bb", "give a name or an absolute path"),
        ("NVIDIA_CONTAINER_RUNTIME_RUNTIMES", "/opt/nvidia-container-runtime", "itself for ever"),
        ("NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL", "loud", "give one of panic"),
        ("NVIDIA_CONTAINER_RUNTIME_DEBUG", "/a\x1b/b", "give a plain path"),
        ("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND", "gpu", "give VENDOR/CLASS"),
        ("NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES", "a b", "give letters, digits and dashes"),
    ],
)
def test_nothing_odd_gets_into_the_toolkit_s_files(name: str, value: str, words: str) -> None:
    """They are read by programs of root's, one of them a shell."""
    with pytest.raises(UsageError, match=f"^cannot use {name}=.*{words}") as caught:
        with_env({name: value})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("value", "nodes"),
    [("", ()), ("none", ("none",)), ("control", ("control",)), (None, ("control",))],
)
def test_device_nodes_can_be_left_to_others(value: str | None, nodes: tuple[str, ...]) -> None:
    env = {} if value is None else {"CREATE_DEVICE_NODES": value}
    assert with_env(env).create_device_nodes == nodes


@pytest.mark.parametrize("name", ["TOOLKIT_INSTALL_DIR", "RUNTIME_CONFIG", "CDI_OUTPUT_DIR"])
def test_byte_that_is_no_text_is_a_usage_error(name: str) -> None:
    """It could not be written into a file that a runtime reads."""
    with pytest.raises(UsageError, match=f"cannot use {name}: it is not UTF-8"):
        resolve({}, {name: "/opt/\udcff"}, "toolkit-agent")


def test_colon_in_the_toolkit_directory_is_a_usage_error() -> None:
    """The wrappers put it into PATH."""
    with pytest.raises(UsageError, match="cannot use TOOLKIT_INSTALL_DIR=/a:b: "):
        resolve({}, {"TOOLKIT_INSTALL_DIR": "/a:b"}, "toolkit-agent")
