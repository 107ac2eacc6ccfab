"""The demo succeeds on a real containerd and on the scripted one, and leaves nothing."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.nobody import as_nobody
from tests.tools.runtimes import CACHE_VARIABLE, ROOT

DEMO = [sys.executable, str(ROOT / "deploy/demo.d/demo.py")]
STEPS = ("plan", "apply", "grep", "verify", "apply", "revert")
LINES = 120  # a person reads them all


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for the demo's directory; empty again when it is over."""
    place = tmp_path_factory.mktemp("demo")
    place.chmod(0o1777)
    for above in (place.parent, place.parent.parent):
        above.chmod(above.stat().st_mode | 0o011)  # for a demo that is not root's
    yield place
    assert list(place.iterdir()) == []
    assert processes_of(place) == []


def environment(place: Path, **more: str) -> dict[str, str]:
    """The only environment that the demo gets; the runtimes are where the tests have theirs."""
    own = {"PATH": os.defpath, "TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    cache = os.environ.get(CACHE_VARIABLE)
    return own | ({CACHE_VARIABLE: cache} if cache else {}) | more


def processes_of(place: Path) -> list[str]:
    """Command lines that name the place."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(place) in line and path.parent.name != str(os.getpid()):
            found.append(line.decode(errors="replace"))
    return found


def runs(argv: list[str], env: dict[str, str]) -> str:
    """The output of a demo that ended well and shows its steps in their order."""
    done = subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=240, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith("demo: all of it was as it should be.\n")
    shown = re.findall(r"(?m)^\$ (?:toolkit-agent )?(\w+)", done.stdout)
    steps = [word for word, _ in itertools.groupby(word for word in shown if word in STEPS)]
    assert steps[-len(STEPS) :] == list(STEPS)
    assert "\nTOOLKIT_NATIVE_CDI=true\n" in done.stdout
    assert "Nothing to do: the node is configured as decided" in done.stdout
    assert "Nothing was touched, and containerd runs." in done.stdout
    assert done.stdout.count("\n") <= LINES
    return done.stdout


@pytest.mark.real
def test_demo_succeeds_on_a_real_containerd(place: Path) -> None:
    """As root, with private mounts, on the usual paths."""
    text = runs(DEMO, environment(place))
    assert "A real containerd " in text
    assert "NOTE" not in text
    assert "edit       /etc/containerd/config.toml" in text
    assert 'no runtime for "nvidia" is configured' in text
    assert "\nProven:    pods run" in text


def test_demo_without_a_containerd_uses_the_double_and_says_so(place: Path) -> None:
    """Where none can be had, a scripted one stands in, and the output says so and why."""
    text = runs(DEMO, environment(place, **{CACHE_VARIABLE: str(place / "none")}))
    assert "NOTE: no real containerd (" in text
    assert "A scripted one stands in" in text
    assert "No pod:    " in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else: run tests/run")
def test_demo_without_root_uses_the_double(place: Path) -> None:
    """Without root it is the scripted one, too."""
    text = runs([*as_nobody(place), *DEMO], environment(place))
    assert "NOTE: no real containerd (not root)" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(place: Path, number: signal.Signals) -> None:
    """It goes away at once, with everything that it started."""
    with subprocess.Popen(DEMO, env=environment(place), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("$ toolkit-agent apply"):
                break
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(20) == 128 + number


def test_demo_that_goes_wrong_exits_with_1(place: Path) -> None:
    """A step that is not as it should be ends it, with exit 1 and a line that says so."""
    code = (
        "import runpy, sys\n"
        "demo = runpy.run_path(sys.argv[1])\n"
        "demo['main'].__globals__['make_sources'] = lambda directory: directory\n"
        "demo['main']()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, DEMO[1]],
        env=environment(place), capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "demo: NOT as it should be: toolkit-agent ended with 3, not 0" in done.stderr
