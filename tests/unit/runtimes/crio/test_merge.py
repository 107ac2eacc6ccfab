"""Pure rules give CRI-O's effective configuration, what is desired, and what is not proven."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.cri.client import Answer
from agent.decide import Question, decide
from agent.errors import Refused
from agent.host.files import FileState
from agent.host.paths import HostPath
from agent.runtimes import registry
from agent.runtimes.config_file import ConfigFile, check_shape, owner
from agent.runtimes.crio import desired_state, merge
from agent.runtimes.crio.merge import (
    Overrides,
    Setting,
    effective,
    explicit_defaults,
    hooks_dirs,
    merged,
    rules,
    shown_section,
    spec_dirs,
)
from agent.runtimes.desired_state import Desired, Effective
from agent.toolkit.programs import Binary
from tests.unit.support.edit_request import edit_request

CAPTURE = Path(__file__).resolve().parents[3] / "data/captures/cri-o-1.37"
STATUS = json.loads((CAPTURE / "status-info-config.json").read_text())
DUMP = tomllib.loads((CAPTURE / "http-config.toml").read_text().partition("---stderr")[0])
TODAY = rules((1, 37, 0))
unproven = registry.adapter("crio").unproven
NATIVE = decide(Question(runtime="cri-o", version="1.37.0"))
OFF = decide(Question(cdi=False, runtime="cri-o", version="1.37.0", crio_mode="config"))
HOOK = decide(Question(cdi=False, runtime="cri-o", version="1.37.0"))
BINARIES = (Binary("nvidia", "/t/nvidia-container-runtime"),)


def file(text: str, name: str = "/etc/crio/crio.conf") -> ConfigFile:
    """Return a file as it is read."""
    return ConfigFile(name, HostPath(name, name), FileState(text.encode()), tomllib.loads(text))


def files(*texts: str) -> tuple[ConfigFile, ...]:
    """Return the root file and drop-ins."""
    names = ["/etc/crio/crio.conf", *(f"/etc/crio/crio.conf.d/{n}" for n in range(1, len(texts)))]
    return tuple(file(text, name) for text, name in zip(texts, names, strict=True))


def cri(*texts: str) -> Effective:
    """Return what is in force."""
    return effective(TODAY, files(*texts))


RUNC = '[crio.runtime.runtimes.runc]\nruntime_path = "/usr/bin/runc"\nruntime_root = "/run/runc"\n'
DEFAULT = '[crio.runtime]\ndefault_runtime = "{}"\n'


@pytest.mark.parametrize(
    ("texts", "default"),
    [
        (("",), "crun"),
        ((DEFAULT.format("runc") + RUNC,), "runc"),
        ((DEFAULT.format("a"), DEFAULT.format("b")), "b"),
        ((DEFAULT.format("a"), "", "[crio.image]\n"), "a"),
        ((DEFAULT.format("a"), DEFAULT.format("")), "crun"),
    ],
)
def test_default_is_that_of_the_last_file(texts: tuple[str, ...], default: str) -> None:
    """The last file that says one; none is the built-in."""
    assert cri(*texts).default == default


@pytest.mark.parametrize(
    ("version", "default"),
    [("1.23.5", "runc"), ("1.30.14", "runc"), ("1.31.0", "crun"), ("1.37.0", "crun")],
)
def test_built_in_default_changes_with_1_31(version: str, default: str) -> None:
    """CRI-O changed it in 1.31."""
    numbers = tuple(int(n) for n in version.split("."))
    found = rules((numbers[0], numbers[1], numbers[2]))
    assert found.default == default
    assert effective(found, files("")).table(default)["runtime_root"] == f"/run/{default}"


def test_handlers_of_all_files_are_there() -> None:
    """A map is merged by its keys, an array is replaced."""
    one = RUNC + 'allowed_annotations = ["a", "b"]\n'
    two = '[crio.runtime.runtimes.runc]\nallowed_annotations = ["c"]\n'
    other = '[crio.runtime.runtimes.kata]\nruntime_type = "vm"\n'
    for by_key in (False, True):
        found = effective(replace(TODAY, by_key=by_key), files(one, other, two))
        assert set(found.runtimes) == {"runc", "kata", "crun"}
        assert found.table("runc")["allowed_annotations"] == ["c"]
        assert ("runtime_path" in found.table("runc")) is by_key


def test_running_daemon_shows_whether_keys_are_kept() -> None:
    """Which of the two its decoder does cannot be read anywhere."""
    texts = files(RUNC, '[crio.runtime.runtimes.runc]\nmonitor_env = ["A=b"]\n')
    kept = {"runtimes": {"runc": {"runtime_root": "/run/runc", "monitor_env": ["A=b"]}}}
    lost = {"runtimes": {"runc": {"runtime_root": "", "monitor_env": ["A=b"]}}}
    assert rules((1, 37, 0), texts, kept).by_key
    assert not rules((1, 37, 0), texts, lost).by_key
    assert not rules((1, 37, 0), texts, None).by_key
    assert not rules((1, 37, 0), files(RUNC), kept).by_key


def test_built_in_handler_is_the_daemons_own_word() -> None:
    """What it fills in by itself is not copied: a copy would only go stale."""
    found = rules((1, 37, 0), files(RUNC), shown_section(STATUS, None))
    assert found.handler == {
        "runtime_type": "oci",
        "runtime_root": "/run/crun",
        "allowed_annotations": ["io.containers.trace-syscall", "devices.crio.io"],
        "monitor_env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "container_min_memory": "500KiB",
    }


def test_status_and_http_give_the_same_configuration() -> None:
    """Status (1.33 and later) and `GET /config`, both captured."""
    status, dump = shown_section(STATUS, None), shown_section(None, DUMP)
    assert status is not None
    assert dump is not None
    for key in ("default_runtime", "cdi_spec_dirs", "hooks_dir"):
        assert status[key] == dump[key]
    for name, table in dump["runtimes"].items():
        for key, value in table.items():
            assert status["runtimes"][name][key] == value
    assert shown_section({"sandboxImage": "p"}, None) is None


@pytest.mark.parametrize(
    ("config", "dump", "sources"),
    [
        (STATUS, None, [("cri-status", True)]),
        ({"sandboxImage": "p"}, DUMP, [("cri-status", False), ("config-dump", True)]),
        ({"sandboxImage": "p"}, {"crio": {"runtime": {}}}, [("cri-status", False),
                                                            ("config-dump", False)]),
        (None, None, [("cri-status", False)]),
    ],
)  # fmt: skip
def test_best_evidence_comes_first(config: Any, dump: Any, sources: list[tuple[str, bool]]) -> None:
    """Best first; an effective configuration without directories knows no CDI."""
    found = list(
        registry.adapter("crio").evidence(Answer("cri-o", "1.37.0", True, config, (), dump))
    )
    assert [(item.source, item.seen) for item in found] == sources


def test_owner_is_the_last_file_with_the_key() -> None:
    """It is the one to be named."""
    found = files(RUNC, DEFAULT.format("a"), RUNC)
    assert owner(found, merge.DEFAULT) is found[1]
    assert owner(found, (*merge.RUNTIMES, "runc")) is found[2]
    assert owner(found, ("crio", "image")) is None
    assert merged(found, by_key=False)["crio"]["runtime"]["default_runtime"] == "a"


@pytest.mark.parametrize(
    "text",
    [
        "crio = 1",
        "[crio]\nruntime = []",
        "[crio.runtime]\nruntimes = 3",
        "[crio.runtime]\ndefault_runtime = true",
        "[crio.runtime]\nhooks_dir = [1]",
        "[crio.runtime]\ncdi_spec_dirs = '/etc/cdi'",
        "[crio.runtime.runtimes]\nrunc = 'runc'",
        "[crio.runtime.runtimes.runc]\nruntime_path = []",
    ],
)
def test_wrong_types_are_refused(text: str) -> None:
    """CRI-O would not start on them."""
    with pytest.raises(Refused, match=r"^cannot use /etc/crio/crio\.conf: crio.* is not a"):
        check_shape(file(text), merge.SHAPE)


def derived(decision: Any, *texts: str, remembered: str | None = None) -> Desired:
    """Return the wish on a node with these files."""
    return desired_state.derive_desired(
        cri(*texts),
        edit_request(decision, BINARIES, remembered=remembered),
        desired_state.PresentState(),
    )


def test_wish_inherits_all_but_what_is_the_handlers_own() -> None:
    """From the default; a VM's runtime is no base."""
    text = DEFAULT.format("site") + (
        '[crio.runtime.runtimes.site]\nruntime_path = "/s"\nruntime_type = "pod"\n'
        'inherit_default_runtime = true\nmonitor_path = "/m"\nruntime_config_path = "/c"\n'
        'default_annotations = {a = "b"}\n'
    )
    assert derived(NATIVE, text).handlers["nvidia"] == {
        "runtime_path": "/t/nvidia-container-runtime",
        "runtime_type": "oci",
        "monitor_path": "/m",
        "default_annotations": {"a": "b"},
    }
    kata = DEFAULT.format("kata") + '[crio.runtime.runtimes.kata]\nruntime_type = "vm"\n' + RUNC
    assert derived(NATIVE, kata).handlers["nvidia"]["runtime_root"] == "/run/runc"
    assert derived(NATIVE, kata).default is None


