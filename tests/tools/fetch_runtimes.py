"""Unpack the distribution's containerd packages, one of each generation, into a private cache.

    python -m tests.tools.fetch_runtimes [--refresh]

Nothing is installed: a container runtime in the system would start services and can push out a
user's Docker. Versions are found, not chosen: of each generation (1.6, 1.7, 2.1 and whatever is
newer) the newest that any suite of the distribution has and that runs here. What cannot be had is
written down with its reason; that is never an error, because tests say what they skip. Any Python
from 3.11 on will do, without root and without other packages.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.tools.private_apt import (
    AptError,
    Catalogue,
    Offer,
    PrivateApt,
    Source,
    last_line,
    machine_sources,
    own_archive,
    run_command,
)
from tests.tools.runtimes import WANTED, Inventory, Runtime, cache_directory, load

# Where the generations are. A suite that the mirror does not have is passed over, so that names
# can stay here after a suite has gone, and stand here before it is there.
SUITES = {
    "debian": ("bookworm", "trixie", "forky", "sid"),
    "ubuntu": tuple(
        name + pocket
        for name in ("jammy", "noble", "questing", "resolute")
        for pocket in ("", "-updates")
    ),
}
OLDEST = (1, 6)


class NotHere(Exception):
    """The distribution has nothing that fits this machine; asking again will not help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the cache, say what is there, and return 0."""
    parser = argparse.ArgumentParser(description="Unpack containerd packages for the tests.")
    parser.add_argument("--refresh", action="store_true", help="look for newer versions")
    refresh = parser.parse_args(arguments).refresh
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        inventory = load(cache)
        if refresh or not settled(inventory):
            print("fetch_runtimes: asking the distribution for containerd", file=sys.stderr)
            inventory = with_older(fetch(cache), inventory)
            save(inventory, cache)
    found = [f"{r.name} {r.version}" for r in inventory.runtimes]
    print(f"fetch_runtimes: {', '.join(found) or 'no runtime'}", file=sys.stderr)
    for generation in inventory.unavailable:
        print(f"fetch_runtimes: {inventory.reason(generation)}", file=sys.stderr)
    return 0


def settled(inventory: Inventory) -> bool:
    """Whether what is there can be used as it is: no file is gone, no gap may yet be filled."""
    found = {r.generation for r in inventory.runtimes if r.usable}
    complete = inventory.final or found >= set(WANTED)
    return complete and len(found) == len(inventory.runtimes)


def with_older(new: Inventory, old: Inventory) -> Inventory:
    """Keep what an earlier run unpacked where this one, offline perhaps, found nothing."""
    found = {r.generation for r in new.runtimes}
    kept = [r for r in old.runtimes if r.usable and r.generation not in found]
    runtimes = sorted([*new.runtimes, *kept], key=lambda r: version_numbers(r.generation))
    known = {r.generation for r in runtimes}
    missing = {g: why for g, why in new.unavailable.items() if g not in known}
    return Inventory(tuple(runtimes), missing, new.final)


def fetch(cache: Path) -> Inventory:
    """Ask, download, unpack and try; whatever goes wrong ends up as a reason."""
    for leftover in cache.glob(".apt-*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        archive, suites = archive_and_suites()
        with tempfile.TemporaryDirectory(dir=cache, prefix=".apt-") as folder:
            apt = PrivateApt(Path(folder), archive, suites)
            return unpack_all(apt, apt.catalogue(["containerd", "runc"]), suites[0], cache)
    except (AptError, NotHere, OSError) as error:
        final = isinstance(error, NotHere)
        return Inventory((), dict.fromkeys(WANTED, one_line(error)), final)


def archive_and_suites() -> tuple[Source, tuple[str, ...]]:
    """Find the distribution's archive and the suites to ask for, this machine's own first."""
    release = platform.freedesktop_os_release()
    distribution, codename = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    if distribution not in SUITES:
        raise NotHere("this machine is neither Debian nor Ubuntu")
    archive = own_archive(machine_sources(Path("/etc/apt"), distribution), codename)
    if archive is None:
        raise NotHere("the sources of this machine's apt name no archive")
    own = codename or archive.suites[0]
    return archive, tuple(dict.fromkeys([own, *SUITES[distribution]]))


def unpack_all(apt: PrivateApt, catalogue: Catalogue, own_suite: str, cache: Path) -> Inventory:
    """Unpack the newest usable offer of each generation, and one runc that all of them share."""
    problem = next(iter(catalogue.problems), "")
    if not catalogue.offers:
        raise AptError(problem or "the archive answers, but has no containerd")
    # A newer suite's runc needs a newer C library: try this machine's own suite first.
    native_first = sorted(catalogue.of("runc"), key=lambda offer: offer.suite != own_suite)
    _, runc = first_that_runs(apt, native_first, cache)
    offers = by_generation(catalogue.of("containerd"))
    runtimes: list[Runtime] = []
    unavailable: dict[str, str] = {}
    final = not problem
    for generation in sorted({*WANTED, *offers}, key=version_numbers):
        try:
            offer, executable = first_that_runs(apt, offers.get(generation, []), cache)
            version = upstream_version(offer.version)
            runtimes.append(Runtime(offer.package, version, generation, executable, runc))
        except NotHere as error:
            unavailable[generation] = problem or one_line(error)
        except (AptError, OSError) as error:
            unavailable[generation] = one_line(error)
            final = False
    return Inventory(tuple(runtimes), unavailable, final)


def by_generation(offers: Iterable[Offer]) -> dict[str, list[Offer]]:
    """Group offers by major and minor version, keeping their order; too old ones are left out."""
    groups: dict[str, list[Offer]] = {}
    for offer in offers:
        numbers = version_numbers(upstream_version(offer.version))[:2]
        if numbers >= OLDEST:
            groups.setdefault(".".join(map(str, numbers)), []).append(offer)
    return groups


def upstream_version(version: str) -> str:
    """Strip the epoch and the packager's revision: "1.6.20~ds1-1+deb12u3" is "1.6.20~ds1"."""
    return re.sub(r"^\d+:|-[^-]*$", "", version)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (1, 6, 20) of "1.6.20~ds1"."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()


def first_that_runs(apt: PrivateApt, offers: Iterable[Offer], cache: Path) -> tuple[Offer, Path]:
    """Unpack one offer after the other until one's program says its version on this machine."""
    reason = "not offered by any suite that was asked"
    for offer in offers:
        folder = cache / f"{offer.package}-{offer.version.replace(':', '_')}"
        pattern = f"usr/*bin/{offer.package}"
        if not any(folder.glob(pattern)):
            shutil.rmtree(folder, ignore_errors=True)
            apt.unpack(offer, folder)
        program = next(folder.glob(pattern), None)
        if program is None:
            reason = f"{offer.package} {offer.version} has no program"
            continue
        result = run_command([str(program), "--version"])
        if result.returncode == 0:
            return offer, program
        reason = f"{offer.package} {offer.version} does not run here: {last_line(result.stderr)}"
    raise NotHere(reason)


def save(inventory: Inventory, cache: Path) -> None:
    """Put the inventory into the cache, complete or not at all."""
    draft = cache / f".runtimes.json.{os.getpid()}"
    draft.write_text(inventory.to_json(cache), encoding="utf-8")
    draft.rename(cache / "runtimes.json")


def one_line(error: Exception) -> str:
    """Make a reason of an error."""
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
