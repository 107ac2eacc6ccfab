"""What root reads, runs or writes to is root's, from the root directory on.

The attacker is a user of the host who owns a directory somewhere on the way, or can write one, or
made a link in a sticky directory. What lies at the end may well be root's, with a mode that nobody
can complain of: he moves the directory away and puts his own in its place whenever he likes, also
between a look and a use.

What must hold: exit 3 with the path and the part that is his; nothing touched, and above all
nothing of his executed; and where he swaps all the time, what is read is never his.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.cri.process import Process
from agent.errors import NoToolkit, Refused
from agent.host import trust
from agent.host.paths import HostPath, HostRoot
from agent.options.settings import resolve
from agent.plan import spec_proposal
from agent.plan.context import Context
from agent.runtimes import find
from agent.runtimes.containerd import load
from agent.runtimes.containerd.generations import GENERATIONS
from agent.runtimes.crio import hook
from agent.state.store import Memory, Store
from agent.status import Publisher
from agent.toolkit import install, origin, programs
from agent.transaction import host_timer
from agent.transaction.host_timer import CannotArm
from tests.cli.cli_node import CliNode, Refusal, fails, is_refused, refuses
from tests.cli.crio import OFF
from tests.cli.crio import make as crio_node
from tests.cli.installing import SourceNode
from tests.conformance import checks

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")

_USER = 1000
_BELONGS = "belongs to user 1000"
HOST = HostRoot("/")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of the user's, with one of root's in it; what root puts there is root's."""
    path = tmp_path / "srv/theirs/roots"
    path.mkdir(parents=True)
    os.chown(path.parent, _USER, _USER)
    return path


def _marker(theirs: Path) -> tuple[Path, Path]:
    """A program that leaves a trace when it is run, and the trace."""
    program, trace = theirs / "containerd", theirs / "executed"
    program.write_text(f"#!/bin/sh\n: > {trace}\nexit 1\n")
    program.chmod(0o755)
    return program, trace


# --- the program, as a whole --------------------------------------------------------------------


def _import(node: CliNode, pattern: Path | str) -> None:
    text = node.config.read_text().replace("\n", f'\nimports = ["{pattern}"]\n', 1)
    node.config.write_text(text)


def test_executable_of_others_is_not_run(node: CliNode, theirs: Path) -> None:
    """It is not run, neither for a dump nor for a trial."""
    program, trace = _marker(theirs)
    refuses(
        node,
        Refusal(3, f"cannot run {program}: {theirs.parent} {_BELONGS}"),
        f"--executable-path={program}",
    )
    assert not trace.exists()


def test_executable_behind_their_link_is_not_run(node: CliNode, tmp_path: Path) -> None:
    """In a sticky directory the link's own owner counts."""
    program, trace = _marker(tmp_path)
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    link = sticky / "containerd"
    link.symlink_to(program)
    os.lchown(link, _USER, _USER)
    refuses(node, Refusal(3, f"{link}: it {_BELONGS}"), f"--executable-path={link}")
    assert not trace.exists()


@pytest.mark.parametrize("pattern", ["a.toml", "*.toml", "none-yet-*.toml"])
def test_import_below_their_directory_is_refused(node: CliNode, theirs: Path, pattern: str) -> None:
    """Root's own file below it, by name and by wildcard; also one that he has yet to make."""
    (theirs / "a.toml").write_text("version = 3\n")
    _import(node, theirs / pattern)
    refuses(node, Refusal(3, f"{theirs.parent} {_BELONGS}"))


def test_import_through_their_link_is_refused(node: CliNode, theirs: Path) -> None:
    """The link lies below his directory, its target does not."""
    (node.etc / "real.toml").write_text("version = 3\n")
    (theirs / "a.toml").symlink_to(node.etc / "real.toml")
    _import(node, theirs / "a.toml")
    refuses(node, Refusal(3, f"{theirs.parent} {_BELONGS}"))


def test_import_behind_a_link_to_them_is_refused(node: CliNode, theirs: Path) -> None:
    """The other way round."""
    (theirs / "a.toml").write_text("version = 3\n")
    (node.etc / "a.toml").symlink_to(theirs / "a.toml")
    _import(node, node.etc / "a.toml")
    refuses(node, Refusal(3, f"{theirs.parent} {_BELONGS}"))