def test_default_is_desired_where_the_row_says_so() -> None:
    """Ours where the row says so; somebody's ours is taken back; a hook has no handlers."""
    theirs = DEFAULT.format("nvidia") + (
        '[crio.runtime.runtimes.nvidia]\nruntime_path = "/usr/bin/nvidia-container-runtime"\n'
        "privileged_without_host_devices = true\n"
    )
    assert derived(OFF, RUNC).default == "nvidia"
    assert derived(NATIVE, RUNC).default is None
    assert derived(NATIVE, theirs).default == "crun"
    assert derived(NATIVE, theirs + RUNC).default == "runc"
    assert derived(NATIVE, theirs + RUNC, remembered="crun").default == "crun"
    assert derived(NATIVE, theirs).handlers["nvidia"]["privileged_without_host_devices"] is False
    assert derived(HOOK, RUNC) == Desired({})
    with pytest.raises(Refused, match="default_runtime is none"):
        derived(NATIVE, DEFAULT.format("none"))


def answer(handlers: tuple[str, ...] = (), **tables: Any) -> Answer:
    """Return what a running CRI-O says, with the default `crun`."""
    config = {"crio": {"DefaultRuntime": "crun", "Runtimes": {"crun": {}, **tables}}}
    return Answer("cri-o", "1.37.0", True, config, handlers)


