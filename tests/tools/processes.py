"""Run the tests in several processes, which are forked once all tests are collected.

    tests/run --processes 8 tests/cli

To import and collect the tests takes longer than to run most modules: so it is done once. Each
process gets neighbouring tests, because these share nodes; one that has none left takes half of
what another one has left. Tests that share a fixture of their module stay together.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pytest
from _pytest.runner import runtestprotocol

from tests.tools import forked


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--processes`."""
    parser.addoption("--processes", type=int, default=1, help="run tests in so many processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run them, if that is asked for and makes sense."""
    option = session.config.option
    count = min(option.processes, len(session.items))
    if count < 2 or session.testsfailed or option.collectonly or option.usepdb:
        return None
    _Starter(session, count).run()
    return True


class Shares:
    """Which process runs which tests, by their numbers."""

    def __init__(self, keys: Sequence[object], count: int) -> None:
        """`keys`: neighbours with the same key, other than None, stay together."""
        self._apart = [
            key is None or number == 0 or key != keys[number - 1] for number, key in enumerate(keys)
        ]
        self._rest: list[deque[int]] = [deque() for _ in range(count)]
        owner = 0
        for number in range(len(keys)):
            if self._apart[number]:
                owner = number * count // len(keys)
            self._rest[owner].append(number)

    def take(self, process: int) -> int | None:
        """The next test of this process; None if there is no more."""
        own = self._rest[process]
        if not own:
            self._take_over(own)
        return own.popleft() if own else None

    def give_back(self, process: int, numbers: Sequence[int]) -> None:
        """A process has ended before it ran these."""
        self._rest[process].extendleft(reversed(numbers))

    def _take_over(self, own: deque[int]) -> None:
        for other in sorted(self._rest, key=len, reverse=True):
            numbers = list(other)
            half = len(numbers) // 2
            cuts = (*range(half, len(numbers)), *range(half - 1, 0, -1))
            cut = next((cut for cut in cuts if self._apart[numbers[cut]]), None)
            if cut is not None:
                other.clear()
                other.extend(numbers[:cut])
                own.extend(numbers[cut:])
                return


@dataclass
class _Process:
    number: int
    pid: int
    given: deque[int] = field(default_factory=deque)  # the test that it runs, and its next one
    told_end: bool = False


class _Starter:
    """The process that starts the others, gives them tests and hears how these ended."""

    def __init__(self, session: pytest.Session, count: int) -> None:
        self._session = session
        self._config: Any = session.config
        self._shares = Shares([_shared_by(item) for item in session.items], count)
        self._count = count
        self._processes: dict[Connection, _Process] = {}
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # tests of several modules run at a time

    def run(self) -> None:
        """Run all tests. Raises what pytest's own loop raises."""
        forked.address()  # one server for all
        self._config._tmp_path_factory.getbasetemp()
        gc.freeze()  # no collection writes to pages that are shared
        try:
            for number in range(self._count):
                self._start(number)
            while self._processes:
                for connection in wait(list(self._processes)):
                    assert isinstance(connection, Connection)
                    self._hear(connection)
        finally:
            for connection, process in self._processes.items():
                connection.close()
                os.waitpid(process.pid, 0)
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)

    def _start(self, number: int) -> None:
        ours, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for connection in (ours, *self._processes):
                connection.close()
            _run(self._session, number, theirs)
        theirs.close()
        process = self._processes[ours] = _Process(number, pid)
        for _ in range(2):
            self._give(ours, process)

    def _give(self, connection: Connection, process: _Process) -> None:
        if process.told_end:
            return
        stopped = self._session.shouldfail or self._session.shouldstop
        test = None if stopped else self._shares.take(process.number)
        try:
            connection.send(test)
        except OSError:  # it has ended, which is heard soon
            if test is not None:
                self._shares.give_back(process.number, [test])
            return
        if test is None:
            process.told_end = True
        else:
            process.given.append(test)

    def _hear(self, connection: Connection) -> None:
        process = self._processes[connection]
        try:
            reports = connection.recv()
        except (EOFError, OSError):
            self._bury(connection)
            return
        item = self._session.items[process.given.popleft()]
        hook = self._config.hook
        for data in reports:
            report = hook.pytest_report_from_serializable(config=self._config, data=data)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._give(connection, process)

    def _bury(self, connection: Connection) -> None:
        process = self._processes.pop(connection)
        connection.close()
        _, status = os.waitpid(process.pid, 0)
        if not process.given:
            return
        test, *others = process.given
        self._shares.give_back(process.number, others)
        item = self._session.items[test]
        told = f"the process of this test ended with {os.waitstatus_to_exitcode(status)}"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", told, "call")
        self._config.hook.pytest_runtest_logreport(report=report)
        self._start(process.number)


def _shared_by(item: pytest.Item) -> str | None:
    """The module of a test that shares something with others of it."""
    info: Any = getattr(item, "_fixtureinfo", None)
    found = info.name2fixturedefs.values() if info else ()
    shares = any(fixtures[-1].scope == "module" for fixtures in found)
    return item.nodeid.partition("::")[0] if shares else None


class _Runner:
    """In a forked process: sends the reports of a test instead of showing them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test."""
        hook = item.config.hook
        self._connection.send(
            [
                hook.pytest_report_to_serializable(config=item.config, report=report)
                for report in runtestprotocol(item, log=False, nextitem=nextitem)
            ]
        )
        return True


def _run(session: pytest.Session, number: int, connection: Connection) -> NoReturn:
    """In a forked process: run the tests that the starter names."""
    code = 1
    try:
        atexit._clear()  # what is registered is the starter's
        forked.inherit()
        _settle(session.config, number)
        _run_tests(session, connection)
        code = 0
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the starter has ended, or is about to
    except BaseException:  # noqa: BLE001 - the starter says which test it was
        traceback.print_exc()
    finally:
        try:
            session._setupstate.teardown_exact(None)
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _settle(config: Any, number: int) -> None:
    """Take files of its own for what is captured, and a directory for what tests write."""
    captures = config.pluginmanager.getplugin("capturemanager")
    captures.stop_global_capturing()
    captures.start_global_capturing()
    captures.suspend_global_capture()
    factory = config._tmp_path_factory
    factory._basetemp = factory.getbasetemp() / str(number)
    factory._basetemp.mkdir(0o700, exist_ok=True)  # another process had it, if that has crashed


def _run_tests(session: pytest.Session, connection: Connection) -> None:
    session.config.pluginmanager.register(_Runner(connection))
    number = connection.recv()
    while number is not None:
        following = connection.recv()
        item = session.items[number]
        next_item = None if following is None else session.items[following]
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
        number = following
