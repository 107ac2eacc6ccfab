"""How the tests come by real runtimes: what is read from apt, what is chosen, what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import fetch_runtimes, private_apt
from tests.tools.fetch_runtimes import NotHere
from tests.tools.private_apt import Catalogue, Offer, PrivateApt, Source
from tests.tools.runtimes import ROOT, WANTED, Inventory, Runtime, load

DEB822 = """\
# made by an installer
Types: deb deb-src
# a comment between fields
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://mirror.invalid/off
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://mirror.invalid/source
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://mirror.invalid/commented bookworm main
deb-src http://mirror.invalid/source bookworm main
deb [ arch=amd64 signed-by=/k.gpg trusted=yes ] http://mirror.invalid/debian bookworm main # why
"""
MADISON = """\
containerd | 2.1.9+ds1-5 | http://mirror.invalid/debian sid/main amd64 Packages
containerd | 1.7.24~ds1-6+deb13u1 | http://mirror.invalid/debian trixie/main amd64 Packages
containerd | 1.7.24~ds1-6 | http://mirror.invalid/debian trixie/main Sources
"""


def test_deb822_sources_are_read() -> None:
    (source,) = private_apt.parse_deb822(DEB822)
    assert source == Source(
        uri="http://mirror.invalid/debian",
        suites=("bookworm", "bookworm-updates"),
        components=("main", "contrib"),
        signed_by="/usr/share/keyrings/debian.gpg",
    )


def test_one_line_sources_are_read() -> None:
    (source,) = private_apt.parse_one_line(ONE_LINE)
    assert source == Source(
        uri="http://mirror.invalid/debian",
        suites=("bookworm",),
        components=("main",),
        signed_by="/k.gpg",
        trusted=True,
    )


def test_distribution_itself_comes_before_other_repositories(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "debian.sources").write_text(DEB822)
    (parts / "a-vendor.list").write_text("deb http://vendor.invalid/ bookworm main\n")
    (parts / "off.list.disabled").write_text("deb http://off.invalid/ bookworm main\n")
    uris = [s.uri for s in private_apt.machine_sources(tmp_path, "debian")]
    assert uris == ["http://mirror.invalid/debian", "http://vendor.invalid/"]


def test_own_archive_is_not_the_one_for_security() -> None:
    security = Source("http://s.invalid", ("stable-security",), ("main",))
    cdrom = Source("cdrom:[x]/", ("stable",), ("main",))
    other = Source("http://o.invalid", ("stable",), ("contrib",))
    main = Source("http://m.invalid", ("stable", "stable-updates"), ("main",))
    plain = Source("http://p.invalid", ("stable",), ("main",))
    assert private_apt.own_archive([security, cdrom, other, main], "stable") == main
    assert private_apt.own_archive([security, plain], "bookworm") == plain
    assert private_apt.own_archive([security, cdrom, other], "bookworm") is None


def test_key_in_a_source_becomes_a_keyring(tmp_path: Path) -> None:
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc=\n -----END PGP PUBLIC KEY BLOCK-----"
    (source,) = private_apt.parse_deb822(f"{DEB822.partition('Signed')[0]}Signed-By:{key}\n")
    PrivateApt(tmp_path, source, ["trixie"])
    keyring = (tmp_path / "keyring.asc").read_text().splitlines()
    assert keyring[0] == "-----BEGIN PGP PUBLIC KEY BLOCK-----"
    assert keyring[1:3] == ["", "abc="]
    line = f"deb [target=Packages signed-by={tmp_path}/keyring.asc] {source.uri} trixie main\n"
    assert (tmp_path / "sources.list").read_text() == line


def test_private_apt_writes_below_its_folder_only(tmp_path: Path) -> None:
    PrivateApt(tmp_path, Source("http://m.invalid", ("sid",), ("main",)), ["sid"])
    settings = (tmp_path / "apt.conf").read_text().splitlines()
    folders = [line for line in settings if line.startswith("Dir::")]
    assert all(f'"{tmp_path}/' in line or '"/dev/null"' in line for line in folders)
    assert any(line.startswith("Dir::State::Lists ") for line in folders)


def test_offers_are_read() -> None:
    assert private_apt.parse_madison(MADISON) == (
        Offer("containerd", "2.1.9+ds1-5", "sid"),
        Offer("containerd", "1.7.24~ds1-6+deb13u1", "trixie"),
    )


def test_missing_suite_is_no_problem_and_a_missing_network_is() -> None:
    text = """\
