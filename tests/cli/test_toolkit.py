"""The toolkit comes from packages, from an installed one or from the host, whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

from tests.cli.cli_node import Refusal, fails, refuses, shows, tells
from tests.cli.hosted import HostedNode
from tests.cli.installing import (
    BEFORE,
    CONFIG,
    LIST,
    RUNTIME,
    SourceNode,
    beside,
    installed,
    release,
)
from tests.conformance import checks, statusfile
from tests.conformance.trees import snapshot, touched
from tests.doubles.toolkit.source import make_tree

_RUNTIMES = (RUNTIME, f"{RUNTIME}.cdi", f"{RUNTIME}.legacy")
_WRAPPED = (*_RUNTIMES, f"{RUNTIME}-hook", "nvidia-container-cli", "nvidia-ctk")
_TREE = {
    *_WRAPPED,
    *(f"{name}.real" for name in _WRAPPED),
    *("nvidia-cdi-hook", "nvidia-container-toolkit", LIST),
    *("libnvidia-container.so.1", "libnvidia-container.so.1.19.0"),
    *("libnvidia-container-go.so.1", "libnvidia-container-go.so.1.19.0"),
    *(".config", ".config/nvidia-container-runtime", CONFIG),
}
_OURS = "# Written by toolkit-agent, which overwrites it.\n"
_INSIDE = "/usr/local/nvidia/toolkit"


def put_on_host(node: HostedNode) -> dict[str, tuple[int, int, int]]:
    """The packages, installed as usual; gives what would show any change of them."""
    programs = node.host / "usr/bin"
    shutil.copytree(release(node.directory, "1.19.0") / "usr/bin", programs)
    own = node.host / "etc/nvidia-container-runtime/config.toml"
    own.parent.mkdir()
    own.write_text("# by the admin\nsupported-driver-capabilities = 'all'\n")
    return host_traces(node)


def host_traces(node: HostedNode) -> dict[str, tuple[int, int, int]]:
    """The same, now."""
    return {
        f"{above}/{name}": entry.traces
        for above in ("usr/bin", "etc/nvidia-container-runtime")
        for name, entry in snapshot(node.host / above).items()
    }


def names(directory: Path) -> set[str]:
    """Every name in a directory."""
    return set(snapshot(directory)) - {"."}


def config(node: SourceNode | HostedNode) -> dict[str, dict[str, object]]:
    """The toolkit's settings."""
    found: dict[str, dict[str, object]] = tomllib.loads((node.toolkit / CONFIG).read_text())
    return found


def test_packages_are_installed_whole_and_nothing_else(sourced: SourceNode) -> None:
    """Everything that is needed, and nothing else; programs can be run by all, libraries read."""
    checks.done(sourced.agent("apply", prefix=("sh", "-c", 'umask 077; exec "$@"', "sh")))
    assert sourced.source
    assert names(sourced.toolkit) == _TREE
    for name in names(sourced.toolkit):
        path = sourced.toolkit / name
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            assert "/" not in os.readlink(path)
        elif path.is_dir() or (path.parent == sourced.toolkit and path.name.startswith("nvidia-")):
            assert mode == 0o755, name
        else:
            assert mode == 0o644, name
    assert stat.S_IMODE(sourced.toolkit.parent.stat().st_mode) == 0o755
    for name in _WRAPPED:
        wrapped = (sourced.source / "usr/bin" / name).read_bytes()
        assert (sourced.toolkit / f"{name}.real").read_bytes() == wrapped
        text = (sourced.toolkit / name).read_text()
        assert text.startswith(f"#!/bin/sh\n{_OURS}")
        assert text.endswith(f'exec {sourced.toolkit}/{name}.real "$@"\n')
    hook = config(sourced)[f"{RUNTIME}-hook"]["path"]
    assert hook == str(sourced.toolkit / f"{RUNTIME}-hook")
    values = statusfile.parse((sourced.ready() or b"").decode())
    assert values["NVIDIA_CDI_HOOK_PATH"] == str(sourced.toolkit / "nvidia-cdi-hook")


def test_second_apply_touches_no_file(sourced: SourceNode) -> None:
    """No file and no directory: neither time nor inode."""
    checks.done(sourced.agent("apply"))
    before = snapshot(sourced.toolkit.parent)
    found = shows(sourced.agent("apply", "-o", "json"), "Outcome")
    assert (found["changed"], found["restarted"]) == ([], False)
    assert touched(before, snapshot(sourced.toolkit.parent)) == []
    checks.done(sourced.agent("plan"))
    checks.done(sourced.agent("status"))


