"""The status files keep their contract to the letter, because readers in other languages rely on
it."""

from __future__ import annotations

import errno
import hashlib
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import status
from agent.errors import Refused, RolledBack
from agent.status import ERROR, READY, TWIN, Lines, Publisher
from tests.unit.support.faults import CODES, Faults, Killed, count
from tests.unit.support.published import BOOT, PATHS, content, lines

TEXT = f"""\
TOOLKIT_STATUS_VERSION=1
TOOLKIT_BOOT_ID={BOOT}
TOOLKIT_TIMESTAMP=1700000000
TOOLKIT_CONTAINER_RUNTIME=containerd
TOOLKIT_CONTAINER_RUNTIME_VERSION=1.7.24_ds1
TOOLKIT_CRI_SOCKET=/run/containerd/containerd.sock
TOOLKIT_CDI_ENABLED=true
TOOLKIT_NATIVE_CDI=true
TOOLKIT_NATIVE_CDI_SOURCE=cri-status
TOOLKIT_NATIVE_CDI_REASON=enabled
TOOLKIT_CDI_SPEC_DIRS=/etc/cdi,/var/run/cdi
TOOLKIT_CRI_CDI_FIELD=true
TOOLKIT_RUNTIME_NAME=nvidia
TOOLKIT_RUNTIME_MODE=cdi
TOOLKIT_RUNTIME_IS_DEFAULT=false
TOOLKIT_CONFIG_HASH=sha256:@
DEVICE_LIST_STRATEGY=cdi-cri
CDI_ANNOTATION_PREFIX=cdi.k8s.io/
NVIDIA_CDI_HOOK_PATH=/usr/local/nvidia/toolkit/nvidia-cdi-hook
NVIDIA_DRIVER_ROOT=/run/nvidia/driver
NVIDIA_DEV_ROOT=/
"""
LINE = re.compile(rb"[A-Z_][A-Z0-9_]*=[A-Za-z0-9_./:,@%+=-]*")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "nvidia/validations"


@pytest.fixture
def ours(directory: Path) -> Publisher:
    """A publisher that owns both files."""
    return Publisher(str(directory))


# --- what is in it -----------------------------------------------------------------------------


def test_file_is_the_contracts(ours: Publisher, directory: Path) -> None:
    """Keys, order, spelling, and the hash of all other lines but those of the moment."""
    ours.publish(lines())
    hashed = "".join(
        line + "\n"
        for line in TEXT.splitlines()
        if not line.startswith(("TOOLKIT_BOOT_ID", "TOOLKIT_TIMESTAMP", "TOOLKIT_CONFIG_HASH"))
    )
    expected = TEXT.replace("@", hashlib.sha256(hashed.encode()).hexdigest()).encode()
    assert content(directory) == {READY: expected, TWIN: expected}
    for name in (READY, TWIN):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o644


def test_lines_have_no_prefix_where_cdi_is_off() -> None:
    """No prefix where CDI is off, no path where there is nothing, an empty name in hook mode."""
    keys = dict(lines(annotation_prefix=None, mode="hook", paths=dict.fromkeys(PATHS)))
    assert "CDI_ANNOTATION_PREFIX" not in keys
    assert keys["TOOLKIT_RUNTIME_NAME"] == ""
    assert list(keys)[-1] == "DEVICE_LIST_STRATEGY"


def test_hash_is_of_the_decision_only() -> None:
    """Another moment and another boot leave it, any other fact changes it."""
    known = dict(lines())["TOOLKIT_CONFIG_HASH"]
    assert dict(lines(now=5, boot="x"))["TOOLKIT_CONFIG_HASH"] == known
    changes: tuple[dict[str, Any], ...] = (
        {"native": False},
        {"strategy": ("envvar",)},
        {"paths": {**PATHS, "NVIDIA_CDI_HOOK_PATH": None}},
        {"paths": {**PATHS, "NVIDIA_DRIVER_ROOT": "/"}},
    )
    for change in changes:
        assert dict(lines(**change))["TOOLKIT_CONFIG_HASH"] != known


@given(text=st.text(max_size=30))
def test_no_value_can_break_a_line(text: str) -> None:
    """Spaces, quotes, line ends, `$()` and letters of other scripts become `_`."""
    paths = dict.fromkeys(PATHS, text)
    found = lines(boot=text, version=text, socket=text, spec_dirs=(text,), paths=paths)
    for key, value in found:
        assert LINE.fullmatch(f"{key}={value}".encode("ascii"))