W: Key is stored in legacy trusted.gpg keyring
W: Failed to fetch http://m.invalid/InRelease  Temporary failure resolving 'm.invalid'
E: The repository 'http://m.invalid nosuch Release' does not have a Release file.
"""
    (problem,) = private_apt.parse_problems(text)
    assert problem.startswith("Failed to fetch")


@pytest.mark.parametrize(
    ("package", "upstream", "generation"),
    [
        ("1.6.20~ds1-1+deb12u3", "1.6.20~ds1", "1.6"),
        ("2.1.9+ds1-5", "2.1.9+ds1", "2.1"),
        ("1:1.7.12-0ubuntu2~24.04.1", "1.7.12", "1.7"),
        ("10.0.1", "10.0.1", "10.0"),
    ],
)
def test_package_has_the_generation_of_its_version(
    package: str, upstream: str, generation: str
) -> None:
    assert fetch_runtimes.upstream_version(package) == upstream
    assert list(fetch_runtimes.by_generation([Offer("containerd", package, "s")])) == [generation]


def test_too_old_and_nameless_versions_are_left_out() -> None:
    offers = [Offer("containerd", version, "s") for version in ("1.5.9-0ubuntu3", "git-1")]
    assert fetch_runtimes.by_generation(offers) == {}


class FakeApt(PrivateApt):
    """Unpacks programs that end with the status that their version names."""

    def __init__(self) -> None:
        self.unpacked: list[str] = []

    def unpack(self, offer: Offer, target: Path) -> None:
        """Write a program in place of a package's."""
        self.unpacked.append(offer.version)
        program = target / "usr/bin" / offer.package
        program.parent.mkdir(parents=True)
        status = 0 if "good" in offer.version else 1
        program.write_text(f"#!/bin/sh\necho needs a newer C library >&2\nexit {status}\n")
        program.chmod(0o755)


def test_newest_offer_that_runs_is_taken(tmp_path: Path) -> None:
    apt = FakeApt()
    offers = [Offer("containerd", v, "s") for v in ("1.7.3-bad", "1.7.2-good", "1.7.1-good")]
    offer, program = fetch_runtimes.first_that_runs(apt, offers, tmp_path)
    assert offer.version == "1.7.2-good"
    assert program == tmp_path / "containerd-1.7.2-good/usr/bin/containerd"
    assert apt.unpacked == ["1.7.3-bad", "1.7.2-good"]


def test_what_is_unpacked_is_not_downloaded_again(tmp_path: Path) -> None:
    apt = FakeApt()
    offers = [Offer("containerd", "1.7.2-good", "s")]
    first = fetch_runtimes.first_that_runs(apt, offers, tmp_path)
    assert fetch_runtimes.first_that_runs(apt, offers, tmp_path) == first
    assert apt.unpacked == ["1.7.2-good"]
    first[1].unlink()
    assert fetch_runtimes.first_that_runs(apt, offers, tmp_path) == first
    assert apt.unpacked == ["1.7.2-good", "1.7.2-good"]


def test_offer_that_does_not_run_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=r"1\.7\.3-bad does not run here: needs a newer C"):
        fetch_runtimes.first_that_runs(FakeApt(), [Offer("containerd", "1.7.3-bad", "s")], tmp_path)


CATALOGUE = Catalogue(
    (
        Offer("containerd", "2.1.9-good", "sid"),
        Offer("containerd", "1.7.3-good", "bookworm"),
        Offer("runc", "1.3-good", "sid"),
        Offer("runc", "1.1-good", "bookworm"),
    )
)


def test_each_generation_is_unpacked_with_the_runc_of_this_machine(tmp_path: Path) -> None:
    inventory = fetch_runtimes.unpack_all(FakeApt(), CATALOGUE, "bookworm", tmp_path)
    assert [r.version for r in inventory.runtimes] == ["1.7.3", "2.1.9"]
    assert {r.runc for r in inventory.runtimes} == {tmp_path / "runc-1.1-good/usr/bin/runc"}
    assert inventory.unavailable == {"1.6": "not offered by any suite that was asked"}
    assert inventory.final


