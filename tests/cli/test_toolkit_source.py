"""A tree of packages that is broken, unreadable or of another kind is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.cli_node import Refusal, fails, refuses
from tests.cli.hosted import HostedNode
from tests.cli.installing import RUNTIME, SourceNode
from tests.conformance import checks
from tests.conformance.trees import snapshot, touched
from tests.doubles.toolkit.source import make_tree

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run tests/run as root")


def no_directory(source: Path) -> str:
    """There is nothing."""
    shutil.rmtree(source)
    return str(source)


def a_file(source: Path) -> str:
    """It is no directory."""
    shutil.rmtree(source)
    source.write_text("")
    return str(source)


def no_runtime(source: Path) -> str:
    """The one program that is needed is missing."""
    (source / "usr/bin" / RUNTIME).unlink()
    return f"no {RUNTIME} in {source}"


def no_program(source: Path) -> str:
    """It is there and cannot be run."""
    (source / "usr/bin" / RUNTIME).chmod(0o644)
    return f"no {RUNTIME} in {source}"


def link_out(source: Path) -> str:
    """It is somewhere else."""
    outside = source.parent / "outside"
    outside.mkdir()
    path = source / "usr/bin" / RUNTIME
    path.rename(outside / RUNTIME)
    path.symlink_to(f"../../../outside/{RUNTIME}")
    return f"no {RUNTIME} in {source}"


def link_in_circles(source: Path) -> str:
    """It leads to itself."""
    path = source / "usr/bin" / RUNTIME
    path.unlink()
    path.symlink_to(path.name)
    return f"no {RUNTIME} in {source}"


@pytest.mark.parametrize(
    "how", [no_directory, a_file, no_runtime, no_program, link_out, link_in_circles]
)
def test_broken_source_is_refused(sourced: SourceNode, how: object) -> None:
    """It was asked for: what is on the host is not used instead, and nothing is touched."""
    assert sourced.source
    assert callable(how)
    put = sourced.toolkit / RUNTIME
    put.parent.mkdir(parents=True)
    put.touch(0o755)
    before = snapshot(sourced.toolkit)
    refuses(sourced, Refusal(3, how(sourced.source)))
    assert touched(before, snapshot(sourced.toolkit)) == []


@pytest.mark.parametrize("name", ["nvidia-ctk", "libnvidia-container.so.1"])
def test_link_out_of_the_source_is_left_out(sourced: SourceNode, name: str) -> None:
    """What is behind it is left out, as if it were not there."""
    assert sourced.source
    secret = sourced.directory / "secret"
    secret.write_text("secret")
    secret.chmod(0o755)
    path = next(sourced.source.rglob(name))
    path.unlink()
    path.symlink_to(secret)
    checks.done(sourced.agent("apply"))
    assert not any(path.name.startswith(name) for path in sourced.toolkit.iterdir())
    assert b"secret" not in b"".join(entry.content for entry in snapshot(sourced.toolkit).values())


def test_absolute_link_stays_inside_the_source(sourced: SourceNode) -> None:
    """It means what it means once the packages are installed."""
    assert sourced.source
    path = sourced.source / "usr/bin/nvidia-ctk"
    (sourced.source / "opt").mkdir()
    path.rename(sourced.source / "opt/ctk")
    path.symlink_to("/opt/ctk")
    checks.done(sourced.agent("apply"))
    real = sourced.toolkit / "nvidia-ctk.real"
    assert not real.is_symlink()
    assert real.read_bytes() == (sourced.source / "opt/ctk").read_bytes()


@as_root
@pytest.mark.parametrize("name", ["usr/bin/nvidia-ctk", "usr/bin", ""])
def test_unreadable_source_is_refused(sourced: SourceNode, name: str) -> None:
    """Refused, naming it, and nothing is left over."""
    assert sourced.source
    path = sourced.source / name
    path.chmod(0o111 if path.is_file() else 0)
    capabilities = "-dac_override,-dac_read_search"
    prefix = ("setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}")
    before = sourced.tree()
    for _ in range(2):
        result = sourced.agent("apply", prefix=prefix)
        fails(result, 3, str(path) if path.is_file() else str(sourced.source))
        assert touched(before, sourced.tree()) == []
        assert not sourced.toolkit.parent.exists()
    path.chmod(0o755)
    checks.done(sourced.agent("apply"))


@pytest.mark.parametrize(
    ("rpm", "asked", "taken"),
    [
        (False, None, "deb"),
        (True, None, "rpm"),
        (False, "auto", "deb"),
        (False, "rpm", "rpm"),
        (True, "deb", "deb"),
    ],
)
def test_kind_of_packages_follows_the_host_or_the_option(
    empty_host: HostedNode, rpm: bool, asked: str | None, taken: str
) -> None:
    """As the host has it, or as asked for."""
    source = empty_host.directory / "source"
    versions = {"deb": "1.17.0", "rpm": "1.18.0"}
    for kind, version in versions.items():
        make_tree(source / kind, version, kind)
    programs = empty_host.host / "usr/bin"
    programs.mkdir(parents=True)
    if rpm:
        (programs / "rpm").touch(0o755)
    options = [f"--toolkit-package-type={asked}"] if asked else []
    before = {path.name for path in empty_host.host.iterdir()}
    checks.done(empty_host.agent("apply", f"--toolkit-source-root={source}", *options))
    library = empty_host.toolkit / "libnvidia-container.so.1"
    assert os.readlink(library) == f"libnvidia-container.so.{versions[taken]}"
    assert {path.name for path in empty_host.host.iterdir()} == before | {"var"}


def test_missing_kind_of_packages_is_refused(empty_host: HostedNode) -> None:
    """The other one is not taken instead."""
    source = empty_host.directory / "source"
    make_tree(source / "deb", "1.18.0")
    options = (f"--toolkit-source-root={source}", "--toolkit-package-type=rpm")
    refuses(empty_host, Refusal(3, f"{source}/rpm"), *options)
    assert not empty_host.toolkit.exists()
