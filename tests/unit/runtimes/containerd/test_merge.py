"""How containerd makes one configuration of many files, held against what real ones did.

Each case of `MERGES` was observed on private daemons of 1.6.20, 1.7.24, 2.0.11, 2.1.9, 2.2.7 and
2.3.4: which handlers the CRI showed after a start on these files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cri.versions import parse_version
from agent.errors import Refused
from agent.host.files import FileState
from agent.host.paths import HostPath, HostRoot
from agent.runtimes.config_file import ConfigFile, check_shape
from agent.runtimes.containerd import faults, generations, load, merge
from agent.runtimes.containerd.generations import Generation
from agent.toml.document import get

CAPTURES = Path(__file__).resolve().parents[3] / "data" / "captures"
V1, V2, V3 = '"cri"', '"io.containerd.grpc.v1.cri"', '"io.containerd.cri.v1.runtime"'


def generation(text: str) -> Generation:
    """Return the rules of a version."""
    version = parse_version(text)
    assert version is not None
    return generations.generation(version)


def file(text: str, name: str = "/etc/containerd/config.toml") -> ConfigFile:
    """Return a loaded file."""
    return ConfigFile(name, HostPath(name, name), FileState(text.encode()), tomllib.loads(text))


def handlers(section: str, *names: str, default: str = "", extra: str = "") -> str:
    """Return a CRI section with these handlers."""
    lines = [f"[plugins.{section}]", extra, f"[plugins.{section}.containerd]"]
    lines += [f'default_runtime_name = "{default}"'] if default else []
    for name in names:
        lines += [
            f"[plugins.{section}.containerd.runtimes.{name}]",
            'runtime_type = "io.containerd.runc.v2"',
            f"[plugins.{section}.containerd.runtimes.{name}.options]",
            f'BinaryName = "/{name}"',
        ]
    return "\n".join(lines) + "\n"


def version(number: int | None, body: str) -> str:
    """Return a file with that version, or with none."""
    return body if number is None else f"version = {number}\n{body}"


@dataclass(frozen=True)
class Merge:
    """Files of handlers, the root file first, and the handlers and default that come of them."""

    versions: str
    files: tuple[str, ...]
    handlers: set[str]
    default: str = "runc"


OLD, NEW, NEWEST = "1.6.20 1.7.24", "2.0.11 2.1.9 2.2.7", "2.3.4"
_MAIN2 = version(2, handlers(V2, "main", "runc", default="main"))
_MAIN3 = version(3, handlers(V3, "main", default="main"))

MERGES = {
    "no file": Merge(f"{OLD} {NEW} {NEWEST}", (), {"runc"}),
    "empty file": Merge(f"{OLD} {NEW} {NEWEST}", ("",), {"runc"}),
    "version only": Merge(f"{OLD} {NEW} {NEWEST}", ("version = 2",), {"runc"}),
    # 3.1: `runtimes` in a file.
    "runtimes without runc, 1.x": Merge(OLD, (version(2, handlers(V2, "nv")),), {"nv"}),
    "runtimes without runc, 2.x": Merge(
        f"{NEW} {NEWEST}", (version(2, handlers(V2, "nv")),), {"nv", "runc"}
    ),
    # 3.2: a drop-in of the root file's version.
    "same version, 1.x": Merge(OLD, (_MAIN2, version(2, handlers(V2, "nv"))), {"nv"}),
    "same version, 2.x": Merge(
        f"{NEW} {NEWEST}", (_MAIN2, version(2, handlers(V2, "nv"))), {"main", "nv", "runc"}, "main"
    ),
    "same version 3": Merge(
        f"{NEW} {NEWEST}", (_MAIN3, version(3, handlers(V3, "nv"))), {"main", "nv", "runc"}, "main"
    ),
    "two drop-ins, 1.x": Merge(
        OLD, (_MAIN2, version(2, handlers(V2, "a")), version(2, handlers(V2, "b"))), {"b"}
    ),
    "two drop-ins, 2.x": Merge(
        f"{NEW} {NEWEST}",
        (_MAIN3, version(3, handlers(V3, "a", default="a")), version(3, handlers(V3, "b"))),
        {"main", "a", "b", "runc"},
        "a",
    ),
    "drop-in without the section": Merge(
        f"{OLD} {NEW} {NEWEST}", (_MAIN2, "version = 2\noom_score = 1"), {"main", "runc"}, "main"
    ),
    "empty drop-in": Merge(f"{OLD} {NEW} {NEWEST}", (_MAIN2, ""), {"main", "runc"}, "main"),
    # 3.3: versions that differ.
    "2 and 3 on 1.6": Merge(
        "1.6.20", (_MAIN2, version(3, handlers(V3, "nv"))), {"main", "runc"}, "main"
    ),
    "2 and 3 on 2.0 to 2.2": Merge(
        NEW, (_MAIN2, version(3, handlers(V3, "nv"))), {"nv", "runc"}
    ),
    "2 and none, names of 2": Merge(
        NEW, (_MAIN2, handlers(V2, "nv")), {"main", "nv", "runc"}, "main"
    ),
    "2 and none, names of 2, 1.x": Merge(OLD, (_MAIN2, handlers(V2, "nv")), {"nv"}),
    "3 and 2 on 2.0 to 2.2": Merge(
        NEW, (_MAIN3, version(2, handlers(V2, "nv"))), {"main", "runc"}, "main"
    ),
    "3 and 2 on 2.3": Merge(
        NEWEST, (_MAIN3, version(2, handlers(V2, "nv"))), {"main", "nv", "runc"}, "main"
    ),
    "3 and none, names of 2": Merge(
        NEW, (_MAIN3, handlers(V2, "nv")), {"main", "runc"}, "main"
    ),
    "3 and none, names of 3": Merge(
        f"{NEW} {NEWEST}", (_MAIN3, handlers(V3, "nv")), {"main", "nv", "runc"}, "main"
    ),
    "4 and 3 on 2.3": Merge(
        NEWEST,
        (version(4, handlers(V3, "main", default="main")), version(3, handlers(V3, "nv"))),
        {"main", "nv", "runc"},
        "main",
    ),
    "4 and 2 on 2.3": Merge(
        NEWEST,
        (version(4, handlers(V3, "main", default="main")), version(2, handlers(V2, "nv"))),
        {"main", "nv", "runc"},
        "main",
    ),
    # The last file that names a version decides for all (run on 1.6.20, 1.7.24 and 2.1.9).
    "2 and an empty 1, 1.x": Merge(OLD, (_MAIN2, "version = 1"), {"runc"}),
    "2 and 1, names of 1, 1.x": Merge(OLD, (_MAIN2, version(1, handlers(V1, "nv"))), {"nv"}),
    "none and 2, names of 2, 1.x": Merge(OLD, (handlers(V2, "nv"), "version = 2"), {"nv"}),
    "2, 3 and 2": Merge(
        NEW,
        (_MAIN2, version(3, handlers(V3, "nv")), "version = 2"),
        {"nv", "runc"},
        "main",
    ),
    "2 and 1, names of 1, 2.x": Merge(
        f"{NEW} {NEWEST}", (_MAIN2, version(1, handlers(V1, "nv"))), {"main", "nv", "runc"}, "main"
    ),
    "none and 2, names of 1": Merge(
        NEW, (handlers(V1, "nv"), "version = 2"), {"nv", "runc"}
    ),
    "bare 3 and 2": Merge(
        f"{NEW} {NEWEST}", ("version = 3", version(2, handlers(V2, "nv"))), {"nv", "runc"}
    ),
    # Under the new name a handler of its own hides the whole table of the old one.
    "2, both names": Merge(
        f"{NEW} {NEWEST}",
        (version(2, handlers(V2, "old", default="new") + handlers(V3, "new")),),
        {"new", "runc"},
        "new",
    ),
    # Read in 2.3's source: the step from 3 to 4 migrates once more. 2.1.9 was run.
    "3, names of 2": Merge(NEW, (version(3, handlers(V2, "nv")),), {"runc"}),
    "3, names of 2, 2.3": Merge(NEWEST, (version(3, handlers(V2, "nv")),), {"nv", "runc"}),
    "4, names of 2": Merge(NEWEST, (version(4, handlers(V2, "nv")),), {"runc"}),
    # 3.4: version 1 and none.
    "1, names of 1, 1.x": Merge(
        OLD, (version(1, handlers(V1, "nv", "runc", default="nv")),), {"nv", "runc"}, "nv"
    ),
    "none, names of 1, 1.x": Merge(
        OLD, (handlers(V1, "nv", "runc", default="nv"),), {"nv", "runc"}, "nv"
    ),
    "none, names of 2, 1.x": Merge(OLD, (handlers(V2, "nv", "runc", default="nv"),), {"runc"}),
    "1, names of 1, 2.0 to 2.2": Merge(
        NEW, (version(1, handlers(V1, "nv", "runc", default="nv")),), {"runc"}
    ),
    "none, names of 2, 2.0 to 2.2": Merge(NEW, (handlers(V2, "nv", default="nv"),), {"runc"}),
    "none, names of 3": Merge(
        f"{NEW} {NEWEST}", (handlers(V3, "nv", default="nv"),), {"nv", "runc"}, "nv"
    ),
    "1, names of 1, 2.3": Merge(
        NEWEST, (version(1, handlers(V1, "nv", default="nv")),), {"nv", "runc"}, "nv"
    ),
    "none, names of 2, 2.3": Merge(
        NEWEST, (handlers(V2, "nv", default="nv"),), {"nv", "runc"}, "nv"
    ),
    # A default without a table is kept: the caller refuses it, containerd's CRI does not load.
    "default without table": Merge(
        f"{OLD} {NEW} {NEWEST}", (version(2, handlers(V2, "runc", default="no")),), {"runc"}, "no"
    ),
}  # fmt: skip

OBSERVED = [(name, number) for name, case in MERGES.items() for number in case.versions.split()]


@pytest.mark.parametrize(("name", "number"), OBSERVED)
def test_files_make_the_handlers_that_were_observed(name: str, number: str) -> None:
    """The model of the merge is what plans are made with; it has to be the daemon's."""
    case = MERGES[name]
    files = tuple(file(text, f"/etc/containerd/{i}.toml") for i, text in enumerate(case.files))
    cri = merge.effective(generation(number), files)
    assert (set(cri.runtimes), cri.default) == (case.handlers, case.default)