TABLE = {"runtime_path": "/n", "runtime_type": "oci", "allowed_annotations": ["a", "b"],
         "monitor_env": ["A=b"]}  # fmt: skip
RUNNING = {"RuntimePath": "/n", "RuntimeType": "", "AllowedAnnotations": ["b", "a"],
           "MonitorEnv": None}  # fmt: skip


@pytest.mark.parametrize(
    ("desired", "said", "problems"),
    [
        (Desired({"nvidia": TABLE}), answer(nvidia=RUNNING), []),
        (Desired({"nvidia": TABLE}), answer(), ["handler nvidia is missing"]),
        (
            Desired({"nvidia": TABLE}),
            answer(("", "crun"), nvidia=RUNNING),
            ["handler nvidia is not listed"],
        ),
        (
            Desired({"nvidia": TABLE}),
            answer(nvidia={**RUNNING, "RuntimePath": "/o"}),
            ["handler nvidia: runtime_path is not as wanted"],
        ),
        (Desired({}, "nvidia"), answer(), ["the default runtime is crun, not nvidia"]),
        (Desired({}, "crun"), answer(), []),
        (
            Desired({}, absent=("nvidia",)),
            answer(nvidia=RUNNING),
            ["handler nvidia is still there"],
        ),
        (Desired({}, absent=("nvidia",)), answer(("", "crun")), []),
        (
            Desired({}),
            Answer("cri-o", "1.30.0", True, {"sandboxImage": "p"}, ("crun",)),
            ["it does not show its handlers"],
        ),
    ],
)
def test_missing_settings_are_told_in_words(
    desired: Desired, said: Answer, problems: list[str]
) -> None:
    """What is lacking, in words; what CRI-O rewrites by itself is not held against it."""
    assert unproven(desired, said) == problems


