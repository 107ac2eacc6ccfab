"""A part of the suite passes on a machine that has everything in its way, and beside another suite.

What is in the way is in `tests/anywhere/place.py`: CDI specs, runtimes' files, mounts, devices and
processes of the machine (as root), variables, signals that are ignored or blocked, a closed
standard input, few descriptors, umask, language, home directory, and TMPDIR. The tests that run
there were each seen to fail for one of these. With --long whole folders run, and half of the
modules of units, others for each commit.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.anywhere import place
from tests.sampling import sample
from tests.tools.runtimes import CACHE_VARIABLE, ROOT

_TESTS = (
    "tests/unit/doubles/test_supervisor.py",  # ended by a signal
    "tests/unit/options/test_settings.py",  # variables
    "tests/unit/runtimes/test_command.py",
    "tests/cli/test_cdi.py::test_node_without_specs_has_no_problem",  # specs and mounts
    # long names of sockets
    "tests/cli/test_host_root.py::test_everything_written_lies_inside_the_host_root",
    "tests/cli/test_toolkit.py::test_packages_are_installed_whole_and_nothing_else",  # modes
    "tests/cli/test_toolkit.py::test_removed_toolkit_of_the_host_takes_readiness_away",  # processes
    "tests/cli/test_run.py::test_stop_while_waiting_ends_at_once",
    # a real runtime's own directories
    "tests/conformance/test_cdi.py::test_later_directory_wins_unless_an_earlier_one_conflicts[2.1]",
)
# Half of the time of its folder, and nothing but texts and trees that it makes itself.
_NO_MACHINE = {
    *("cdi/make/test_transform.py", "test_import_rules.py", "toolkit/test_place.py"),
    "toml/test_edit_properties.py",
}
_UNIT = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/unit/**/test_*.py")} - {
    f"tests/unit/{name}" for name in _NO_MACHINE
}
_LONG = (
    *sample(sorted(_UNIT), len(_UNIT) // 2, "anywhere"),
    *("tests/operator", "tests/conformance/test_cdi.py"),
    *("tests/cli/test_cdi.py", "tests/cli/test_foreign.py", "tests/cli/test_host_root.py"),
    *("tests/cli/test_run.py", "tests/cli/test_toolkit.py", "tests/cli/test_device_nodes.py"),
)
# Parts that the second suite runs without.
_LEFT_OUT = ("tmpdir", "umask", "home", *(part.__name__ for part in place.PARTS_OF_ROOT))


def start(
    log: Path, without: Sequence[str], tests: Sequence[str], env: Mapping[str, str], umask: int
) -> subprocess.Popen[bytes]:
    """Start these tests in such a place; what they say goes to `log`."""
    pytest_words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*place.COMMAND, "--without", ",".join(without), *pytest_words, *tests],
            cwd=ROOT, env=env, umask=umask, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def passes(process: subprocess.Popen[bytes], log: Path) -> int:
    """All that ran has passed; gives how many that were."""
    code = process.wait(1500)  # on two cores, beside the rest of the suite
    said = log.read_text("utf-8", "replace")
    assert code == 0, said[-6000:]
    found = re.search(r"(\d+) passed", said)
    assert found, said
    return int(found[1])


def both(directory: Path, tests: Sequence[str]) -> int:
    """Run these tests in two places at the same time; gives how many have passed in the worse."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    bare = {name: env[name] for name in env if name in ("PATH", CACHE_VARIABLE)}
    logs = directory / "whole.log", directory / "beside.log"
    whole = start(logs[0], (), tests, env, 0o022)
    beside = start(logs[1], _LEFT_OUT, tests, bare, 0)
    try:
        return min(passes(whole, logs[0]), passes(beside, logs[1]))
    finally:
        for process in (whole, beside):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it, and all that it has started
                process.wait()


def test_sensitive_tests_pass_on_a_hostile_machine(tmp_path: Path) -> None:
    """Each of these tests depended on one of these things once."""
    assert both(tmp_path, _TESTS) > 300


@pytest.mark.long
@pytest.mark.timeout(1600)  # more than the limit of `passes`
def test_whole_folders_pass_on_a_hostile_machine(tmp_path: Path) -> None:
    """What depends on something new is found here."""
    assert both(tmp_path, _LONG) > 1000