def test_shell_can_source_it(ours: Publisher, directory: Path) -> None:
    """`. toolkit-ready` sets the variables and runs nothing, whatever a version string holds."""
    ours.publish(lines(version="1;touch x $(touch y) `touch z`&'\""))
    done = subprocess.run(
        ["sh", "-euc", '. "$0"; echo "$TOOLKIT_CDI_SPEC_DIRS|$DEVICE_LIST_STRATEGY"',
         str(directory / READY)],
        capture_output=True, text=True, check=True, cwd=directory,
    )  # fmt: skip
    assert done.stdout == "/etc/cdi,/var/run/cdi|cdi-cri\n"
    assert done.stderr == ""
    assert sorted(content(directory)) == [TWIN, READY]


@pytest.mark.parametrize(
    "text",
    [b"export A=1\n", b"A='1'\n", b"# comment\n", b"A=1 2\n", b"a=1\n", b"1A=1\n", b"A\n", b"\n",
     b"A=\xc3\xa4\n", b"A=1\r\n", b"A=1\x0bB=2\n", b" A=1\n"],
)  # fmt: skip
def test_any_other_line_is_rejected(text: bytes) -> None:
    """A file with one line that is not KEY=value is no status file."""
    with pytest.raises(Refused, match=r"^cannot use decision: "):
        status.parse(b"TOOLKIT_STATUS_VERSION=1\n" + text, "decision")


# --- writing -----------------------------------------------------------------------------------


def test_equal_but_for_the_timestamp_is_not_rewritten(ours: Publisher, directory: Path) -> None:
    """The device plugin watches these files: no new inode, no new mtime."""
    assert ours.publish(lines())
    before = [(directory / name).stat() for name in (READY, TWIN)]
    assert not ours.publish(lines(now=1.8e9))
    after = [(directory / name).stat() for name in (READY, TWIN)]
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [(s.st_ino, s.st_mtime_ns) for s in before]


@pytest.mark.parametrize("other", [lines(boot="another"), lines(native=False), lines()[:-1]])
def test_anything_else_is_rewritten(other: Lines, ours: Publisher, directory: Path) -> None:
    """Another boot, another decision, one line less."""
    ours.publish(lines())
    assert ours.publish(other)
    assert (directory / READY).read_bytes() == (directory / TWIN).read_bytes()
    assert len((directory / READY).read_bytes().splitlines()) == len(other)


@pytest.mark.parametrize("damage", [b"", b"TOOLKIT_STATUS", b"\xff\xfe"])
@pytest.mark.parametrize("name", [READY, TWIN])
def test_damaged_file_is_replaced(
    name: str, damage: bytes, ours: Publisher, directory: Path
) -> None:
    """Empty, cut off, garbage: the next publication repairs it."""
    ours.publish(lines())
    whole = content(directory)
    (directory / name).write_bytes(damage)
    assert ours.publish(lines())
    assert content(directory) == whole


def test_mode_that_others_could_write_is_repaired(ours: Publisher, directory: Path) -> None:
    """Readers reject such a file, so it cannot count as published."""
    ours.publish(lines())
    (directory / TWIN).chmod(0o666)
    (directory / READY).chmod(0o666)
    ours.publish(lines())
    modes = [stat.S_IMODE((directory / name).stat().st_mode) for name in (READY, TWIN)]
    assert modes == [0o644, 0o644]


def test_link_of_that_name_is_replaced_not_followed(
    ours: Publisher, directory: Path, tmp_path: Path
) -> None:
    """Nothing is ever written where somebody's link leads."""
    directory.mkdir(parents=True)
    (tmp_path / "target").write_text("untouched")
    (directory / READY).symlink_to(tmp_path / "target")
    ours.publish(lines())
    assert (tmp_path / "target").read_text() == "untouched"
    assert not (directory / READY).is_symlink()


def test_barrier_comes_last_and_goes_first(ours: Publisher, directory: Path) -> None:
    """`toolkit-ready` is the last to come and the first to go."""
    faults = Faults.none()
    with faults.installed():
        ours.publish(lines())
    assert faults.called("rename") == [("rename", TWIN), ("rename", READY)]

    faults = Faults.none()
    with faults.installed():
        ours.withdraw()
    assert faults.called("unlink") == [("unlink", READY), ("unlink", TWIN)]
    assert content(directory) == {}


