"""Packages of the distribution, downloaded and unpacked without touching the system.

An apt of our own: its configuration, lists and status lie in one private folder, so it needs no
root and cannot install anything. It asks the mirror that the machine's own sources name, signatures
checked with the keyring that they name, for more suites than the machine itself uses.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What apt says of a suite that the mirror does not carry: an answer, not a failure.
ABSENT_SUITE = "does not have a Release file"

# The machine's hooks look after the system's own cache and lists; ours are none of their business.
# Its pins are for what it installs, its proxies and certificates (not named here) stay in force.
CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{folder}/state";
Dir::State::Lists "{folder}/state/lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""


class AptError(Exception):
    """Apt or dpkg could not do it; the message says why."""


@dataclass(frozen=True)
class Source:
    """One archive out of apt's sources; `signed_by` is a path, a fingerprint or a whole key."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    trusted: bool = False


@dataclass(frozen=True)
class Offer:
    """One version of one package, and the suite that has it."""

    package: str
    version: str
    suite: str


@dataclass(frozen=True)
class Catalogue:
    """What there is, newest first, and what went wrong while asking."""

    offers: tuple[Offer, ...]
    problems: tuple[str, ...] = field(default=())

    def of(self, package: str) -> tuple[Offer, ...]:
        """Return the offers of one package, newest first."""
        return tuple(offer for offer in self.offers if offer.package == package)


def parse_one_line(text: str) -> list[Source]:
    """Read the older format (`sources.list(5)`, ONE-LINE-STYLE): one archive and suite a line."""
    entry = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<words>.+)")
    sources = []
    for line in text.splitlines():
        match = entry.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(o.partition("=")[::2] for o in (match["options"] or "").split())
        suite, *components = match["words"].split()
        sources.append(
            Source(
                uri=match["uri"],
                suites=(suite,),
                components=tuple(components),
                signed_by=options.get("signed-by", ""),
                trusted=options.get("trusted") == "yes",
            )
        )
    return sources


def parse_deb822(text: str) -> list[Source]:
    """Read the newer format (`sources.list(5)`, DEB822-STYLE): stanzas of `Field: value`."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    sources = []
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        # A line that starts with a space continues the field above it.
        joined = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t]+.*)*)", stanza, flags=re.MULTILINE)
        fields = {name.lower(): value.strip() for name, value in joined}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled") == "no":
            continue
        sources += [
            Source(
                uri=uri,
                suites=tuple(fields.get("suites", "").split()),
                components=tuple(fields.get("components", "").split()),
                signed_by=fields.get("signed-by", ""),
                trusted=fields.get("trusted") == "yes",
            )
            for uri in fields.get("uris", "").split()
        ]
    return sources


def machine_sources(etc_apt: Path, distribution: str) -> list[Source]:
    """Read the machine's sources; the distribution's own files come first."""
    parts = sorted((etc_apt / "sources.list.d").glob("*"))
    parts.sort(key=lambda path: path.stem != distribution)
    sources = []
    for path in [etc_apt / "sources.list", *parts]:
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(path.suffix)
        if parse is not None and path.is_file():
            sources += parse(path.read_text(encoding="utf-8", errors="replace"))
    return sources


def own_archive(sources: Iterable[Source], codename: str) -> Source | None:
    """Pick the archive that the distribution itself comes from: `main` of the machine's suite."""
    archives = [
        source
        for source in sources
        if "main" in source.components and not source.uri.startswith("cdrom:")
    ]
    named = [source for source in archives if codename in source.suites]
    # "stable" and the like name no codename; "bookworm-security" is another archive.
    plain = [s for s in archives if not any("-" in x or "/" in x for x in s.suites)]
    return next(iter(named + plain), None)


class PrivateApt:
    """Apt over `suites` of one archive; all that it writes is below `folder`, which may go after.

    `folder` has to be on the file system that packages are unpacked to.
    """

    def __init__(
        self, folder: Path, archive: Source, suites: Sequence[str], components: str = "main"
    ) -> None:
        self.folder = folder
        self.configuration = folder / "apt.conf"
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state/status").touch()  # nothing is installed, as far as this apt knows
        options = ["target=Packages"]
        if archive.trusted:
            options.append("trusted=yes")
        if archive.signed_by:
            options.append(f"signed-by={_keyring(archive.signed_by, folder)}")
        where = f"deb [{' '.join(options)}] {archive.uri}"
        (folder / "sources.list").write_text("".join(f"{where} {s} {components}\n" for s in suites))
        self.configuration.write_text(CONFIGURATION.format(folder=folder))

    def _run(
        self, *arguments: str, cwd: Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        program, *rest = arguments
        return run_command([program, "-c", str(self.configuration), *rest], cwd, timeout)

    def catalogue(self, packages: Sequence[str]) -> Catalogue:
        """Ask the archive; a suite that it does not have is no problem."""
        update = self._run("apt-get", "-q", "update")
        madison = self._run("apt-cache", "madison", *packages)
        return Catalogue(parse_madison(madison.stdout), parse_problems(update.stderr))

    def unpack(self, offer: Offer, target: Path) -> None:
        """Download and unpack one package into `target`, which appears complete or not at all."""
        work = Path(tempfile.mkdtemp(dir=self.folder))
        work.chmod(0o755)  # it becomes the target, which others than its maker may read
        wanted = f"{offer.package}={offer.version}"
        result = self._run("apt-get", "-q", "download", wanted, cwd=work, timeout=600)
        archives = list(work.glob("*.deb"))
        if result.returncode != 0 or len(archives) != 1:
            raise AptError(f"cannot download {wanted}: {last_line(result.stderr)}")
        extract = run_command(["dpkg", "-x", str(archives[0]), str(work)])
        if extract.returncode != 0:
            raise AptError(f"cannot unpack {wanted}: {last_line(extract.stderr)}")
        archives[0].unlink()
        work.rename(target)


def parse_madison(text: str) -> tuple[Offer, ...]:
    """Read `apt-cache madison`: `package | version | uri suite/component arch Packages`."""
    offers = []
    for line in text.splitlines():
        columns = [column.strip() for column in line.split("|")]
        if len(columns) == 3 and columns[2].endswith("Packages"):
            suite = columns[2].split()[-3].partition("/")[0]
            offers.append(Offer(columns[0], columns[1], suite))
    return tuple(offers)


def parse_problems(text: str) -> tuple[str, ...]:
    """Read what `apt-get update` could not fetch; warnings about a keyring's age do not count."""
    failures = re.findall(r"^(?:E: |W: (?=Failed to fetch|GPG error))(.*)", text, re.MULTILINE)
    return tuple(failure for failure in failures if ABSENT_SUITE not in failure)


def run_command(
    argv: Sequence[str], cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a program that must not ask anything, with messages that can be parsed."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            argv,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AptError(f"cannot run {argv[0]}: {error}") from error


def last_line(text: str) -> str:
    """Return the line in which a program usually says what was wrong."""
    return next(reversed(text.strip().splitlines()), "no message")


def _keyring(signed_by: str, folder: Path) -> str:
    """Return what `signed-by=` takes in a one-line source: a whole key goes into a file."""
    if "BEGIN PGP PUBLIC KEY BLOCK" not in signed_by:
        return signed_by.replace(" ", ",")
    # DEB822 indents the key and writes an empty line as a dot.
    lines = [line.strip() for line in signed_by.splitlines()]
    path = folder / "keyring.asc"
    path.write_text("\n".join("" if line == "." else line for line in lines) + "\n")
    return str(path)