def fixed(*values: str, source: str = "--flag") -> Setting:
    """Return what a flag or a variable says."""
    return Setting(values, source)


def test_flags_and_environment_win_over_files() -> None:
    """Default, handlers and directories; an empty default is the built-in one."""
    found = files(DEFAULT.format("runc") + 'hooks_dir = ["/h"]\ncdi_spec_dirs = ["/s"]\n' + RUNC)
    told = Overrides(
        default=fixed("kata"), hooks_dirs=fixed("/a", ""), spec_dirs=fixed(""),
        runtimes=fixed("kata:/k:/run/k:vm", "runc:/r:"),
    )  # fmt: skip
    used = effective(replace(TODAY, overrides=told), found)
    assert used.default == "kata"
    assert used.table("kata") == {
        "runtime_path": "/k", "runtime_root": "/run/k", "runtime_type": "vm"
    }  # fmt: skip
    assert used.table("runc") == {"runtime_path": "/r"}
    assert (hooks_dirs(found, told), spec_dirs(found, told)) == (("/a",), ())
    none = Overrides()
    assert (hooks_dirs(found, none), spec_dirs(found, none)) == (("/h",), ("/s",))
    assert spec_dirs(files("[crio.runtime]\ncdi_spec_dirs = []\n"), none) == ()
    assert spec_dirs(files(""), none) == ("/etc/cdi", "/var/run/cdi")
    empty = replace(TODAY, overrides=Overrides(default=fixed("")))
    assert effective(empty, found).default == "crun"


def test_unknown_keys_of_a_handler_have_no_effect() -> None:
    """Typos, keys of a newer CRI-O, and what `crio config` prints behind the last handler: CRI-O
    takes such files and never shows them. A key that it shows is one that it knows."""
    odd = 'hostnetwork_disable_selinux = true\nruntime_rot = "/x"\nseccomp_profile = "/p"\n'
    texts = files(DEFAULT.format("runc") + RUNC + odd)
    known = {"runtime_path": "/usr/bin/runc", "runtime_root": "/run/runc"}
    old, new = rules((1, 30, 14), texts), rules((1, 37, 0), texts)
    assert effective(old, texts).table("runc") == known
    assert effective(new, texts).table("runc") == {**known, "seccomp_profile": "/p"}
    running = {"runtimes": {"runc": {**known, "runtime_rot": "/x"}}}
    assert effective(rules((1, 30, 14), texts, running), texts).table("runc")["runtime_rot"] == "/x"


def test_computed_values_are_no_keys() -> None:
    """1.30 shows what a handler is denied, in random order and under no name of a file's."""
    running = {"runtimes": {"runc": {"runtime_root": "/run/runc", "DisallowedAnnotations": ["a"],
                                     "disallowed_annotations": ["a"]}}}  # fmt: skip
    found = rules((1, 30, 14), files(""), running)
    assert found.handler == {"runtime_root": "/run/runc"}
    assert not {"DisallowedAnnotations", "disallowed_annotations"} & found.keys


def test_an_unknown_key_says_nothing_of_the_decoder() -> None:
    """Whether keys of an earlier file are kept is seen on keys that CRI-O knows."""
    texts = files(RUNC + "typo = 1\n", '[crio.runtime.runtimes.runc]\nruntime_path = "/r"\n')
    kept = {"runtimes": {"runc": {"runtime_path": "/r", "runtime_root": "/run/runc"}}}
    assert rules((1, 37, 0), texts, kept).by_key


def test_default_of_the_last_file_comes_first() -> None:
    """That of the last file first; an empty one names none."""
    texts = files(DEFAULT.format("a"), DEFAULT.format(""), "", DEFAULT.format("b"))
    assert explicit_defaults(texts) == ("b", "a")