def test_rollback_restores_the_barrier_last(ours: Publisher, directory: Path) -> None:
    """A rollback brings back the old bytes in the order of a publication."""
    ours.publish(lines())
    saved, whole = ours.save(), content(directory)
    ours.withdraw()
    faults = Faults.none()
    with faults.installed():
        ours.restore(saved)
    assert faults.called("rename") == [("rename", TWIN), ("rename", READY)]
    assert content(directory) == whole


def test_rollback_makes_no_readiness(ours: Publisher, directory: Path) -> None:
    """Where there was no readiness, a rollback makes none."""
    assert ours.save() == {}
    ours.restore({})
    assert not directory.exists()


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(errno.errorcode[code]))
def test_failed_publication_leaves_no_barrier_without_its_twin(
    code: int, ours: Publisher, directory: Path
) -> None:
    """Whichever call fails: refused by name, files whole, and never a barrier without its twin."""
    ours.publish(lines())
    ours.withdraw()
    calls = count(lambda: ours.publish(lines()))
    ours.withdraw()
    expected = lines()
    told = []
    for k in range(1, calls + 1):
        try:
            with Faults.failing(k, code).installed():
                ours.publish(expected)
        except Refused as error:
            told.append(error.message)
        _whole_and_in_order(directory, expected)
        ours.publish(expected)
        assert set(content(directory)) == {TWIN, READY}
        ours.withdraw()
    assert len(told) > calls // 2
    assert all(text.startswith(f"cannot write the status file in {directory}") for text in told)


def test_killed_publication_leaves_no_barrier_without_its_twin(
    ours: Publisher, directory: Path
) -> None:
    """At no instant is there a barrier without its twin, or half a file."""
    expected = lines()
    ours.publish(expected)
    ours.withdraw()
    calls = count(lambda: ours.publish(expected))
    ours.withdraw()
    for k in range(1, calls + 1):
        with pytest.raises(Killed), Faults.killed(k).installed():
            ours.publish(expected)
        _whole_and_in_order(directory, expected)
        ours.publish(expected)
        with pytest.raises(Killed), Faults.killed(min(k, 4)).installed():
            ours.withdraw()
        _whole_and_in_order(directory, expected)
        ours.withdraw()


def _whole_and_in_order(directory: Path, expected: Lines) -> None:
    text = "".join(f"{key}={value}\n" for key, value in expected).encode()
    found = {name: data for name, data in content(directory).items() if not name.endswith("~")}
    assert set(found.values()) <= {text}
    assert READY not in found or TWIN in found


# --- failures beside it ------------------------------------------------------------------------


def test_failure_is_told_beside_and_goes_with_success(ours: Publisher, directory: Path) -> None:
    """Three lines of the same format; readiness stays as it is."""
    ours.publish(lines())
    ready = content(directory)
    ours.publish_error(RolledBack("cannot apply: it died\nof 'this'"))
    told = content(directory).pop(ERROR).decode()
    assert told == (
        "TOOLKIT_ERROR_CODE=ROLLED_BACK\nTOOLKIT_ERROR_EXIT=5\n"
        "TOOLKIT_ERROR_REASON=cannot_apply:_it_died_of__this_\n"
    )
    assert {k: v for k, v in content(directory).items() if k != ERROR} == ready
    assert ours.publish(lines(now=1.9e9))
    assert content(directory) == ready


def test_failure_goes_before_the_barrier_comes(ours: Publisher, directory: Path) -> None:
    """Who waits for readiness finds no failure beside it."""
    ours.publish_error(RolledBack("cannot apply"))
    faults = Faults.none()
    with faults.installed():
        ours.publish(lines())
    calls = faults.called("rename", "unlink")
    assert calls == [("rename", TWIN), ("unlink", ERROR), ("rename", READY)]


def test_same_failure_is_not_rewritten(ours: Publisher, directory: Path) -> None:
    """Telling it again each minute touches nothing."""
    ours.publish_error(RolledBack("cannot apply"))
    before = (directory / ERROR).stat()
    ours.publish_error(RolledBack("cannot apply"))
    after = (directory / ERROR).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_retired_leaves_nothing(ours: Publisher, directory: Path) -> None:
    """After a revert there is neither readiness nor failure."""
    ours.publish(lines())
    ours.publish_error(RolledBack("cannot apply"))
    ours.withdraw()
    ours.remove_error()
    assert content(directory) == {}
    ours.withdraw()
    ours.remove_error()


def test_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """By name."""
    (tmp_path / "validations").touch()
    with pytest.raises(Refused, match=r"^cannot write the status file in .*/validations: "):
        Publisher(str(tmp_path / "validations")).publish(lines())
