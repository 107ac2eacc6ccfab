"""Programs that the machine lacks: what is fetched, what is asked again, and what is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tools import host_tools
from tests.tools.fetch_runtimes import NotHere
from tests.tools.host_tools import Tool
from tests.tools.nobody import as_nobody
from tests.tools.private_apt import Catalogue, Offer, Source
from tests.tools.runtimes import CACHE_VARIABLE, ROOT

ARCHIVE = Source("http://m.invalid", ("trixie",), ("main",))
KNOWN = Tool(("odd-program",), "odd-package", "this test", "usr/bin/odd", ("odd-parts", "more"))


class Distribution:
    """Stands for apt: which packages there are, and how often it was asked."""

    def __init__(self) -> None:
        self.has: dict[str, str] = {"odd-parts": "own", "more": "own"}
        self.problems: tuple[str, ...] = ()
        self.works = True
        self.asked = 0
        self.unpacked: list[Offer] = []

    def __call__(self, folder: Path, archive: Source, suites: Sequence[str]) -> Distribution:
        self.asked += 1
        return self

    def catalogue(self, packages: Sequence[str]) -> Catalogue:
        suites = [(p, s) for p in packages for s in self.has.get(p, "").split()]
        return Catalogue(tuple(Offer(p, f"1-{s}", s) for p, s in suites), self.problems)

    def unpack(self, offer: Offer, target: Path) -> None:
        """One of the packages has the program."""
        self.unpacked.append(offer)
        target.mkdir()
        if offer.package == "odd-parts":
            program = target / "usr/bin/odd"
            program.parent.mkdir(parents=True)
            program.write_text(f"#!/bin/sh\necho broken >&2; exit {int(not self.works)}\n")
            program.chmod(0o755)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Distribution:
    """An empty cache, and one program that no machine has."""
    made = Distribution()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(host_tools, "PrivateApt", made)
    monkeypatch.setattr(host_tools, "archive_and_suites", lambda: (ARCHIVE, ("own", "other")))
    use(monkeypatch, KNOWN)
    return made


def use(monkeypatch: pytest.MonkeyPatch, known: Tool) -> None:
    monkeypatch.setattr(host_tools, "_TOOLS", (known,))
    monkeypatch.setattr(host_tools, "_BY_NAME", {known.name: known})


def test_what_is_missing_is_unpacked_once(
    there: Distribution, capfd: pytest.CaptureFixture[str]
) -> None:
    assert host_tools.tool("odd-program") is None
    assert host_tools.main(["odd-program"]) == 0
    found = host_tools.tool("odd-program")
    assert found is not None
    assert found.is_file()
    assert capfd.readouterr().out == f"{found}\n"
    assert host_tools.unpacked("odd-program", "more").is_dir()
    assert host_tools.main([]) == 0
    assert there.asked == 1
    assert capfd.readouterr() == ("", "")


def test_what_the_machine_has_is_not_fetched(
    there: Distribution, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "odd-program"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert host_tools.main([]) == 0
    assert (host_tools.tool("odd-program"), there.asked) == (own, 0)
    # One that is not good enough is no program at all.
    own.write_text("#!/bin/sh\nexit 1\n")
    use(monkeypatch, Tool(**{**vars(KNOWN), "trial": ("--version",)}))
    assert host_tools.main([]) == 0
    assert (host_tools.tool("odd-program") == own, there.asked) == (False, 1)


def test_own_suite_is_taken_before_a_newer_one(there: Distribution) -> None:
    there.has = {"odd-parts": "newer own", "more": "newer"}
    assert host_tools.main([]) == 0
    assert [offer.suite for offer in there.unpacked] == ["own", "newer"]


@pytest.mark.parametrize(
    ("problems", "why", "asked"),
    [((), "the distribution has no more", 1), (("no network",), "no network", 2)],
)
def test_gap_is_said_and_asked_again_where_that_can_help(
    there: Distribution, problems: tuple[str, ...], why: str, asked: int,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    del there.has["more"]
    there.problems = problems
    assert [host_tools.main([]), host_tools.main(["odd-program"])] == [0, 1]
    assert there.asked == asked
    said = capfd.readouterr().err.splitlines()
    line = f"no odd-program: {why}; on Debian and Ubuntu: apt-get install odd-package"
    assert said[-1] == f"host_tools: {line} (for this test)"
    assert host_tools.reason("odd-program") == line


def test_program_that_does_not_work_is_not_kept(
    there: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.works = False
    use(monkeypatch, Tool(**{**vars(KNOWN), "trial": ("--version",)}))
    assert host_tools.main([]) == 0
    assert host_tools.tool("odd-program") is None
    assert "it does not work: broken; on Debian" in host_tools.reason("odd-program")


def test_other_distribution_is_refused_with_a_reason(
    there: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> None:
        raise NotHere("this machine is neither Debian nor Ubuntu")

    monkeypatch.setattr(host_tools, "archive_and_suites", nowhere)
    assert host_tools.main(["odd-program"]) == 1
    assert "neither Debian nor Ubuntu; on" in host_tools.reason("odd-program")
    assert there.asked == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else: run tests/run")
def test_fresh_root_without_root_is_refused() -> None:
    words = [*as_nobody(), sys.executable, "-m", "tests.tools.fresh_root", "trixie", "true"]
    env = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    said = "fresh_root: cannot make a fresh system: it needs root: run it as root\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", said)
