"""Sixty thousand names in a directory that is watched or read.

The attacker may write one spec directory. He makes so many names that looking at each of them,
twice a second, takes a quarter of a core. Beyond a bounded number of names the time of the
directory stands for them all; a warning names the directory; our own spec is right all the same.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from agent.cdi.specs import installed, spec_files
from agent.daemon import supervisor
from agent.daemon.supervisor import signature
from agent.host import budget, files
from agent.host.paths import HostPath, HostRoot

MANY = 60_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with that many empty specs."""
    directory = tmp_path_factory.mktemp("crowded")
    for number in range(MANY):
        os.close(os.open(directory / f"a{number}.yaml", os.O_CREAT | os.O_WRONLY))
    moment = time.time() - 10
    os.utime(directory, (moment, moment))
    return directory


@pytest.mark.parametrize("entry", ["!k8s.*", "a*"])
def test_waiting_beside_a_crowded_directory_needs_little_processor_time(
    crowded: Path, entry: str
) -> None:
    """Twenty looks, which are ten seconds of waiting: less than 1 % of a core."""
    name = os.fsencode(f"{entry}{crowded}")
    first = signature(name)
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert all(signature(name) == first for _ in range(20))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.1


@pytest.mark.parametrize("entry", ["!k8s.*", "a*"])
def test_time_of_the_directory_stands_for_its_names(crowded: Path, entry: str) -> None:
    name = os.fsencode(f"{entry}{crowded}")
    first = signature(name)
    (crowded / "new.yaml").touch()
    try:
        assert signature(name) != first
    finally:
        (crowded / "new.yaml").unlink()


def test_names_that_do_not_count_are_not_listed_for_ever(tmp_path: Path) -> None:
    """A DRA driver has a file for each claim, and these do not count."""
    for number in range(supervisor._MOST_COUNTED + 10):
        (tmp_path / f"k8s.{number}.yaml").touch()
    (tmp_path / "one.yaml").touch()
    found = signature(os.fsencode(f"!k8s.*{tmp_path}"))
    assert isinstance(found, list)
    assert len(found) == 1


def test_bounded_number_of_specs_is_read(crowded: Path) -> None:
    """A bounded number is read, those that may be of our kinds first, and the rest is told."""
    (crowded / "zz.nvidia.com-gpu.yaml").write_text("kind: nvidia.com/gpu\n")
    told: list[str] = []
    place = HostPath(str(crowded), str(crowded))
    try:
        found = [path.name for path, _ in spec_files.entries(HostRoot("/"), place, told)]
    finally:
        (crowded / "zz.nvidia.com-gpu.yaml").unlink()
    assert len(found) == budget.SPEC_FILES
    assert "zz.nvidia.com-gpu.yaml" in found
    assert [str(crowded) in text for text in told] == [True]


def test_inventory_of_a_crowded_directory_is_bounded(crowded: Path) -> None:
    place = HostPath(str(crowded), str(crowded))
    directory = spec_files.Directory(str(crowded), place)
    assert len(installed.specs(HostRoot("/"), [directory])) == budget.SPEC_FILES
    [(name, problem)] = spec_files.unreadable([directory])
    assert name == str(crowded)
    assert "not all were looked at" in problem.what


def test_large_specs_together_are_bounded(tmp_path: Path) -> None:
    """Each is within its budget, all together are not."""
    for number in range(10):
        (tmp_path / f"{number}.yaml").write_bytes(b"# " + b"x" * (1 << 20))
    told: list[str] = []
    place = HostPath(str(tmp_path), str(tmp_path))
    found = list(spec_files.entries(HostRoot("/"), place, told))
    assert sum(len(data) for _, data in found) <= budget.SPECS.size
    assert len(found) + len(told) == 10
    assert all(str(tmp_path) in text for text in told)


def test_no_directory_is_listed_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever all names are needed, too many are an error in one line."""
    for number in range(4):
        (tmp_path / str(number)).touch()
    assert len(files.names(str(tmp_path))) == 4
    with pytest.raises(OSError, match=r"^it has more than 3 names"):
        files.names(str(tmp_path), budget.Budget(size=0, values=3))