SWITCH = [
    ("1.6.20", "version = 2", None),
    ("1.6.20", f"version = 2\n[plugins.{V2}]\nenable_cdi = true", None),
    ("1.7.24", "version = 2", False),
    ("1.7.24", f"version = 2\n[plugins.{V2}]\nenable_cdi = true", True),
    ("1.7.24", f"version = 2\n[plugins.{V3}]\nenable_cdi = true", False),
    ("1.7.24", "version = 1\n[plugins.cri]\nenable_cdi = true", True),
    ("1.7.24", f"version = 1\n[plugins.{V2}]\nenable_cdi = true", False),
    ("2.1.9", "version = 3", True),
    ("2.1.9", "", True),
    ("2.1.9", f"version = 3\n[plugins.{V3}]\nenable_cdi = false", False),
    ("2.1.9", f"version = 2\n[plugins.{V2}]\nenable_cdi = false", False),
    ("2.1.9", f"version = 3\n[plugins.{V2}]\nenable_cdi = false", True),
    ("2.1.9", f"version = 2\n[plugins.{V2}]\nenable_cdi = false\n[plugins.{V3}]\nenable_cdi = true",
     True),
    ("2.3.4", f"version = 2\n[plugins.{V3}]\nenable_cdi = false\n[plugins.{V2}]\nenable_cdi = true",
     False),
    ("2.3.4", f"version = 2\n[plugins.{V2}]\nenable_cdi = false", False),
    ("2.3.4", "version = 1\n[plugins.cri]\nenable_cdi = false", False),
]  # fmt: skip


