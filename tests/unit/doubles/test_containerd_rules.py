"""The scripted containerd merges files like the real ones: versions, imports, refusals."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.doubles.containerd.command import containerd
from tests.doubles.containerd.sample import DEAD, SECTIONS, VERSIONS, Seen, handler, head, see
from tests.tools.runtimes import ROOT

# Observed on the real ones: root file with a handler `main` and a list of spec directories, and a
# drop-in with a handler `nvidia`, each in the section of its own version unless said otherwise.
BOTH, ONLY_MAIN, ONLY_DROP_IN = {"main", "nvidia"}, {"main"}, {"nvidia"}
VERSION_MIXES = [
    # version, root file, drop-in, section of the drop-in, handlers besides runc or message
    ("1.6.20", 2, 2, 2, DEAD),  # the drop-in's section takes the place of the root file's
    ("1.6.20", 2, 3, 3, ONLY_MAIN),
    ("1.6.20", 2, None, 2, DEAD),
    ("1.7.24", 2, 3, 3, "unsupported config version `3`"),
    ("2.1.9", 2, 2, 2, BOTH),
    ("2.1.9", 2, 3, 3, ONLY_DROP_IN),  # with everything else of the root file's CRI section
    ("2.1.9", 2, 1, 1, BOTH),
    ("2.1.9", 2, None, 2, BOTH),
    ("2.1.9", 3, 2, 2, ONLY_MAIN),
    ("2.1.9", 3, 3, 3, BOTH),
    ("2.1.9", 3, None, 2, ONLY_MAIN),
    ("2.1.9", 3, None, 3, BOTH),
    ("2.1.9", 3, 4, 3, "equal to or less than `3`, got `4`"),
    ("2.1.9", 1, 3, 3, ONLY_DROP_IN),
    ("2.3.4", 2, 3, 3, "drop-in config version 3 higher than root config version 2"),
    ("2.3.4", 2, 2, 2, BOTH),
    ("2.3.4", 3, 2, 2, BOTH),
    ("2.3.4", 3, None, 2, BOTH),
    ("2.3.4", 1, 1, 1, BOTH),
]
# Those of 2.0.11, 2.2.7 and 2.4.0-beta.0 were the same; none of these can be had here.
LIKE = {"2.1.9": ("2.0.11", "2.2.7"), "2.3.4": ("2.4.0-beta.0",)}
VERSION_MIXES += [(like, *mix[1:]) for mix in VERSION_MIXES for like in LIKE.get(mix[0], ())]


@pytest.mark.parametrize(("version", "root", "drop_in", "names", "expected"), VERSION_MIXES)
def test_mixed_file_versions_are_merged_as_observed(
    version: str,
    root: int,
    drop_in: int | None,
    names: int,
    expected: set[str] | str,
    tmp_path: Path,
) -> None:
    section = SECTIONS[root]
    files = {
        "config.toml": head(root, "/etc/containerd/conf.d/*.toml")
        + f"[{section}]\ncdi_spec_dirs = ['/x']\n[{section}.containerd]\n"
        + handler("main", section)
        + handler("runc", section),
        "conf.d/a.toml": ("" if drop_in is None else f"version = {drop_in}\n")
        + handler("nvidia", SECTIONS[names]),
    }

    seen = see(version, files, tmp_path)

    if isinstance(expected, str):
        assert isinstance(seen, str)
        assert expected in seen
    else:
        assert isinstance(seen, Seen)
        assert seen.handlers == expected | {"runc"}
        assert (seen.spec_dirs == ["/x"]) is ("main" in expected and version != "1.6.20")


@pytest.mark.parametrize(
    ("version", "names", "honoured"),
    [
        ("1.6.20", 1, True),
        ("1.7.24", 1, True),
        ("1.7.24", 2, False),
        ("2.1.9", 1, False),
        ("2.1.9", 2, False),
        ("2.1.9", 3, True),
        ("2.3.4", 1, True),
        ("2.3.4", 2, True),
        ("2.3.4", 3, True),
    ],
)
def test_sections_of_a_file_without_version_count_as_observed(
    version: str, names: int, honoured: bool, tmp_path: Path
) -> None:
    section = SECTIONS[names]
    text = f"[{section}.containerd]\n" + handler("runc", section) + handler("main", section)

    seen = see(version, {"config.toml": text}, tmp_path)

    assert isinstance(seen, Seen)
    assert seen.handlers == ({"runc", "main"} if honoured else {"runc"})


@pytest.mark.parametrize("version", VERSIONS)
def test_later_file_wins(version: str, tmp_path: Path) -> None:
    """1.x takes the later section whole; 2.x takes its keys and keeps the others."""
    own = 2 if version.startswith("1") else 3
    section = SECTIONS[own]
    one = f"version = {own}\n[{section}]\nenable_cdi = true\n[{section}.containerd]\n"
    files = {
        "config.toml": head(own, "/etc/containerd/conf.d/*.toml") + handler("main", section),
        "conf.d/10.toml": one + "default_runtime_name = 'a'\n" + handler("a", section),
        "conf.d/20.toml": f"version = {own}\n[{section}]\nenable_cdi = false\n",
    }

    seen = see(version, files, tmp_path)

    assert isinstance(seen, Seen)
    if own == 2:
        assert (seen.handlers, seen.default) == ({"runc"}, "runc")
    else:
        assert (seen.handlers, seen.default) == ({"runc", "main", "a"}, "a")
    assert seen.cdi is (None if version == "1.6.20" else False)


@pytest.mark.parametrize(
    ("imported", "loaded_by"),
    [
        ("/etc/containerd/conf.d/*.toml", VERSIONS),
        ("conf.d/*.toml", VERSIONS[1:]),  # 1.6 looks in its own working directory
        ("conf.d/.hidden.toml", VERSIONS),
        ("/etc/containerd/none/*.toml", ()),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_imports_are_found_as_observed(
    version: str, imported: str, loaded_by: tuple[str, ...], tmp_path: Path
) -> None:
    own = 2 if version.startswith("1") else 3
    section = SECTIONS[own]
    files = {
        "config.toml": head(own, imported),
        "conf.d/.hidden.toml": f"version = {own}\nimports = ['*.toml']\n"
        + handler("runc", section)
        + handler("nvidia", section),
    }

    seen = see(version, files, tmp_path)

    assert isinstance(seen, Seen)
    assert ("nvidia" in seen.handlers) is (version in loaded_by)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = = 2", "failed to"),
        ('version = "2"', "version"),
        ("imports = ['/etc/containerd/none.toml']", "no such file"),
        ("version = 9", "version"),
        ("version = 2\ndisabled_plugins = ['cri']", "URI"),
        ("version = 2\n[SECTION]\nenable_selinux = 'yes'", "enable_selinux"),
        ("version = 2\n[SECTION.containerd.runtimes]\nnvidia = 3", "int"),
    ],
)
def test_files_that_a_real_daemon_refuses_are_refused(
    version: str, text: str, message: str, tmp_path: Path
) -> None:
    seen = see(version, {"config.toml": text.replace("SECTION", SECTIONS[2])}, tmp_path)

    if version == "1.6.20" and text == "version = 9":
        assert isinstance(seen, Seen)  # that one takes any number
    else:
        assert isinstance(seen, str)
        assert message in seen
        assert seen != DEAD


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "text",
    [
        "[SECTION.containerd]\ndefault_runtime_name = 'nvidia'",
        "[SECTION.containerd]\ndefault_runtime_name = ''",
        "disabled_plugins = ['io.containerd.grpc.v1.cri']",
    ],
)
def test_configuration_without_a_cri_leaves_it_dead(
    version: str, text: str, tmp_path: Path
) -> None:
    files = {"config.toml": "version = 2\n" + text.replace("SECTION", SECTIONS[2])}

    assert see(version, files, tmp_path) == DEAD


def test_missing_import_stops_the_daemon_but_not_the_dump_of_2x(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "etc/containerd").mkdir(parents=True)
    (tmp_path / "etc/containerd/config.toml").write_text("imports = ['/none.toml']\nroot = '/r'\n")

    assert containerd("1.7.24", str(tmp_path), ["config", "dump"]) == 1
    assert "open /none.toml: no such file or directory" in capsys.readouterr().err
    assert containerd("2.1.9", str(tmp_path), ["config", "dump"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["root"] == "/r"
    # A process, because a daemon blocks the signals of the one that it runs in.
    argv = [sys.executable, "-m", "tests.doubles.containerd.server", "--version", "2.1.9"]
    daemon = subprocess.run([*argv, "--node", str(tmp_path)], cwd=ROOT, check=False)
    assert daemon.returncode == 1