def test_an_upgrade_writes_what_is_new(sourced: SourceNode) -> None:
    """What is the same keeps its inode and its time; the runtime is not restarted."""
    checks.done(sourced.agent("apply"))
    before, starts = snapshot(sourced.toolkit), sourced.supervisor.starts
    sourced.source = release(sourced.directory, "1.20.0")
    shows(sourced.agent("plan", "-o", "json"), "Plan", 1)
    found = shows(sourced.agent("apply", "-o", "json"), "Outcome")
    assert (found["changed"], found["restarted"]) == ([str(sourced.toolkit)], False)
    after = snapshot(sourced.toolkit)
    assert names(sourced.toolkit) == {name.replace("1.19.0", "1.20.0") for name in _TREE}
    for name in ("nvidia-ctk", "nvidia-ctk.real", "nvidia-cdi-hook", RUNTIME, CONFIG):
        assert after[name].traces[:2] == before[name].traces[:2], name
    assert after[f"{RUNTIME}.real"].content != before[f"{RUNTIME}.real"].content
    assert sourced.supervisor.starts == starts
    assert beside(sourced.toolkit) == ["toolkit"]


def test_installed_toolkit_is_used_without_its_source(sourced: SourceNode) -> None:
    """What was installed is used on, and its settings still follow."""
    checks.done(sourced.agent("apply"))
    before = snapshot(sourced.toolkit)
    sourced.source = None
    checks.done(sourced.agent("apply"))
    assert touched(before, snapshot(sourced.toolkit)) == []
    checks.done(sourced.agent("apply", "--nvidia-container-runtime.log-level=debug"))
    after = snapshot(sourced.toolkit)
    assert names(sourced.toolkit) == _TREE
    assert config(sourced)[RUNTIME]["log-level"] == "debug"
    wrote = {path for path in _TREE if after[path].traces[0] != before[path].traces[0]}
    assert {path for path in wrote if (sourced.toolkit / path).is_file()} >= {CONFIG, LIST}
    assert all(after[f"{name}.real"].traces[:2] == before[f"{name}.real"].traces[:2]
               for name in _WRAPPED)  # fmt: skip


def test_toolkit_of_the_host_is_run_where_it_is(empty_host: HostedNode) -> None:
    """It is run where it is, with settings of ours; its own settings are nobody's business."""
    before = put_on_host(empty_host)
    checks.done(empty_host.agent("apply"))
    assert host_traces(empty_host) == before
    wrappers = {*_RUNTIMES, f"{RUNTIME}-hook"}
    settings = {".config", ".config/nvidia-container-runtime", CONFIG}
    assert names(empty_host.toolkit) == {*wrappers, *settings, LIST, "nvidia-container-toolkit"}
    for name in wrappers:
        text = (empty_host.toolkit / name).read_text()
        assert f"NVIDIA_CTK_CONFIG_FILE_PATH={_INSIDE}/{CONFIG}\n" in text
        assert text.endswith(f'exec /usr/bin/{name} "$@"\n')
    found = config(empty_host)
    assert found["nvidia-container-cli"]["path"] == "/usr/bin/nvidia-container-cli"
    assert found["nvidia-ctk"]["path"] == "/usr/bin/nvidia-ctk"
    assert found[f"{RUNTIME}-hook"]["path"] == f"{_INSIDE}/{RUNTIME}-hook"
    assert f'BinaryName = "{_INSIDE}/{RUNTIME}"' in empty_host.drop_in.read_text()
    values = statusfile.parse((empty_host.ready() or b"").decode())
    assert values["NVIDIA_CDI_HOOK_PATH"] == "/usr/bin/nvidia-cdi-hook"
    was = snapshot(empty_host.toolkit)
    make_tree(empty_host.host, "1.20.0")
    assert shows(empty_host.agent("apply", "-o", "json"), "Outcome")["changed"] == []
    assert touched(was, snapshot(empty_host.toolkit)) == []


def test_removed_toolkit_of_the_host_takes_readiness_away(empty_host: HostedNode) -> None:
    """A wrapper before nothing is no toolkit; what was published goes."""
    put_on_host(empty_host)
    checks.done(empty_host.agent("apply"))
    for path in (empty_host.host / "usr/bin").glob("nvidia-*"):
        path.unlink()
    fails(empty_host.agent("apply"), 3, RUNTIME, "--toolkit-source-root")
    tells(empty_host, 3, "NO_TOOLKIT", RUNTIME)
    assert empty_host.ready() is None
    put = empty_host.host / "usr/bin"
    shutil.rmtree(put)
    shutil.copytree(release(empty_host.directory, "1.19.0") / "usr/bin", put)
    checks.done(empty_host.agent("apply"))
    assert empty_host.ready()
    checks.done(empty_host.agent("revert --toolkit"))
    assert not empty_host.toolkit.parent.exists()