@pytest.mark.parametrize(("number", "text", "value"), SWITCH)
def test_switch_follows_the_file(number: str, text: str, value: bool | None) -> None:
    """1.6 has none, 1.7's is off and 2.x's on unless its own section says else."""
    assert merge.effective(generation(number), (file(text),)).enable_cdi is value


def test_drop_in_replaces_or_merges_a_handler_s_keys() -> None:
    """1.x takes the section of the last file, 2.x puts keys together, lists replaced."""
    cri = {"1.7.24": V2, "2.1.9": V2}
    for number, section in cri.items():
        extra = 'cdi_spec_dirs = ["/a"]\nenable_selinux = true'
        main = version(2, handlers(section, "runc", extra=extra))
        other = (
            f'version = 2\n[plugins.{section}]\ncdi_spec_dirs = ["/b"]\n'
            f"[plugins.{section}.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
        )
        found = merge.effective(generation(number), (file(main), file(other, "/o.toml")))
        runc = found.runtimes["runc"]
        assert found.section["cdi_spec_dirs"] == ["/b"]
        assert runc["options"]["SystemdCgroup"] is True
        assert (runc["options"].get("BinaryName") == "/runc") == (number == "2.1.9")
        assert found.section.get("enable_selinux", False) == (number == "2.1.9")


