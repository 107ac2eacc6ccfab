"""A trial start tells whether a configuration works, and whose fault a failure is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.cri.client import Answer
from agent.cri.process import Process
from agent.errors import FilesDoNotLoad, TrialFailed
from agent.host.files import Change, FileState
from agent.host.isolation import View
from agent.host.paths import HostPath, HostRoot
from agent.runtimes import trial
from agent.runtimes.base import Endpoint, Runtime
from agent.runtimes.containerd import load
from agent.runtimes.containerd import trial as trial_containerd
from agent.runtimes.containerd.adapter import ContainerdNode
from agent.runtimes.containerd.generations import generation
from agent.runtimes.crio import trial as crio_trial
from agent.runtimes.desired_state import Desired
from agent.runtimes.trial import Launch, Result, Trial

HOST = HostRoot("/")
CANDIDATE = (Change(HostPath("/c", "/c"), FileState(b"old"), FileState(b"new")),)


def judged(new: Result, old: Result = Result(), purpose: str = "apply") -> tuple[Trial, int]:  # noqa: B008
    """The verdict where a start on the candidate, and one on the files as they are, come to that;
    how often the runtime was started."""
    starts = []

    def launch(_: str, __: Desired, files: Mapping[str, bytes | None]) -> Launch:
        assert files in ({"/c": b"new"}, {})
        return Launch(("/bin/r",), {}, View("/mnt", files=files), "/mnt/s", str)

    def start(_: HostRoot, given: Launch, __: Callable[[Answer], list[str]]) -> Result:
        starts.append(given)
        return new if given.view.files else old

    adapter = SimpleNamespace(title="containerd")
    node: Any = SimpleNamespace(host=HOST, adapter=adapter, executable="/bin/r", launch=launch)
    return trial.judge(node, Desired({}), CANDIDATE, purpose, start), len(starts)


def test_candidate_that_starts_is_started_once() -> None:
    """One start is enough."""
    verdict, starts = judged(Result())
    assert (verdict.done, verdict.refusal, starts) == (True, None, 1)


def test_candidate_alone_does_not_start() -> None:
    """It is the new configuration's fault; for a revert that of the original files."""
    verdict, starts = judged(Result(failure="no such thing"))
    assert isinstance(verdict.refusal, TrialFailed)
    assert starts == 2
    assert "does not start on the new configuration: no such thing" in verdict.refusal.message
    verdict, _ = judged(Result(failure="no such thing"), purpose="revert")
    assert verdict.refusal is not None
    assert verdict.refusal.message.startswith("cannot revert: /bin/r does not start on the orig")


def test_fault_is_the_disks_where_neither_starts() -> None:
    """It is the fault of what is on the disk, in the words that the runtime has for that."""
    verdict, _ = judged(Result(failure="x"), Result(failure="mirrors"))
    assert isinstance(verdict.refusal, FilesDoNotLoad)
    assert "the file on disk does not load in /bin/r (mirrors)" in verdict.refusal.message
    assert "the running containerd was started on an older one" in verdict.refusal.message


@pytest.mark.parametrize(
    ("new", "old"),
    [(Result(impossible="why"), Result()), (Result(failure="x"), Result(impossible="why"))],
)
def test_impossible_trial_gives_no_verdict(new: Result, old: Result) -> None:
    """What cannot be tried is neither good nor bad."""
    verdict, _ = judged(new, old)
    assert (verdict.done, verdict.note, verdict.refusal) == (False, "why", None)


SAYS = {
    "1.7": (
        ('time="x" level=info msg="loading plugin"\n'
        'time="x" level=warning msg="failed to load plugin io.containerd.snapshotter.v1.zfs" '
        'error="path is no zfs: skip plugin"\n'
        'time="x" level=warning msg="failed to load plugin io.containerd.grpc.v1.cri" '
        'error="invalid plugin config: `mirrors` and \\"x\\""\n'),
        'invalid plugin config: `mirrors` and "x"',
    ),
    "2.1": (
        ('time="x" level=warning msg="failed to load plugin" error="bad timeout" '
        "id=io.containerd.cri.v1.runtime type=io.containerd.cri.v1\n"
        'time="x" level=warning msg="failed to load plugin" error="a plugin that it needs" '
        "id=io.containerd.grpc.v1.cri type=io.containerd.grpc.v1\n"),
        "bad timeout",
    ),
    "json": (
        ('{"level": "warning", "msg": "failed to load plugin io.containerd.grpc.v1.cri", '
        '"error": "bad timeout"}\n{"level": "info", "msg": "serving"}\n{broken\n'),
        "bad timeout",
    ),
    "ended": ("level=info msg=x\ncontainerd: cannot load TOML\n", "cannot load TOML"),
    "nothing": ("", ""),
}  # fmt: skip