def test_programs_of_nvidias_installer_are_taken_over(sourced: SourceNode) -> None:
    """Its programs are taken over from below its wrappers, and its directory is kept."""
    assert sourced.source
    for name in _WRAPPED:
        path = sourced.toolkit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sourced.source / "usr/bin" / name, f"{path}.real")
        path.write_text(f'#! /bin/sh\n# theirs\nexec {path}.real "$@"\n')
        path.chmod(0o755)
    shutil.copy(sourced.source / "usr/bin/nvidia-cdi-hook", sourced.toolkit)
    for library in (sourced.source / "usr/lib").rglob("lib*.so.*"):
        shutil.copy(library, sourced.toolkit, follow_symlinks=False)
    (sourced.toolkit / "nvidia-container-toolkit").symlink_to(f"{RUNTIME}-hook")
    own = sourced.toolkit / CONFIG
    own.parent.mkdir(parents=True)
    own.write_text("# theirs\n")
    (sourced.toolkit / "left-over").write_text("somebody's")
    theirs = installed(sourced.toolkit)
    sourced.source = None
    checks.done(sourced.agent("apply"))
    found = installed(sourced.toolkit)
    assert set(found) - {"."} == {*_TREE, "left-over"}
    for name in (*(f"{name}.real" for name in _WRAPPED), "nvidia-cdi-hook", "left-over"):
        assert found[name] == theirs[name], name
    assert all(_OURS.encode() in found[name][3] for name in (*_WRAPPED, CONFIG))
    assert installed(sourced.toolkit.parent / BEFORE) == theirs
    before = snapshot(sourced.toolkit.parent)
    assert shows(sourced.agent("apply", "-o", "json"), "Outcome")["changed"] == []
    assert touched(before, snapshot(sourced.toolkit.parent)) == []


def test_node_without_a_toolkit_is_refused_with_a_remedy(sourced: SourceNode) -> None:
    """Refused, and it is told what to do."""
    sourced.source = None
    refuses(sourced, Refusal(3, "install the toolkit, or give --toolkit-source-root", "NO_TOOLKIT"))
    assert not sourced.toolkit.exists()


def test_what_is_damaged_is_mended(sourced: SourceNode) -> None:
    """Whatever it is."""
    checks.done(sourced.agent("apply"))
    right = installed(sourced.toolkit)

    def missing(path: Path) -> None:
        path.unlink()

    def other(path: Path) -> None:
        path.write_bytes(b"#!/bin/sh\n")

    def mode(path: Path) -> None:
        path.chmod(0o600)

    def owner(path: Path) -> None:
        os.chown(path, 4711, 4711)

    def linked(path: Path) -> None:
        path.unlink()
        path.symlink_to("/bin/true")

    def directory(path: Path) -> None:
        path.unlink()
        path.mkdir()

    for damage in (missing, other, mode, owner, linked, directory):
        if damage is owner and os.geteuid() != 0:
            continue
        for name in (RUNTIME, f"{RUNTIME}.real", "libnvidia-container.so.1.19.0", CONFIG):
            damage(sourced.toolkit / name)
        assert sourced.agent("plan").returncode == 1, damage
        checks.done(sourced.agent("apply"))
        assert installed(sourced.toolkit) == right, damage
        assert beside(sourced.toolkit) == ["toolkit"]
    for name in (".config", ".config/nvidia-container-runtime"):
        (sourced.toolkit / name).chmod(0o777)
        assert sourced.agent("plan").returncode == 1, name
        checks.done(sourced.agent("apply"))
        assert installed(sourced.toolkit) == right, name


def test_wrapper_runs_its_program_with_our_settings(sourced: SourceNode) -> None:
    """With its settings, and with what they were told."""
    assert sourced.source
    script = '#!/bin/sh\necho "$NVIDIA_CTK_CONFIG_FILE_PATH $*"\n'
    (sourced.source / f"usr/bin/{RUNTIME}-hook").write_text(script)
    checks.done(sourced.agent("apply"))
    call: list[str | Path] = [sourced.toolkit / "nvidia-container-toolkit", "prestart", "a b"]
    said = subprocess.run(call, env={}, capture_output=True, text=True, check=True).stdout
    assert said == f"{sourced.toolkit / CONFIG} prestart a b\n"
