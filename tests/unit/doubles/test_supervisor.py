"""The supervisor of the doubles restarts what ends and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.doubles.runtime.supervisor import Supervisor
from tests.tools.waiting import SOON


def test_supervisor_waits_and_gives_up_as_told(tmp_path: Path) -> None:
    with Supervisor(["sleep", "60"], None, tmp_path, delay=None) as supervisor:
        first = supervisor.pid
        supervisor.send(signal.SIGKILL)
        assert supervisor.wait_until(lambda s: not s.running)
        assert not supervisor.wait_until(lambda s: s.starts > 1, timeout=0.3)
        supervisor.delay, supervisor.argv = 0.01, ["sleep", "61"]
        assert supervisor.wait_until(lambda s: s.starts == 2)
        second = supervisor.pid

    assert not any(Path(f"/proc/{pid}").exists() for pid in (first, second))
    assert supervisor.starts == 2
    assert not supervisor.running


def test_supervisor_ends_what_ignores_the_signal(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf')"
    argv = [sys.executable, "-uc", f"{program}; time.sleep(60)"]
    with Supervisor(argv, None, tmp_path) as supervisor:
        while "deaf" not in supervisor.log.read_text():
            time.sleep(0.01)
        supervisor.stop(grace=0.1)

        assert not supervisor.running
        assert supervisor.starts == 1


def test_supervisor_runs_as_a_program(tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "doubles/runtime/supervisor.py"
    options = ["--directory", str(tmp_path), "--pidfile", str(tmp_path / "pid"), "--delay", "0.01"]
    argv = [sys.executable, str(program), *options, "--", "sleep", "0.05"]
    with subprocess.Popen(argv) as process:
        log = tmp_path / "sleep.log"
        while not (log.exists() and log.read_text().count("started") >= 3):
            time.sleep(0.01)
        assert int((tmp_path / "pid").read_text()) == process.pid
        process.terminate()
        assert process.wait(SOON) == 0
