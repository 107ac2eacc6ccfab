"""What is done to a node while its agent is interrupted, and what must hold afterwards.

    with SpecNode(place) as node:         # or another node
        case = Case(node)
        case.prepare("apply")
        node.in_steps("apply", "fail:17:EIO")
        case.is_old_or_new()
        case.recover()

Invariant: each case ends with the node as it began, byte for byte, so that one node serves for all
steps of a command; whatever is left over then is a failure.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode
from tests.cli.installing import beside, installed, put_foreign, release
from tests.conformance import checks, statusfile, steps
from tests.conformance.trees import Contents, contents
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.sampling import by_run, sample
from tests.tools import forked
from tests.tools.driver import make_driver
from tests.tools.waiting import wait_until

SPEC = "management.nvidia.com-gpu.yaml"
_PUBLISHED = {statusfile.READY, statusfile.TWIN}
_IDLE_STATE = {"lock", "originals"}


class PlainNode(CliNode):
    """A node without CDI specs: any user can have one. `DYING` tells its runtime on which
    configuration it ends at once."""

    VERSION = "2.1.9"
    needs_root = False
    dying: Mapping[str, object] | None = None
    patience = 15  # seconds for a proof; a busy machine must not turn a verdict
    every = 1  # of its steps, so many are one that fails
    undo = "revert"  # the command that puts all back that these tests look at

    def __init__(self, directory: Path) -> None:
        self.cdi = directory / "cdi"
        super().__init__(directory, self.VERSION, self.text(directory))

    def text(self, directory: Path) -> str | None:
        """What the root file has besides the usual."""
        return None

    def options(self) -> list[str]:
        return [*super().options(), f"--proof-timeout={self.patience}"]

    def in_steps(
        self, command: str, fault: str = "0", *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the agent to its end with that fault; its steps are in `log`."""
        return self.finish(self.start_in_steps(command, fault, *options, env=env))

    def start_in_steps(
        self, command: str, fault: str, *options: str, env: Mapping[str, str] | None = None
    ) -> forked.Started:
        """Start it; it ends with the node at the latest."""
        for path in (self.log, self.waiting, self.go):
            path.unlink(missing_ok=True)
        with (
            open(os.devnull, "rb") as nothing,
            self.said[0].open("wb") as out,
            self.said[1].open("wb") as error,
        ):
            process = forked.start(
                steps.PROGRAM,
                [self.log, fault, *command.split(), *self.options(), *options],
                {**self.agent_environment(), **(env or {})},
                self.directory,
                (nothing.fileno(), out.fileno(), error.fileno()),
            )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self._stack.callback(self.go.touch)
        return process

    def finish(self, process: forked.Started) -> subprocess.CompletedProcess[str]:
        """Wait for the end of what was started, which may be waiting itself."""
        self.go.touch()
        code = process.wait(60)
        out, error = (path.read_text() for path in self.said)
        return subprocess.CompletedProcess(process.args, code, out, error)

    def stopped(self, process: forked.Started) -> int:
        """Wait until it, or its child, waits at its step; gives the pid."""
        wait_until(lambda: self.waiting.exists() or process.poll() is not None)
        return int(self.waiting.read_text("ascii"))

    @property
    def waiting(self) -> Path:
        """Has the pid of who waits."""
        return self.log.with_suffix(".waiting")

    @property
    def go(self) -> Path:
        """Lets it go on."""
        return self.log.with_suffix(".go")

    @property
    def said(self) -> tuple[Path, Path]:
        """Where the last run wrote its output and its errors to."""
        return self.directory / "out", self.directory / "error"

    @property
    def log(self) -> Path:
        """The steps of the last run."""
        return self.directory / "steps"

    def before_apply(self) -> None:
        """What has to be before `apply` has something to do."""

    def installed(self) -> Contents:
        """The toolkit's directory; empty where it is none of these tests' business."""
        return {}

    def rest(self) -> dict[str, list[str]]:
        """The names in every directory that the agent writes to, the configuration's aside."""
        places = {"state": self.state, "status": self.validations, "cdi": self.cdi}
        return {
            word: sorted(str(p.relative_to(place)) for p in place.rglob("*"))
            for word, place in places.items()
        }


class OldNode(PlainNode):
    """A containerd that is edited in place."""

    VERSION = "1.7.24"


class SpecNode(PlainNode):
    """A node with a driver, whose runtime reads the management spec from a private directory."""

    needs_root = True  # for device nodes

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.driver = directory / "driver"
        make_driver(self.driver)

    def text(self, directory: Path) -> str | None:
        section = SECTIONS[3]
        return f'[{section}]\ncdi_spec_dirs = ["{directory}/cdi"]\n{handler("runc", section)}'

    def options(self) -> list[str]:
        kept = [word for word in super().options() if not word.startswith("--cdi-output-dir")]
        return [*kept, f"--driver-root={self.driver}", f"--dev-root={self.driver}"]


class DyingNode(PlainNode):
    """A node whose runtime dies of the new configuration: what is interrupted is also the undo."""

    dying = {"die_when": {"handler": "nvidia"}}  # noqa: RUF012 - nobody changes it
    patience = 4  # it is waited for in vain


class InstallNode(PlainNode):
    """A node to which the toolkit comes from a tree of packages."""

    undo = "revert --toolkit"
    every = 5  # the directory's own steps fail one by one in tests of units

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        shutil.rmtree(self.toolkit.parent)
        self.source = release(directory, "1.19.0")

    def options(self) -> list[str]:
        return [*super().options(), f"--toolkit-source-root={self.source}"]

    def installed(self) -> Contents:
        return installed(self.toolkit)

    def rest(self) -> dict[str, list[str]]:
        return {**super().rest(), "beside": beside(self.toolkit)}