def test_drop_in_below_their_directory_is_refused(node: CliNode, theirs: Path) -> None:
    """Ours, where it is to go: in a directory of his, or below one."""
    place = theirs / "99-nvidia.toml"
    refuses(node, Refusal(3, f"{theirs.parent} {_BELONGS}"), f"--drop-in-config={place}")
    assert list(theirs.iterdir()) == []
    (node.etc / "conf.d").mkdir()
    os.chown(node.etc / "conf.d", _USER, _USER)
    refuses(node, Refusal(3, f"{node.etc}/conf.d {_BELONGS}"))


def test_garbled_drop_in_is_rewritten_in_directories_of_root_only(node: CliNode) -> None:
    """It is written anew in a directory of root's only."""
    checks.done(node.agent("apply"))
    node.drop_in.write_text("= =")
    os.chown(node.drop_in.parent, _USER, _USER)
    before = node.tree()
    fails(node.agent("apply"), 3, f"{node.drop_in.parent} {_BELONGS}")
    assert node.tree() == before
    os.chown(node.drop_in.parent, 0, 0)
    checks.done(node.agent("apply"))


def test_crio_drop_ins_of_others_are_refused(place: Path) -> None:
    """CRI-O reads whatever is there; a file that he adds counts like root's."""
    with crio_node(place) as node:
        directory = node.drop_in.parent
        os.chown(directory, _USER, _USER)
        for command in ("plan", "apply"):
            is_refused(command, node.agent(command), 3, f"{directory}: it {_BELONGS}")
        assert not node.drop_in.exists()


def test_hooks_directory_of_others_is_refused(place: Path) -> None:
    """The OCI hook is run for every container."""
    with crio_node(place) as node:
        directory = node.hooks
        os.chown(directory, _USER, _USER)
        result = node.agent("apply", OFF)
        assert (result.returncode, _BELONGS in result.stderr) == (3, True), checks.said(result)
        assert list(directory.iterdir()) == []


def test_state_directory_of_others_is_refused(node: CliNode, theirs: Path) -> None:
    """What is remembered there decides what is written, and what is put back."""
    refuses(node, Refusal(3, f"{theirs.parent} {_BELONGS}"), f"--state-dir={theirs}/state")
    assert list(theirs.iterdir()) == []
    checks.done(node.agent("apply"))
    node.state.rename(theirs / "state")
    os.chown(theirs / "state/memory.json", _USER, _USER)
    refuses(node, Refusal(3, f"{theirs.parent} {_BELONGS}"), f"--state-dir={theirs}/state")
    fails(node.agent("revert", f"--state-dir={theirs}/state"), 3, _BELONGS)
    assert _BELONGS in node.agent("status", f"--state-dir={theirs}/state").stdout


def test_socket_of_others_is_refused(node: CliNode, theirs: Path) -> None:
    """Who answers there decides which files are edited."""
    link = theirs / "c.sock"
    link.symlink_to(node.socket)
    before = node.tree()
    for command in ("plan", "apply"):
        fails(node.agent(command, f"--socket={link}"), 3, f"{theirs.parent} {_BELONGS}")
    assert node.tree() == before


def test_install_directory_of_others_is_refused(sourced: SourceNode, theirs: Path) -> None:
    """Root, and every container, would run what is in it."""
    plan = sourced.agent("plan", f"--toolkit-install-dir={theirs}")
    assert f"{theirs.parent} {_BELONGS}" in plan.stdout
    fails(sourced.agent("apply", f"--toolkit-install-dir={theirs}"), 3, str(theirs), _BELONGS)
    assert list(theirs.iterdir()) == []
    assert not sourced.state.exists()


def test_source_tree_of_others_is_refused(sourced: SourceNode, theirs: Path) -> None:
    """All of it is root's, and lies below his directory."""
    assert sourced.source
    place = theirs / "source"
    sourced.source.rename(place)
    sourced.source = place
    refuses(sourced, Refusal(3, f"{theirs.parent} {_BELONGS}"))
    assert not sourced.toolkit.exists()


