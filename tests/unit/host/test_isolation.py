"""Programs in namespaces of their own see what they need, and nothing reaches the host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host import isolation
from agent.host.isolation import CannotIsolate, IsolatedProgram, View
from agent.host.paths import HostRoot
from tests.tools.nobody import as_nobody
from tests.tools.waiting import wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="namespaces need root: run tests/run as root"
)
_ENV = {"PATH": os.defpath}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory that is empty and writable for the program."""
    found = tmp_path / "work"
    found.mkdir()
    return found


def ended(program: IsolatedProgram) -> str:
    """Wait for the end of a program; gives what it said."""
    wait_until(program.has_ended)
    return program.output()


def shell(script: str, view: View, root: str = "/") -> str:
    """What a shell says that does this, its streams together."""
    argv = ["/bin/sh", "-c", script]
    with isolation.start(HostRoot(root), argv, _ENV, view) as program:
        return ended(program)


def test_nothing_reaches_the_host(tmp_path: Path, work: Path) -> None:
    """Neither a new file, nor a changed or removed one, nor anything in its own directories."""
    (tmp_path / "there").write_text("mine")
    said = shell(
        f"cd {tmp_path}; touch new; echo x > there; rm there; mkdir d; cat there;"
        f" echo ok > {work}/file; cat {work}/file",
        View(str(work)),
    )
    assert said.count("Read-only file system") >= 3
    assert said.endswith("mineok\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "work"]
    assert list(work.iterdir()) == []


def test_files_are_presented_under_their_names(tmp_path: Path, work: Path) -> None:
    """Another content, one where none was, none where one was; all else is as on the host."""
    etc = tmp_path / "etc"
    (etc / "sub").mkdir(parents=True)
    for name in ("changed", "gone", "kept", "sub/inner"):
        (etc / name).write_text(f"old {name}\n")
    (etc / "link").symlink_to("kept")
    files = {
        f"{etc}/changed": b"new\n", f"{etc}/gone": None, f"{etc}/conf.d/drop-in": b"made\n",
        f"{etc}/not/there": None,
    }  # fmt: skip
    script = f"cd {etc}; cat changed link sub/inner conf.d/drop-in; ls; ls gone not/there 2>&1"
    said = shell(script, View(str(work), files=files))
    assert said.startswith("new\nold kept\nold sub/inner\nmade\nchanged\nconf.d\nkept\nlink\nsub\n")
    assert said.count("No such file") == 2
    assert sorted(path.name for path in etc.iterdir()) == [
        "changed", "gone", "kept", "link", "sub",
    ]  # fmt: skip
    assert (etc / "changed").read_text() == "old changed\n"


def test_missing_executables_are_empty_and_directories_writable(tmp_path: Path, work: Path) -> None:
    """Executables are there, empty; directories are there, and writable."""
    program, directory = tmp_path / "opt/toolkit/bin/run", tmp_path / "run/state"
    real = tmp_path / "real"
    real.write_text("#!/bin/sh\necho real\n")
    real.chmod(0o755)
    view = View(str(work), writable=(str(directory),), programs=(str(program), str(real)))
    said = shell(f"test -x {program} && {real} && touch {directory}/f && ls {directory}", view)
    assert said == "real\nf\n"
    assert not (tmp_path / "opt").exists()


def test_socket_below_a_hidden_directory_can_be_reached(work: Path) -> None:
    """Proxy plugins listen where the runtime has its own sockets."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(work / "proxy.sock"))
        server.listen()
        (work / "other.sock").touch()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect('{work}/proxy.sock')"
        view = View(str(work), visible=(str(work / "proxy.sock"), str(work / "not-there")))
        said = shell(f'{sys.executable} -ISc "{code}" && ls {work}', view)
        assert said == "proxy.sock\n"


def test_network_and_processes_are_its_own(work: Path) -> None:
    """A route and an address are there, which a containerd looks for, and nobody to talk to."""
    said = shell("cat /proc/net/route; echo; ls -d /proc/[0-9]* | wc -l", View(str(work)))
    routes, _, count = said.rpartition("\n\n")
    assert {line.split()[0] for line in routes.splitlines()[1:]} == {"lo"}
    assert int(count) <= 4


def test_paths_are_the_hosts_below_another_root(tmp_path: Path) -> None:
    """Paths are the host's, below the root that a container has mounted."""
    host = tmp_path / "host"
    for name in ("dev", "proc", "work", "etc"):
        (host / name).mkdir(parents=True)
    (host / "bin").symlink_to("/usr/bin")
    with pytest.raises(CannotIsolate, match=r"run the program.*no such file"):
        shell("true", View("/work", files={"/etc/new": b""}), str(host))
    assert list((host / "etc").iterdir()) == []


def test_end_takes_everything_along(work: Path) -> None:
    """Also what has left its session."""
    script = "setsid sleep 1000 & echo $!; exec sleep 1000"
    argv = ["/bin/sh", "-c", script]
    with isolation.start(HostRoot("/"), argv, _ENV, View(str(work))) as program:
        wait_until(lambda: bool(program.output()))
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        program.end()
        assert program.has_ended()
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in [*children, program.pid])


def test_program_ends_with_us(work: Path) -> None:
    """A killed agent leaves nothing running."""
    code = (
        "import sys, time; from agent.host.isolation import *; from agent.host.paths import *\n"
        f"with start(HostRoot('/'), ['/bin/sleep', '1000'], {{}}, View('{work}')) as program:\n"
        "    print(program.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_mounts_are_read_only_on_kernels_before_5_12(work: Path) -> None:
    """Before Linux 5.12 every mount is made read-only by itself."""
    code = (
        "from agent.host import isolation_child as child; child._mount('', '/', '', child._ALL | "
        "child._PRIVATE); child._remount_each_read_only()\n"
        f"try: open('{work}/new', 'w')\nexcept OSError as error: print(error.strerror)"
    )
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "Read-only file system\n", done.stderr


def test_without_rights_nothing_is_started(tmp_path: Path, work: Path) -> None:
    """The reason is for people."""
    code = (
        "from agent.host.isolation import *; from agent.host.paths import *\n"
        "try:\n"
        f"    with start(HostRoot('/'), ['/bin/true'], {{}}, View('{work}')): pass\n"
        "except CannotIsolate as error: print(error)"
    )
    done = subprocess.run(
        [*as_nobody(tmp_path), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "make namespaces: operation not permitted\n", done.stderr


def test_missing_program_leaves_no_process(work: Path) -> None:
    """No process is left, and the name is told."""
    program = isolation.start(HostRoot("/"), ["/no/such"], _ENV, View(str(work)))
    with pytest.raises(CannotIsolate, match=r"run the program \(/no/such\): no such file"), program:
        pass