class UpgradeNode(InstallNode):
    """The same where another version of it is installed already."""

    def before_apply(self) -> None:
        new = self.source
        self.source = release(self.directory, "1.18.0")
        checks.done(self.agent("apply"))
        self.source = new


class TakeOverNode(InstallNode):
    """The same where somebody else has put a toolkit there, and something else."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        put_foreign(self.toolkit)


# What is interrupted: a kind of node and a command. A line here is a case of every test of that.
CASES: Mapping[str, tuple[type[PlainNode], str]] = {
    "apply": (SpecNode, "apply"),
    "revert": (SpecNode, "revert"),
    "apply-in-place": (OldNode, "apply"),
    "revert-in-place": (OldNode, "revert"),
    "undo": (DyingNode, "apply"),
    "install": (InstallNode, "apply"),
    "upgrade": (UpgradeNode, "apply"),
    "take-over": (TakeOverNode, "apply"),
    "revert-toolkit": (TakeOverNode, "revert --toolkit"),
}
_SOME, _MORE = 2, 8  # steps that are tried, without and with --long: each is several restarts
_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root: run as root")


def cases(*without: str) -> pytest.MarkDecorator:
    """Every case but these, as `kind` and `command`."""
    found = [
        pytest.param(kind, command, id=name, marks=[_as_root] if kind.needs_root else [])
        for name, (kind, command) in CASES.items()
        if name not in without
    ]
    return pytest.mark.parametrize(("kind", "command"), found)


def some_of(found: Sequence[int], name: str, more: int = _MORE) -> list[int]:
    """Steps to try, others for each commit, `more` in a long run; `name` tells samples apart."""
    assert len(found) > 5
    return sample(found, by_run(_SOME, more), name)


class Case:
    """A running node with what is known of it: its old and its new files."""

    def __init__(self, node: PlainNode) -> None:
        self.node = node
        self.old, self.old_toolkit = contents(node.tree()), node.installed()
        self.answer = node.answer()
        self.nothing = node.rest()
        checks.done(node.agent("apply"))
        self.new, self.new_toolkit = contents(node.tree()), node.installed()
        self.beside = node.rest().get("beside")
        self.start, self.start_toolkit = self.old, self.old_toolkit
        self.is_right()
        checks.done(node.agent(node.undo))
        self.is_as_before()

    def count(self, command: str) -> list[str]:
        """The steps of a command that nothing interrupts; afterwards the node is as before."""
        self.prepare(command)
        self.node.in_steps(command)
        found = steps.read(self.node.log)
        self.recover()
        return found

    def prepare(self, command: str) -> None:
        """What has to be before the command has something to do."""
        node = self.node
        node.before_apply() if command == "apply" else checks.done(node.agent("apply"))
        self.start, self.start_toolkit = contents(node.tree()), node.installed()
        node.script(**(node.dying or {}))

    def recover(self) -> None:
        """`apply` and `revert` on a node that nothing ails any more: right, then as before."""
        node = self.node
        node.script()
        node.settled()
        (node.state / "failed.json").unlink(missing_ok=True)  # what ailed it is gone
        checks.done(node.agent("apply"))
        self.is_right()
        checks.done(node.agent(node.undo))
        self.is_as_before()

    def give_up(self) -> None:
        """`revert` alone."""
        self.node.script()
        self.node.settled()
        checks.done(self.node.agent(self.node.undo))
        self.is_as_before()

    def is_old_or_new(self) -> None:
        """Each file is whole, the toolkit is too, and readiness is not told too early."""
        found, old, new = map(readable, (contents(self.node.tree()), self.old, self.new))
        for path in old.keys() | new.keys():
            assert found.get(path) in (old.get(path), new.get(path)), path
        toolkit = self.node.installed()
        assert toolkit in (self.start_toolkit, self.old_toolkit, self.new_toolkit)
        if (self.node.validations / statusfile.READY).exists():
            assert found == new
            assert toolkit in (self.start_toolkit, self.new_toolkit)

    def is_right(self) -> None:
        """New files, a runtime on them, published, and nothing else."""
        node = self.node
        assert contents(node.tree()) == self.new
        assert "nvidia" in node.answer().runtimes
        assert node.ready()
        found = node.rest()
        assert set(found["status"]) == _PUBLISHED
        assert set(found["cdi"]) <= {SPEC}
        assert bool(found["cdi"]) == isinstance(node, SpecNode)
        kept = [name for name in found["state"] if not name.startswith("originals/")]
        # `run` counts its restarts.
        assert set(kept) - {"restarts.json"} == {*_IDLE_STATE, "memory.json"}
        assert not [name for name in found["state"] if name.endswith("~")]
        assert node.installed() == self.new_toolkit
        assert found.get("beside") == self.beside

    def is_as_before(self) -> None:
        """Old bytes, the runtime on them, and nothing of ours anywhere."""
        node = self.node
        assert contents(node.tree()) == self.old
        assert node.installed() == self.old_toolkit
        assert node.answer() == self.answer
        found = node.rest()
        assert found == {**self.nothing, "state": sorted(_IDLE_STATE)}

    def runs_on_its_files(self) -> bool:
        """The runtime shows what its files say."""
        now = readable(contents(self.node.tree()))
        return ("nvidia" in self.node.settled().runtimes) == (now == readable(self.new))


def readable(tree: Contents) -> Contents:
    """The files that somebody reads: without directories, and without what could not be removed
    yet."""
    return {
        path: entry
        for path, entry in tree.items()
        if not path.endswith("~") and not stat.S_ISDIR(entry[0])
    }