@pytest.mark.parametrize(("output", "reason"), SAYS.values(), ids=SAYS)
def test_reason_of_containerd_is_its_first_failed_cri_plugin(output: str, reason: str) -> None:
    """The first plugin of the CRI that failed, or the last words."""
    assert trial_containerd.reason(output) == reason


def test_reason_of_crio_is_its_fatal_entry() -> None:
    """The entry of the level fatal, which need not be the last."""
    said = (
        'time="x" level=warning msg="well"\ntime="x" level=fatal msg="validating: \\"x\\" is not"\n'
        'time="x" level=info msg="bye"\n'
    )
    assert crio_trial.reason(said) == 'validating: "x" is not'
    assert crio_trial.reason("panic: oh\n") == "panic: oh"
    assert crio_trial.reason("") == ""


def node_with(directory: Path, text: str) -> ContainerdNode:
    """A containerd with this root file, whose CRI socket is in `directory`/run."""
    root = directory / "config.toml"
    root.write_text(text)
    (directory / "run").mkdir(exist_ok=True)
    gen = generation((2, 1, 0))
    answer = Answer("containerd", "2.1.9", True, {}, ())
    socket = HostPath(str(directory / "run/c.sock"), str(directory / "run/c.sock"))
    process = Process(os.getpid(), 1, "/bin/c", str(root), None, ("c",), "/proc")
    runtime = Runtime(Endpoint("containerd", socket), process, answer)
    drop_in = HostPath("/d", "/d")
    files = load.load(HOST, gen, str(root))
    return ContainerdNode(HOST, runtime, files, "/usr/bin/containerd", drop_in, gen)


def test_trial_containerd_has_places_of_its_own(tmp_path: Path) -> None:
    """By its own file, with directories and a socket of its own; what it writes to is hidden, but
    for the sockets that it connects to. NRI's plugins are not started."""
    for name in ("run", "data", "proxy", "nri"):
        (tmp_path / name).mkdir()
    node = node_with(
        tmp_path,
        f"""
        version = 3
        [grpc]
        address = "{tmp_path}/run/c.sock"
        [proxy_plugins.nydus]
        type = "snapshot"
        address = "{tmp_path}/run/nydus.sock"
        [plugins."io.containerd.snapshotter.v1.overlayfs"]
        root_path = "{tmp_path}/data"
        [plugins."io.containerd.nri.v1.nri"]
        plugin_path = "{tmp_path}/nri"
        socket_path = "/run/nri/nri.sock"
        [plugins."io.containerd.internal.v1.opt"]
        path = "/opt/containerd"
        """,
    )
    desired = Desired({"nvidia": {"options": {"BinaryName": "/n/nvidia-container-runtime"}}})
    files = {str(tmp_path / "conf.d/99-nvidia.toml"): b"x"}
    launch = trial_containerd.launch(node, "/usr/bin/containerd", desired, files)
    assert launch.argv[:3] == ("/usr/bin/containerd", "-c", str(tmp_path / "config.toml"))
    view = launch.view
    own = dict(zip(launch.argv[3::2], launch.argv[4::2], strict=True))
    assert own.keys() == {"--root", "--state", "--address"}
    assert all(Path(path).parent == Path(view.work) for path in own.values())
    assert own["--address"] == launch.socket
    for name in ("run", "data", "nri"):
        assert str(tmp_path / name) in view.writable
    assert {"/run/containerd", "/run/nri", "/opt/containerd"} <= {*view.writable}
    assert view.visible == (f"{tmp_path}/run/nydus.sock",)
    assert view.programs == ("/n/nvidia-container-runtime",)
    assert view.files == files


def test_directory_with_what_the_runtime_reads_is_not_hidden(tmp_path: Path) -> None:
    """A socket beside the configuration does not make it go away."""
    text = f'version = 3\n[grpc]\naddress = "{tmp_path}/c.sock"\n'
    node = node_with(tmp_path, text)
    view = trial_containerd.launch(node, "/usr/bin/containerd", Desired({}), {}).view
    assert str(tmp_path) not in (*view.writable, view.work)


def test_environment_is_that_of_the_running_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what its service manager gave to it alone."""
    found = {"HTTP_PROXY": "p", "NOTIFY_SOCKET": "/run/systemd/notify", "LISTEN_FDS": "1"}
    monkeypatch.setattr("agent.cri.process.environment", lambda _: found)
    process = Process(7, 1, "/c", None, None, ("c",), "/proc")
    assert trial.environment(process).keys() == {"PATH", "HTTP_PROXY"}
    assert trial.environment(None).keys() == {"PATH"}