def test_directory_of_others_in_a_source_tree_is_refused(sourced: SourceNode) -> None:
    """A directory in the middle; the programs are root's."""
    assert sourced.source
    os.chown(sourced.source / "usr", _USER, _USER)
    refuses(sourced, Refusal(3, f"in {sourced.source}, /usr {_BELONGS}"))
    assert not sourced.toolkit.exists()


def test_moved_toolkit_below_their_directory_is_not_removed(
    sourced: SourceNode, theirs: Path, tmp_path: Path
) -> None:
    """A directory that was ours and is below his by now is not removed: it may be any."""
    old, new = sourced.toolkit.parent, tmp_path / "new/nvidia"
    checks.done(sourced.agent("apply"))
    os.chown(old, _USER, _USER)
    result = sourced.agent("apply", f"--toolkit-install-dir={new}")
    assert (sourced.toolkit / "nvidia-container-runtime").exists(), checks.said(result)
    fails(sourced.agent("revert", "--toolkit"), 3, "cannot remove the toolkit in", _BELONGS)
    assert (sourced.toolkit / "nvidia-container-runtime").exists()


def test_leftovers_are_removed_in_directories_of_root_only(
    sourced: SourceNode, theirs: Path
) -> None:
    """What an interrupted run would leave is tidied up in a directory of root's only."""
    left = theirs / ".toolkit.before"
    left.mkdir()
    (left / "x").write_text("somebody's\n")
    result = sourced.agent("revert", "--toolkit", f"--toolkit-install-dir={theirs}")
    fails(result, 3, f"cannot remove the toolkit in {theirs}/toolkit: {theirs.parent} {_BELONGS}")
    assert (left / "x").exists()


# --- parts of it --------------------------------------------------------------------------------


@pytest.mark.parametrize("deleted", [False, True])
def test_running_executable_of_others_is_refused(theirs: Path, *, deleted: bool) -> None:
    """What runs by now is what a restart runs; where it was deleted he can put another there."""
    program, _ = _marker(theirs)
    if deleted:
        program.unlink()
    running = Process(2, 1, str(program), None, None, (), "/proc")
    settings = resolve({}, {}, "toolkit-agent")
    with pytest.raises(Refused, match=f"^cannot run {program}: {theirs.parent} {_BELONGS}"):
        find.executable(settings, HOST, running)


def test_executable_deleted_from_a_sticky_directory_is_refused(tmp_path: Path) -> None:
    """It was deleted from a sticky directory."""
    tmp_path.chmod(0o1777)
    running = Process(2, 1, str(tmp_path / "containerd"), None, None, (), "/proc")
    with pytest.raises(Refused, match="can be written by others"):
        find.executable(resolve({}, {}, "toolkit-agent"), HOST, running)