LEGACY = f"""
version = 2
[plugins.{V2}.containerd]
default_runtime_name = "runc"
[plugins.{V2}.containerd.default_runtime]
runtime_type = "io.containerd.runc.v2"
[plugins.{V2}.containerd.default_runtime.options]
BinaryName = "/old"
[plugins.{V2}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


def test_deprecated_default_table_wins_on_1x_only() -> None:
    """1.x makes a handler "default" of it; 2.x no longer knows it."""
    old = merge.effective(generation("1.7.24"), (file(LEGACY),))
    new = merge.effective(generation("2.1.9"), (file(LEGACY),))
    assert (old.default, set(old.runtimes)) == ("default", {"default", "runc"})
    assert old.runtimes["default"]["options"]["BinaryName"] == "/old"
    assert (new.default, set(new.runtimes)) == ("runc", {"runc"})


def test_deprecated_default_table_without_type_counts_for_nothing() -> None:
    """`containerd config default` prints such an empty one."""
    text = LEGACY.replace('runtime_type = "io.containerd.runc.v2"', 'runtime_type = ""', 1)
    assert merge.effective(generation("1.7.24"), (file(text),)).default == "runc"


def test_deprecated_table_for_the_untrusted_is_a_handler_on_1x_only() -> None:
    """For pods with an annotation that nobody uses any more; the default stays."""
    text = LEGACY.replace("default_runtime]", "untrusted_workload_runtime]")
    text = text.replace("default_runtime.options]", "untrusted_workload_runtime.options]")
    old = merge.effective(generation("1.7.24"), (file(text),))
    new = merge.effective(generation("2.1.9"), (file(text),))
    assert (old.default, set(old.runtimes)) == ("runc", {"untrusted", "runc"})
    assert set(new.runtimes) == {"runc"}


@pytest.mark.parametrize(
    ("number", "text", "program"),
    [
        ("1.6.20", "[plugins.linux]\nruntime = '/n'", "/n"),
        ("1.7.24", version(2, "[plugins.'io.containerd.runtime.v1.linux']\nruntime = '/n'"), "/n"),
        ("1.7.24", version(2, "[plugins.'io.containerd.runtime.v1.linux']"), ""),
        ("1.7.24", "", ""),
    ],
)
def test_program_of_the_old_shim_is_found_in_its_section(
    number: str, text: str, program: str
) -> None:
    """In a section of its own, under the names of version 1 and 2."""
    assert merge.effective(generation(number), (file(text),)).linux_runtime == program


@pytest.mark.parametrize(
    ("keys", "sandboxer"),
    [
        ("sandbox_mode = 'shim'", "shim"),
        ("sandboxer = 'x'", "x"),
        ("sandbox_mode = 'shim'\nsandboxer = 'x'", "x"),
    ],
)
def test_sandbox_mode_has_another_name_since_version_3(keys: str, sandboxer: str) -> None:
    """Observed on 2.1.9: brought over from a version 2 file, unless the new name is there too."""
    table = f"[plugins.{V2}.containerd.runtimes.site]\n{keys}\n"
    found = merge.effective(generation("2.1.9"), (file(version(2, table)),))
    assert found.runtimes["site"] == {"sandboxer": sandboxer}
    old = merge.effective(generation("1.7.24"), (file(version(2, table)),))
    assert "runc" not in old.runtimes
    assert old.runtimes["site"] == tomllib.loads(keys)


@pytest.mark.parametrize("number", ["1.6.20", "1.7.24"])
def test_what_a_later_section_hides_is_said(number: str) -> None:
    """1.x takes all of it from the last file; what both say, or nobody, is not worth a word."""
    first = f"[plugins.{V2}]\nsandbox_image = 'x'\nselinux_category_range = 0\n"
    root = file(version(2, first + handlers(V2, "runc").partition("\n")[2]))
    later = file(handlers(V2, "runc", extra="enable_selinux = true"), "/etc/containerd/a.toml")
    (text,) = faults.hidden_settings(generation(number), (root, later))
    assert text.startswith("/etc/containerd/a.toml hides sandbox_image of /etc/containerd/config")
    same = file(version(2, later.state.data.decode() if later.state else ""))
    assert faults.hidden_settings(generation(number), (same, later)) == ()
    assert faults.hidden_settings(generation(number), (root,)) == ()
    assert faults.hidden_settings(generation("2.1.9"), (root, later)) == ()


@pytest.mark.parametrize(
    ("number", "section"),
    [
        ("1.6.20", "io.containerd.grpc.v1.cri"),
        ("1.7.24", "io.containerd.grpc.v1.cri"),
        ("2.1.9", "io.containerd.cri.v1.runtime"),
    ],
)
def test_built_in_handler_is_that_of_the_real_one(number: str, section: str) -> None:
    """On 1.x we have to write it out: `runtimes` in a file replaces the built-in table."""
    text = (CAPTURES / f"containerd-{number}" / "config-default.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    gen = generation(number)
    real: Mapping[str, Any] = data["plugins"][section]["containerd"]["runtimes"]
    assert set(real) == {"runc"}
    said = {key: value for key, value in real["runc"].items() if value or key == "options"}
    said.pop("sandboxer", None)  # 2.x gives it to every handler that names none
    if gen.merge == "deep":  # and zero values for options that are not there
        assert not any(said.pop("options").values())
    assert gen.runc == said
    built_in = merge.effective(gen, ())
    real_default = merge.effective(gen, (file(text),))
    assert built_in.default == real_default.default == "runc"
    assert built_in.enable_cdi == real_default.enable_cdi


@pytest.mark.parametrize("number", ["1.6.20", "1.7.24", "2.1.9", "2.3.4"])
def test_new_root_file_is_of_the_version_that_the_real_one_prints(number: str) -> None:
    """And so are the imports that it shows and does not load."""
    text = (CAPTURES / f"containerd-{number}" / "config-default.toml").read_text(encoding="utf-8")
    data, gen = tomllib.loads(text), generation(number)
    assert gen.highest == data["version"]


FAULTS = {
    "too high, 1.7": ("1.7.24", ("version = 3",), "reads files up to version 2"),
    "too high, 1.6": ("1.6.20", ("version = 3",), None),
    "too high, 2.1": ("2.1.9", ("version = 4",), "reads files up to version 3"),
    "taken back, 2.1": ("2.1.9", ("version = 4", "version = 3"), None),
    "taken back by nothing, 2.1": ("2.1.9", ("version = 4", "version = 1"), "up to version 3"),
    "drop-in, 2.1": ("2.1.9", ("version = 2", "version = 3"), None),
    "drop-in, 2.3": ("2.3.4", ("version = 2", "version = 3"), "higher than version 2"),
    "drop-in of none, 2.3": ("2.3.4", ("", "version = 3"), None),
    "second drop-in of none, 2.3": ("2.3.4", ("", "version = 2", "version = 3"), "higher than"),
    "short name, 1.7": ("1.7.24", ("version = 2\n[plugins.cri]",), "'cri' in plugins"),
    "short name, 2.1": ("2.1.9", ("version = 2\n[plugins.cri]",), None),
    "short entry": ("2.1.9", ("version = 2\ndisabled_plugins = ['cri']",), "disabled_plugins"),
    "short entry of version 1": ("2.1.9", ("disabled_plugins = ['cri']",), None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_known(name: str) -> None:
    """What keeps a containerd from starting (run on 1.6.20, 1.7.24, 2.1.9; tables for 2.3.4)."""
    number, texts, words = FAULTS[name]
    files = tuple(file(text, f"/etc/containerd/{i}.toml") for i, text in enumerate(texts))
    found = faults.fatal_fault(generation(number), files)
    assert (found is None) == (words is None)
    assert words is None or words in (found or "")


@pytest.mark.parametrize("number", ["2.1.9", "2.3.4"])
def test_file_with_both_spellings_is_ambiguous(number: str) -> None:
    """Which of them containerd takes is chance, but for a version-less one on 2.3."""
    both = handlers(V1, "a") + handlers(V2, "b")
    gen, one = generation(number), file(version(1, both))
    assert faults.ambiguous_file(gen, (one,)) is one
    assert (faults.ambiguous_file(gen, (file(both),)) is None) == (number == "2.3.4")
    assert faults.ambiguous_file(gen, (file(version(2, both)),)) is None


@pytest.mark.parametrize(
    ("number", "name"),
    [("0.9.0", "1.6"), ("1.5.18", "1.6"), ("1.6.20~ds1", "1.6"), ("1.7.0", "1.7"),
     ("1.7.30", "1.7"), ("2.0.0", "2.0"), ("2.1.9", "2.0"), ("2.2.7", "2.0"), ("2.3.0", "2.3"),
     ("2.4.0-beta.0", "2.4"), ("3.0.0", "2.4")],
)  # fmt: skip
def test_version_has_the_rules_of_its_generation(number: str, name: str) -> None:
    """What is newer than all that was seen is taken for the newest."""
    assert generation(number).name == name


@pytest.mark.parametrize(
    ("number", "text", "lost"),
    [
        ("2.1.9", version(1, handlers(V1, "nv")), 'plugins."cri"'),
        ("2.1.9", handlers(V1, "nv"), 'plugins."cri"'),
        ("2.1.9", handlers(V2, "nv"), 'plugins."io.containerd.grpc.v1.cri"'),
        ("2.1.9", handlers(V3, "nv"), None),
        ("2.1.9", version(2, handlers(V2, "nv")), None),
        ("2.1.9", 'disabled_plugins = []\n[grpc]\naddress = "/a"', None),
        ("2.1.9", f'[plugins.{V2}]\nstream_server_port = "0"', None),
        ("2.3.4", version(1, handlers(V1, "nv")), None),
        ("1.7.24", handlers(V1, "nv"), None),
        ("1.7.24", handlers(V2, "nv"), None),
    ],
)
def test_settings_that_this_containerd_ignores_are_found(
    number: str, text: str, lost: str | None
) -> None:
    """2.0 to 2.2 read files without a version by names of version 3 only."""
    files = (file(text),)
    assert faults.ignored_section(generation(number), files) == (lost and (files[0], lost))


@pytest.mark.parametrize(
    ("number", "pattern", "absolute"),
    [
        ("1.6.20", "/etc/containerd/conf.d/*.toml", "/etc/containerd/conf.d/*.toml"),
        ("1.6.20", "conf.d/*.toml", None),
        ("1.6.20", "conf.d/a.toml", "/etc/containerd/conf.d/a.toml"),
        ("1.7.24", "conf.d/*.toml", "/etc/containerd/conf.d/*.toml"),
        ("2.1.9", "conf.d/*.toml", "/etc/containerd/conf.d/*.toml"),
        ("2.1.9", "../site/*.toml", "/etc/site/*.toml"),
        ("2.1.9", "./a.toml", "/etc/containerd/a.toml"),
        ("2.1.9", "/opt//x/../a.toml", "/opt/a.toml"),
    ],
)
def test_import_is_taken_from_the_importing_file(
    number: str, pattern: str, absolute: str | None
) -> None:
    """1.6 takes relative globs from the daemon's working directory, which is nothing to rely on."""
    gen = generation(number)
    assert load.import_pattern(gen, "/etc/containerd/config.toml", pattern) == absolute


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/c/*.toml", "/c/99-nvidia.toml", True),
        ("/c/*.toml", "/c/.hidden.toml", True),
        ("/c/*.toml", "/c/d/a.toml", False),
        ("/c/*.toml", "/c/a.toml.bak", False),
        ("/c/*", "/c/a", True),
        ("/*/a.toml", "/c/a.toml", True),
        ("/c/9?-n.toml", "/c/99-n.toml", True),
        ("/c/9?.toml", "/c/9/.toml", False),
        ("/c/[0-9]*.toml", "/c/9a.toml", True),
        ("/c/[^0-9]*.toml", "/c/9a.toml", False),
        ("/c/[^0-9]*.toml", "/c/a.toml", True),
        ("/c/[!a]*.toml", "/c/a.toml", True),
        ("/c/[!a]*.toml", "/c/b.toml", False),
        (r"/c/[\]]*.toml", "/c/]x.toml", True),  # seen on containerd 1.6.20, 1.7.24 and 2.1.9
        (r"/c/[\]]*.toml", "/c/x.toml", False),
        (r"/c/\*.toml", "/c/*.toml", True),
        (r"/c/\*.toml", "/c/a.toml", False),
        ("/c/A.toml", "/c/a.toml", False),
        ("/c/a.toml", "/c/a.toml", True),
        ("/c/*.toml", "/c/a\nb.toml", True),
    ],
)
def test_glob_is_go_s(pattern: str, path: str, matches: bool) -> None:
    """filepath.Match: `[^` negates and `[!` does not, a backslash takes the next as it is."""
    assert load.matches(pattern, path) is matches