def test_gap_is_not_final_while_a_suite_is_unread(tmp_path: Path) -> None:
    catalogue = Catalogue(CATALOGUE.offers, ("Failed to fetch x",))
    inventory = fetch_runtimes.unpack_all(FakeApt(), catalogue, "bookworm", tmp_path)
    assert inventory.unavailable == {"1.6": "Failed to fetch x"}
    assert not inventory.final


def unpacked(cache: Path, *generations: str) -> tuple[Runtime, ...]:
    """Return runtimes of these generations, with files in place."""
    runtimes = []
    for generation in generations:
        program = cache / f"containerd-{generation}" / "containerd"
        program.parent.mkdir(parents=True)
        program.touch()
        runtimes.append(Runtime("containerd", f"{generation}.9", generation, program, program))
    return tuple(runtimes)


def test_inventory_is_read_back_where_the_cache_has_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    inventory = Inventory(unpacked(before, "1.7"), {"1.6": "not offered"}, final=True)
    fetch_runtimes.save(inventory, before)
    before.rename(after)
    found = load(after)
    assert found.find("1.7") == Runtime(
        "containerd",
        "1.7.9",
        "1.7",
        after / "containerd-1.7/containerd",
        after / "containerd-1.7/containerd",
    )
    assert found.find("1.6") is None
    assert found.reason("1.6") == "no containerd 1.6: not offered"
    assert found.final


def test_distribution_is_asked_again_only_where_that_can_help(tmp_path: Path) -> None:
    full = Inventory(unpacked(tmp_path / "a", *WANTED))
    assert fetch_runtimes.settled(full)
    part = unpacked(tmp_path / "b", "1.7")
    assert fetch_runtimes.settled(Inventory(part, {"1.6": "not offered"}, final=True))
    assert not fetch_runtimes.settled(Inventory(part, {"1.6": "no network"}))
    assert not fetch_runtimes.settled(Inventory())
    full.runtimes[0].executable.unlink()
    assert not fetch_runtimes.settled(full)


def test_refresh_without_a_network_keeps_what_there_is(tmp_path: Path) -> None:
    old = Inventory(unpacked(tmp_path, "1.6", "2.1"))
    new = Inventory(unpacked(tmp_path / "new", "1.7"), dict.fromkeys(("1.6", "1.8"), "no network"))
    merged = fetch_runtimes.with_older(new, old)
    assert [r.generation for r in merged.runtimes] == ["1.6", "1.7", "2.1"]
    assert merged.unavailable == {"1.8": "no network"}


def run_pytest(tmp_path: Path, *arguments: str) -> str:
    """Run three tests under the shared conftest, with an empty cache; return what is printed."""
    (tmp_path / "test_sample.py").write_text(
        "import pytest\n"
        "@pytest.mark.real('1.7')\n"
        "def test_real(): pass\n"
        "@pytest.mark.long\n"
        "def test_long(): pass\n"
        "def test_plain(): pass\n"
    )
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", f"{ROOT}/pyproject.toml"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"{tmp_path}/test_sample.py", *arguments],
        env={**os.environ, "TOOLKIT_AGENT_TEST_CACHE": str(tmp_path), "TOOLKIT_AGENT_LONG": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_skipped_tests_say_how_they_can_run(tmp_path: Path) -> None:
    text = run_pytest(tmp_path)
    assert "1 passed, 2 skipped" in text
    assert "long: run tests/run --long" in text
    if os.geteuid() == 0:
        assert "no containerd 1.7: not fetched, run tests/run" in text
        assert "real runtimes used: none (no containerd 2.1: not fetched" in text
    else:
        assert "real runtimes used: none (not root)" in text


def test_long_tests_are_run_on_demand_only(tmp_path: Path) -> None:
    assert "2 passed, 1 skipped" in run_pytest(tmp_path, "--long")


def test_setup_without_a_fitting_python_says_what_to_install(tmp_path: Path) -> None:
    for name in ("sh", "dirname", "env"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / name).symlink_to(program)
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # its answer to "are you 3.11 or newer?"
    old.chmod(0o755)
    done = subprocess.run(
        [ROOT / "tests/tools/setup"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "setup: cannot find Python 3.11 or newer; on Debian and Ubuntu: apt-get install python3\n"
    )