def _context(root: Path, **given: str) -> Context:
    host = HostRoot(str(root))
    return Context(
        resolve({"cdi_output_dir": "/etc/cdi", **given}, {}, "toolkit-agent"),
        host,
        Store("/state", host),
        Publisher("/run/nvidia/validations", host=host),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host root with a few programs."""
    path = tmp_path / "host"
    for name in ("usr/bin", "usr/local/nvidia/toolkit", "etc/cdi", "run/cdi", "srv/hooks"):
        (path / name).mkdir(parents=True)
    for name in ("nvidia-container-runtime", "nvidia-cdi-hook", "mv"):
        (path / "usr/bin" / name).write_text("x")
        (path / "usr/bin" / name).chmod(0o755)
    return path


def _give(path: Path) -> None:
    os.chown(path, _USER, _USER, follow_symlinks=False)


@pytest.mark.parametrize("part", ["usr", "usr/bin", "usr/bin/nvidia-cdi-hook", "."])
def test_hook_of_others_is_refused_for_specs(root: Path, part: str) -> None:
    """Every container with a device runs it as root."""
    ctx = _context(root)
    assert install.cdi_hook(ctx.settings, ctx.host, None) == "/usr/bin/nvidia-cdi-hook"
    _give(root / part)
    with pytest.raises(Refused, match=_BELONGS):
        install.cdi_hook(ctx.settings, ctx.host, None)


@pytest.mark.parametrize("part", ["usr", "usr/bin", "usr/bin/nvidia-container-runtime"])
def test_toolkit_of_others_on_the_host_is_refused(root: Path, part: str) -> None:
    """The same for what handlers run."""
    ctx = _context(root)
    installed = programs.directory(ctx.settings, ctx.host)
    assert origin.find(ctx.settings, ctx.host, installed).kind == "host"
    _give(root / part)
    with pytest.raises(Refused, match=_BELONGS):
        origin.find(ctx.settings, ctx.host, installed)


def test_link_of_others_in_a_source_tree_is_refused(root: Path) -> None:
    """He can have it lead to any program of the tree."""
    sticky = root / "tree/usr/bin"
    sticky.mkdir(parents=True)
    sticky.chmod(0o1777)
    (root / "tree/real").write_text("x")
    (root / "tree/real").chmod(0o755)
    (sticky / programs.RUNTIME).symlink_to("/real")
    ctx = _context(root, toolkit_source_root=str(root / "tree"))
    installed = programs.directory(ctx.settings, ctx.host)
    assert origin.find(ctx.settings, ctx.host, installed).kind == "packages"
    _give(sticky / programs.RUNTIME)
    with pytest.raises(Refused, match=f"/usr/bin/{programs.RUNTIME} {_BELONGS}"):
        origin.find(ctx.settings, ctx.host, installed)
    (root / "tree/real").unlink()
    with pytest.raises((NoToolkit, Refused)):
        origin.find(ctx.settings, ctx.host, installed)


@pytest.mark.parametrize("part", ["etc", "etc/cdi", "run", "run/cdi"])
def test_spec_directories_of_others_are_refused(root: Path, part: str) -> None:
    """The runtime reads all of them, whichever ours are written to."""
    host = HostRoot(str(root))
    spec_proposal._refuse_writable(host, ("/etc/cdi", "/run/cdi", None))
    _give(root / part)
    with pytest.raises(
        Refused, match=f"^cannot use the CDI directory /{part.split('/', maxsplit=1)[0]}"
    ):
        spec_proposal._refuse_writable(host, ("/etc/cdi", "/run/cdi", None))


class _Hooks:
    """As much of a CRI-O as `hook.require` looks at."""

    def __init__(self, host: HostRoot) -> None:
        self.host = host

    hook = HostPath("", "/etc/hooks.d/nvidia.json")
    hooks_read = ("/srv/hooks/",)
    hooks_later = ("/etc/hooks.d",)


@pytest.mark.parametrize("part", ["srv", "srv/hooks", "etc"])
def test_any_hooks_directory_of_others_is_refused(root: Path, part: str) -> None:
    """Any of those that CRI-O reads, also one that has yet to be made."""
    host = HostRoot(str(root))
    hook.require(_Hooks(host))  # type: ignore[arg-type]
    _give(root / part)
    with pytest.raises(Refused, match=f"^cannot use the hooks directory .*{_BELONGS}"):
        hook.require(_Hooks(host))  # type: ignore[arg-type]


def test_timer_refuses_programs_of_others(root: Path) -> None:
    """systemd runs them."""
    ctx = _context(root)
    assert host_timer._program(ctx.host, "mv") == "/usr/bin/mv"
    _give(root / "usr")
    with pytest.raises(CannotArm):
        host_timer._program(ctx.host, "mv")


def test_host_root_below_their_directory_is_refused(tmp_path: Path) -> None:
    """He exchanges the whole host: whoever names it gets all or nothing."""
    root = tmp_path / "theirs/host"
    (root / "etc/containerd").mkdir(parents=True)
    (root / "etc/containerd/config.toml").write_text("version = 3\n")
    host = HostRoot(str(root))
    assert load.load_file(host, load.DEFAULT_ROOT).version == 3
    _give(root.parent)
    with pytest.raises(Refused, match=f"{root.parent} {_BELONGS}"):
        load.load_file(host, load.DEFAULT_ROOT)


def test_mounts_of_a_container_are_judged_from_the_mount_on(tmp_path: Path) -> None:
    """A mount of our own stays what it is; below it counts what is there. The host's name of it
    need not be seen below the host root."""
    mount = tmp_path / "mount"
    (mount / "d").mkdir(parents=True)
    (mount / "d/memory.json").write_text('{"format": 1}')
    host = HostRoot(str(tmp_path)).with_view(str(mount), "/not/seen/here")
    path, state = trust.read_file(host, "/not/seen/here/d/memory.json")
    assert (path.host, state and state.data) == ("/not/seen/here/d/memory.json", b'{"format": 1}')
    assert trust.read_file(host, "/not/seen/here/none")[1] is None
    assert trust.read_file(host, "/not/seen/else")[1] is None
    store = Store("/not/seen/here/new/state", host)
    store.create()
    assert (mount / "new/state/originals").is_dir()
    _give(mount / "d")
    with pytest.raises(Refused, match=f"/not/seen/here/d {_BELONGS}"):
        trust.read_file(host, "/not/seen/here/d/memory.json")


def test_state_directory_in_a_sticky_directory_is_roots_or_refused(tmp_path: Path) -> None:
    """In a sticky directory, where a user can be first: with his own, or with a link."""
    tmp_path.chmod(0o1777)
    store = Store(str(tmp_path / "state"))
    store.create()
    assert store.memory() == Memory()
    (tmp_path / "first").mkdir()
    _give(tmp_path / "first")
    with pytest.raises(Refused, match=f"^cannot use the state directory .*: it {_BELONGS}"):
        Store(str(tmp_path / "first")).create()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    _give(tmp_path / "link")
    with pytest.raises(Refused, match=f"/link {_BELONGS}"):
        Store(str(tmp_path / "link/deeper")).create()
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["originals"]


# --- while he swaps all the time ----------------------------------------------------------------


@contextmanager
def _as_user(work: Callable[[], None]) -> Iterator[None]:
    """Do something over and over as the user, in a process of his own."""
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(_USER)
        os.setuid(_USER)
        while True:
            with suppress(OSError):
                work()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _swaps(directory: Path) -> Callable[[], None]:
    """Root's file, a link to his own, his own file, nothing; all under one name."""
    place, aside = directory / "config.toml", directory / "aside"

    def swap() -> None:
        place.rename(aside)
        place.symlink_to(directory / "evil")
        place.unlink()
        (directory / "copy").write_text("evil\n")
        (directory / "copy").rename(place)
        place.unlink()
        aside.rename(place)

    return swap


def test_file_in_a_race_is_refused_each_time(tmp_path: Path) -> None:
    """In his own directory: it is refused each time, whatever lies there."""
    tmp_path.chmod(0o755)
    directory = tmp_path / "theirs"
    directory.mkdir()
    (directory / "config.toml").write_text("good\n")
    (directory / "evil").write_text("evil\n")
    _give(directory)
    with _as_user(_swaps(directory)):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with pytest.raises(Refused):
                trust.read_file(HOST, str(directory / "config.toml"))


def test_link_in_a_race_is_roots_or_refused(tmp_path: Path) -> None:
    """In a sticky directory: root's link stays, and nothing else is ever believed."""
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    sticky, roots = tmp_path / "sticky", tmp_path / "roots"
    for path in (sticky, roots):
        path.mkdir()
    sticky.chmod(0o1777)
    (roots / "config.toml").write_text("good\n")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.toml").write_text("evil\n")
    _give(tmp_path / "theirs")

    def swap() -> None:
        for target in (tmp_path / "theirs", roots):
            (sticky / "d").symlink_to(target)
            (sticky / "d").unlink()

    seen = set()
    with _as_user(swap):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                state = trust.read_file(HOST, str(sticky / "d/config.toml"))[1]
            except Refused as error:
                seen.add(error.message.partition(": ")[2][-40:])
                continue
            assert state is None
    assert seen  # he was seen at it


def test_configuration_in_a_race_never_loads_theirs(tmp_path: Path) -> None:
    """A whole configuration with an import below his directory never loads what is his."""
    tmp_path.chmod(0o755)
    root, directory = tmp_path / "config.toml", tmp_path / "theirs"
    directory.mkdir()
    (directory / "config.toml").write_text("version = 3\n")
    (directory / "evil").write_text('version = 3\nimports = ["evil"]\n')
    _give(directory)
    root.write_text(f'version = 3\nimports = ["{directory}/config.toml"]\n')
    with _as_user(_swaps(directory)):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with pytest.raises(Refused):
                load.load(HOST, GENERATIONS[-1], str(root))
