"""What all tests share: which of them run here, two fixtures, and a line about real runtimes."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# PYTHONPATH may lead to another checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import sampling
from tests.conformance import table
from tests.generations import table as model_table
from tests.tools import surroundings
from tests.tools.runtimes import WANTED, Inventory, Runtime, load

# The same examples each time: a failure is the change's, not the day's. `search` looks for others
# (tests/run --hypothesis-profile=search tests/unit).
settings.register_profile("short", deadline=None, derandomize=True, database=None, max_examples=40)
settings.register_profile("long", settings.get_profile("short"), max_examples=250)
settings.register_profile("search", deadline=None, max_examples=10_000)

# A property of a test's report: where tests run in several processes, reports are all that arrives.
_USED = "real runtime"
INVENTORY = pytest.StashKey[Inventory]()
_IGNORED = pytest.StashKey[list[int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`; TOOLKIT_AGENT_LONG=1 means the same."""
    default = os.environ.get("TOOLKIT_AGENT_LONG") == "1"
    parser.addoption("--long", action="store_true", default=default, help="run long tests too")


def pytest_configure(config: pytest.Config) -> None:
    """Say how long this run may be, and read once what is there."""
    sampling.settle(long=config.getoption("--long"))
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("long" if config.getoption("--long") else "short")
    config.stash[INVENTORY] = load()


def pytest_report_header() -> str:
    """Say which cases of many are taken."""
    return f"sample of the commit: {sampling.seed()} (another one: {sampling.VARIABLE}=WORD)"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the address of a socket in it has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="node-") as name:
        yield Path(name)


@pytest.fixture
def runtime(generation: str) -> Runtime:
    """The containerd of the test's parameter `generation`; without one the test is skipped."""
    found = load().find(generation)
    assert found is not None, load().reason(generation)
    return found


@pytest.hookimpl(tryfirst=True)  # before there are other processes
def pytest_sessionstart(session: pytest.Session) -> None:
    """Make what the tests were started with the same everywhere."""
    given = getattr(session.config, "workerinput", {})
    try:
        session.config.stash[_IGNORED] = surroundings.settle(given.get("ignored", ()))
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_configure_node(node: Any) -> None:
    """Tell another process of these tests what it has to ignore, too."""
    node.workerinput["ignored"] = node.config.stash[_IGNORED]


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Spare the search for garbage among the thousands of objects that stay, now and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is too much for this run; skip what cannot run here, saying how it can."""
    if not config.getoption("--long"):
        left_out = sampling.left_out(items, {arg.partition("::")[0] for arg in config.args})
        config.hook.pytest_deselected(items=left_out)
        unwanted = set(left_out)
        items[:] = [item for item in items if item not in unwanted]
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))  # the default is for tests of seconds
        reason = _reason_to_skip(item, config)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _reason_to_skip(item: pytest.Item, config: pytest.Config) -> str | None:
    if item.get_closest_marker("long") and not config.getoption("--long"):
        return "long: run tests/run --long"
    if not item.get_closest_marker("real"):
        return None
    if os.geteuid() != 0:
        return "a real runtime needs root: run tests/run as root"
    inventory = config.stash[INVENTORY]
    missing = [g for g in _generations(item, inventory) or WANTED if not inventory.find(g)]
    return inventory.reason(missing[0]) if missing else None


def _generations(item: pytest.Item, inventory: Inventory) -> list[str]:
    """Return what a `real` test needs: its marker's arguments and its parameter `generation`.

    A test that names none takes whatever there is.
    """
    named = [str(g) for marker in item.iter_markers("real") for g in marker.args]
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "generation" in callspec.params:
        named.append(str(callspec.params["generation"]))
    return named or [r.generation for r in inventory.runtimes]


def pytest_runtest_call(item: pytest.Item) -> None:
    """Note the runtimes of a test that really runs."""
    if item.get_closest_marker("real"):
        found = _generations(item, item.config.stash[INVENTORY])
        item.user_properties += [(_USED, generation) for generation in found]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which real runtimes took part, so that a run without any cannot pass for one with."""
    table.show(terminalreporter)
    model_table.show(terminalreporter)
    inventory = config.stash[INVENTORY]
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)]
    named = {
        value
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == _USED
    }
    used = [r for r in inventory.runtimes if r.generation in named]
    if used:
        answer = ", ".join(f"{r.name} {r.version}" for r in used)
    elif os.geteuid() != 0:
        answer = "none (not root)"
    elif not inventory.runtimes:
        answer = f"none ({inventory.reason(WANTED[-1])})"
    else:
        answer = "none (no test that needs one ran)"
    terminalreporter.write_line(f"real runtimes used: {answer}")
    _show_times(terminalreporter)


def _show_times(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the time went, in seconds of all processes together."""
    folders: dict[str, float] = defaultdict(float)
    modules: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                path = report.nodeid.partition("::")[0]
                modules[path] += report.duration
                folders[path.rpartition("/")[0]] += report.duration
    for word, times in (("folder", folders), ("module", modules)):
        slowest = sorted(times.items(), key=lambda item: -item[1])[:12]
        shown = ", ".join(f"{name} {seconds:.0f}" for name, seconds in slowest if seconds >= 1)
        if shown:
            terminalreporter.write_line(f"seconds by {word}: {shown}")
    terminalreporter.write_line(f"sample of the commit: {sampling.seed()}")


@pytest.fixture(autouse=True)
def signals_arrive() -> Iterator[None]:
    """See that a test leaves no signal blocked: programs of later tests would never end."""
    yield
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    assert not blocked, f"the test has left {sorted(blocked)} blocked"