WRONG = {
    "version": "version = '2'",
    "imports": "imports = '/a.toml'",
    "imports of numbers": "imports = [1]",
    "plugins": "plugins = 1",
    "section": f"[plugins]\n{V2} = 1",
    "enable_cdi": f"[plugins.{V2}]\nenable_cdi = 'yes'",
    "containerd": f"[plugins.{V3}]\ncontainerd = []",
    "runtimes": f"[plugins.{V3}.containerd]\nruntimes = 'runc'",
    "default_runtime_name": f"[plugins.{V1}.containerd]\ndefault_runtime_name = 1",
    "handler": f"[plugins.{V1}.containerd.runtimes]\nnvidia = 'x'",
    "options": f"[plugins.{V1}.containerd.runtimes.nvidia]\noptions = 'x'",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_type_is_refused_by_name(name: str) -> None:
    """containerd would not start on it, or not as anybody thinks."""
    with pytest.raises(Refused, match=r"^cannot use /etc/containerd/config.toml: "):
        check_shape(file(WRONG[name]), load.SHAPE)


def loaded(root: Path, number: str = "2.1.9") -> list[str]:
    """Return the names of the files that a containerd loads below a host root."""
    found = load.load(HostRoot(str(root)), generation(number), "/etc/containerd/config.toml")
    return [item.name for item in found]


def write(root: Path, files: Mapping[str, str]) -> None:
    """Write files below a host root."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_imports_are_loaded_breadth_first_and_once(tmp_path: Path) -> None:
    """The order decides who has the last word; a circle ends."""
    write(
        tmp_path,
        {
            "/etc/containerd/config.toml": 'imports = ["conf.d/*.toml", "/opt/last.toml"]',
            "/etc/containerd/conf.d/b.toml": 'imports = ["/etc/containerd/config.toml"]',
            "/etc/containerd/conf.d/a.toml": 'imports = ["deep.toml"]',
            "/etc/containerd/conf.d/deep.toml": "",
            "/etc/containerd/conf.d/c.bak": "broken",
            "/opt/last.toml": "",
        },
    )
    names = ["config.toml", "conf.d/a.toml", "conf.d/b.toml", "conf.d/deep.toml"]
    expected = [f"/etc/containerd/{name}" for name in names]
    assert loaded(tmp_path) == [*expected, "/opt/last.toml"]


def test_glob_without_a_match_is_fine_and_a_missing_file_is_not(tmp_path: Path) -> None:
    """containerd starts with the one and exits with the other."""
    write(tmp_path, {"/etc/containerd/config.toml": 'imports = ["/no/such/*.toml"]'})
    assert loaded(tmp_path) == ["/etc/containerd/config.toml"]
    write(tmp_path, {"/etc/containerd/config.toml": 'imports = ["/no/such.toml"]'})
    with pytest.raises(Refused, match=r"^cannot use /etc/containerd/config.toml: .*such.toml"):
        loaded(tmp_path)


def test_conf_d_is_not_loaded_unless_the_file_imports_it(tmp_path: Path) -> None:
    """2.2 and later print it in their dump all the same."""
    write(
        tmp_path,
        {"/etc/containerd/config.toml": "version = 3", "/etc/containerd/conf.d/a.toml": ""},
    )
    assert loaded(tmp_path, "2.2.7") == ["/etc/containerd/config.toml"]


def test_missing_root_file_is_a_file_without_content(tmp_path: Path) -> None:
    """containerd runs without one, on its defaults."""
    found = load.load(HostRoot(str(tmp_path)), generation("2.1.9"), "/etc/containerd/config.toml")
    assert [(item.state, item.data) for item in found] == [(None, {})]


def test_settings_apart_from_shows_a_change_of_others() -> None:
    """It is what tells that an edit changed more than ours."""
    gen = generation("2.1.9")
    before = (file("version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'"),)
    after = (*before, file("version = 3\n[grpc]\nuid = 5", "/o.toml"))
    images = ("plugins", "io.containerd.cri.v1.images", "snapshotter")
    assert get(merge.settings(gen, after), images) == "native"
    assert get(merge.settings(gen, after), ("grpc", "uid")) == 5
    assert "version" not in merge.settings(gen, after)
