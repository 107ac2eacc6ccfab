"""The context of a run: the state lies on the host, and nothing interrupts a change."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from agent.errors import Locked, Refused, Unreachable, UsageError
from agent.host import paths
from agent.host.paths import HostPath, HostRoot, Mount
from agent.log import Silent
from agent.options.settings import Settings, resolve
from agent.plan import context
from agent.plan.context import Context
from agent.runtimes.base import Endpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host root in a container, whose own file system is something else."""
    (tmp_path / "host/var/lib").mkdir(parents=True)
    return tmp_path / "host"


def open_context(given: Settings) -> Context:
    """The context of a run that may write."""
    return context.open_context(given, Silent())


def settings(root: Path, entry: str = "toolkit-agent", **options: str) -> Settings:
    """Settings of a run in a container with this host root."""
    name = "nvidia-toolkit" if entry == "nvidia-toolkit" else "toolkit-agent"
    return resolve({"host_root": str(root), **options}, {}, name)  # type: ignore[arg-type]


def seen_in_a_container(monkeypatch: pytest.MonkeyPatch, root: Path, *mounts: Mount) -> None:
    """Let the table of mounts be a container's."""
    table = (Mount("/", "0:30", "/"), Mount(str(root), "8:1", "/"), *mounts)

    def open_host_root(given: str | None, named: Iterable[str]) -> HostRoot:
        return HostRoot(given or "/", table).with_mounts_of(*named)

    monkeypatch.setattr(context, "open_host_root", open_host_root)


def test_state_is_kept_on_the_host(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's own file system goes with it, and the journal with that."""
    seen_in_a_container(monkeypatch, root)
    ctx = open_context(settings(root))
    assert ctx.store.directory == f"{root}/var/lib/toolkit-agent"
    assert ctx.publisher.path("x") == f"{root}/run/nvidia/validations/x"


def test_state_directory_may_be_given(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name on the host."""
    seen_in_a_container(monkeypatch, root)
    ctx = open_context(settings(root, state_dir="/srv/agent"))
    assert ctx.store.directory == f"{root}/srv/agent"


def read_only(monkeypatch: pytest.MonkeyPatch, *directories: Path) -> None:
    """Let these directories lie on read-only mounts."""
    real = os.access

    def access(path: str, mode: int) -> bool:
        fixed = any(paths.is_below(path, str(directory)) for directory in directories)
        return real(path, mode) and not fixed

    monkeypatch.setattr(os, "access", access)


def test_read_only_host_keeps_state_beside_the_toolkit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpu-operator mounts the install directory writable, and it is the host's."""
    own = tmp_path / "usr/local/nvidia"
    own.mkdir(parents=True)
    seen_in_a_container(monkeypatch, root, Mount(str(own), "8:1", "/usr/local/nvidia"))
    read_only(monkeypatch, root)
    ctx = open_context(settings(root, toolkit_install_dir=str(own)))
    assert ctx.store.directory == f"{own}/.toolkit-agent"


def test_mounts_of_options_are_known_from_the_start(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal names files of the host. They are found on the mounts that the options name,
    whatever was looked at before."""
    own, beside = tmp_path / "drop-in", tmp_path / "cdi"
    for directory in (own, beside):
        directory.mkdir()
    seen_in_a_container(monkeypatch, root, Mount(str(beside), "8:1", "/cdi"))
    ctx = open_context(
        settings(
            root, cdi_output_dir=str(beside), drop_in_config=f"{own}/99-nvidia.toml",
            drop_in_config_host_path="/etc/containerd/conf.d/99-nvidia.toml",
        )
    )  # fmt: skip
    assert ctx.host.agent_path("/etc/containerd/conf.d/x") == f"{own}/x"
    assert ctx.host.agent_path(f"{beside}/x") == f"{beside}/x"


def test_nowhere_to_keep_a_journal_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the option that gives a place."""
    seen_in_a_container(monkeypatch, root)
    read_only(monkeypatch, root)
    with pytest.raises(Refused, match=r"^cannot keep a journal in /var/lib/toolkit-agent.*--state"):
        open_context(settings(root))


def test_host_root_that_is_no_directory_is_a_usage_error(tmp_path: Path) -> None:
    """Told as a mistake in the options."""
    with pytest.raises(UsageError, match=r"^cannot use host root"):
        open_context(settings(tmp_path / "none"))


@pytest.mark.parametrize(("entry", "foreign"), [("toolkit-agent", False), ("nvidia-toolkit", True)])
def test_barrier_is_foreign_beside_gpu_operator(entry: str, foreign: bool, root: Path) -> None:
    """Its validator owns `toolkit-ready`."""
    assert open_context(settings(root, entry)).publisher.foreign_barrier is foreign


@pytest.fixture
def ctx(root: Path) -> Context:
    return open_context(settings(root))


def test_state_is_locked_for_a_change(ctx: Context) -> None:
    """A second one is turned away, and may come when the first is done."""
    with ctx.locked():
        assert Path(ctx.store.path("lock")).exists()
        with pytest.raises(Locked, match=r"^cannot start"), ctx.locked():
            pass
    with ctx.locked():
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_wait_until_the_change_is_done(number: signal.Signals, ctx: Context) -> None:
    """A change in progress is finished or undone first."""
    came: list[int] = []
    old = signal.signal(number, lambda got, _frame: came.append(got))
    try:
        with ctx.locked():
            # To this thread: what runs the tests may have others, which take signals too.
            signal.pthread_kill(threading.get_ident(), number)
            assert came == []
        assert came == [number]
    finally:
        signal.signal(number, old)


def test_signals_are_let_in_again_after_an_error(ctx: Context) -> None:
    """Also when the work ends badly."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ZeroDivisionError), ctx.locked():
        _ = 1 // 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_questions_name_the_host_path(ctx: Context, tmp_path: Path) -> None:
    """What a person reads is the host's name of the socket, not the container's."""
    endpoint = Endpoint("containerd", HostPath(str(tmp_path / "s"), "/run/c.sock"))
    probe = ctx.probe(endpoint)
    for ask in (probe.identity, probe.ask):
        with pytest.raises(Unreachable, match=r"^cannot reach /run/c\.sock"):
            ask()