CRUN = '[crio.runtime.runtimes.crun]\nruntime_path = "/c"\nruntime_root = "/run/crun"\n'
NVIDIA = (
    '[crio.runtime.runtimes.nvidia]\nruntime_path = "/n/nvidia-container-runtime"\n'
    'runtime_root = "{}"\n'
)


def running(root: str, name: str = "nvidia") -> dict[str, Any]:
    """Return a handler of NVIDIA's that the running CRI-O shows."""
    return {name: {"runtime_path": "/n/nvidia-container-runtime", "runtime_root": root}}


BACK = [
    # files, what the node has before, the default to go back to, the base, its state directory
    ((DEFAULT.format("crun") + CRUN + RUNC, DEFAULT.format("nvidia") + NVIDIA.format("/run/crun")),
     {"handlers": running("/run/crun")}, "crun", "crun", "/run/crun"),
    ((DEFAULT.format("runc") + CRUN + RUNC, DEFAULT.format("nvidia") + NVIDIA.format("/run/crun")),
     {"handlers": running("/run/crun")}, "runc", "crun", "/run/crun"),
    ((DEFAULT.format("nvidia") + CRUN + RUNC + NVIDIA.format("/run/crun"),),
     {"handlers": running("/run/crun")}, "crun", "crun", "/run/crun"),
    ((DEFAULT.format("nvidia") + CRUN + RUNC + NVIDIA.format("/run/runc"),),
     {"handlers": running("/run/runc")}, "runc", "runc", "/run/runc"),
    ((DEFAULT.format("nvidia") + CRUN + RUNC + NVIDIA.format("/srv/n"),),
     {"handlers": running("/srv/n"), "builtin": "crun"}, "crun", "crun", "/srv/n"),
    ((DEFAULT.format("nvidia") + CRUN + RUNC + NVIDIA.format("/srv/n"),),
     {"handlers": running("/srv/n")}, "runc", "runc", "/srv/n"),
    ((DEFAULT.format("gpu") + CRUN + RUNC + NVIDIA.format("/run/crun").replace("nvidia]", "gpu]"),),
     {"handlers": running("/run/crun", "gpu")}, "crun", "crun", "/run/crun"),
    # The admin changed the default, and pods of the handlers may be there.
    ((DEFAULT.format("runc") + CRUN + RUNC,), {"handlers": running("/run/crun")}, None, "crun",
     "/run/crun"),
    ((DEFAULT.format("runc") + CRUN + RUNC,), {}, None, "runc", "/run/runc"),
    # A handler without a state directory has the built-in one.
    ((DEFAULT.format("runc") + CRUN + RUNC,), {"handlers": running(""), "root": "/run/crun"}, None,
     "crun", "/run/crun"),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "before", "default", "base", "root"), BACK)
def test_what_pods_run_by_stays(
    texts: tuple[str, ...], before: dict[str, Any], default: str | None, base: str, root: str
) -> None:
    """The default to go back to is that of the files without NVIDIA's; a handler keeps its state
    directory and, with it, the handler that it inherits from."""
    there = desired_state.PresentState(defaults=explicit_defaults(files(*texts)), **before)
    used = cri(*texts)
    desired = desired_state.derive_desired(used, edit_request(NATIVE, BINARIES), there)
    assert desired.default == default
    assert desired_state.base(used, edit_request(NATIVE, BINARIES), there) == base
    assert desired.handlers["nvidia"]["runtime_root"] == root


def test_proof_asks_for_keys_that_crio_knows() -> None:
    """A key that it shows in no handler is none; one that another handler has is missing here."""
    table = {**TABLE, "runtime_rot": "/x", "seccomp_profile": "/p"}
    said = answer(nvidia=RUNNING)
    assert unproven(Desired({"nvidia": table}), said) == []
    said = answer(nvidia=RUNNING, other={"SeccompProfile": "/q"})
    assert unproven(Desired({"nvidia": table}), said) == [
        "handler nvidia: seccomp_profile is not as wanted"
    ]
