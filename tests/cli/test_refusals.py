"""A refusal (exit 3) touched nothing: whatever is in the way is found before the first write.

Each refusal is one way to make a node impossible to change. Afterwards every file is as before
(names, bytes, mode, owner, times), the runtime is the same process, and readiness is what it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, fails, shows
from tests.cli.installing import release
from tests.cli.namespace import Namespace
from tests.cli.test_disk import set_immutable
from tests.conformance import checks, statusfile
from tests.conformance.trees import Entry, snapshot, touched
from tests.doubles.containerd.sample import SECTIONS, handler
from tests.tools.driver import make_driver, remove_driver

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounts and device nodes need root: run tests/run as root"
)


class WholeNode(CliNode):
    """A node on which an apply writes everything: toolkit, specs, configuration and status."""

    def __init__(self, directory: Path, version: str = "2.1.9") -> None:
        self.cdi, self.driver = directory / "cdi", directory / "driver"
        section = SECTIONS[2 if version.startswith("1") else 3]
        text = f"[{section}]\ncdi_spec_dirs = {json.dumps([str(self.cdi)])}\n"
        super().__init__(directory, version, text + handler("runc", section))
        shutil.rmtree(self.toolkit)
        self.toolkit.parent.rmdir()
        self.source = release(directory, "1.19.0")
        self.cdi.mkdir()
        (directory / "var").mkdir()
        self.state = directory / "var/agent-state"
        make_driver(self.driver)

    def options(self) -> list[str]:
        kept = [word for word in super().options() if not word.startswith("--cdi-output-dir")]
        own = [f"--driver-root={self.driver}", f"--dev-root={self.driver}"]
        return [*kept, *own, f"--toolkit-source-root={self.source}"]

    def everything(self) -> dict[str, Entry]:
        """All that an apply could have touched, but for where a failure is told."""
        found: dict[str, Entry] = {}
        for above in (self.etc, self.cdi, self.directory / "nvidia", self.directory / "var"):
            if above.exists():
                found |= {f"{above}/{name}": one for name, one in snapshot(above).items()}
        for name in (statusfile.READY, statusfile.TWIN):
            path = self.validations / name
            if path.exists():
                found |= {f"{path}/{key}": one for key, one in snapshot(path).items()}
        return found


Prepare = Callable[[WholeNode, Namespace], None]


def _read_only(*names: str) -> Prepare:
    def prepare(node: WholeNode, namespace: Namespace) -> None:
        for name in names:
            (node.directory / name).mkdir(parents=True, exist_ok=True)
            namespace.read_only(node.directory / name)

    return prepare


def _full(*names: str) -> Prepare:
    def prepare(node: WholeNode, namespace: Namespace) -> None:
        for name in names:
            directory = node.directory / name
            directory.mkdir(parents=True, exist_ok=True)
            namespace.mount("-t", "tmpfs", "-o", "size=64k,mode=755", "full", str(directory))
            inside = Path(f"/proc/{namespace.prefix[1].split('/')[2]}/root{directory}")
            for path in directory.iterdir():
                if path.is_file():
                    shutil.copy(path, inside / path.name)
            with pytest.raises(OSError, match="No space"):
                (inside / "filler").write_bytes(bytes(1 << 17))

    return prepare


def _file_is_mounted(node: WholeNode, namespace: Namespace) -> None:
    namespace.mount("--bind", str(node.config), str(node.config))


def _no_drop_in_directory(node: WholeNode, _: Namespace) -> None:
    (node.etc / "conf.d").touch()


def _long_name(node: WholeNode, _: Namespace) -> None:
    node.drop_in = node.etc / f"{'n' * 245}.toml"


REFUSALS: dict[str, tuple[Prepare, tuple[str, ...], str]] = {
    "read-only configuration": (_read_only("etc"), (), "read-only file system"),
    "read-only drop-ins": (_read_only("etc/conf.d"), (), "read-only file system"),
    "mounted file": (_file_is_mounted, (), "not the single file"),
    "full disk of the configuration": (_full("etc"), (), "no space left"),
    "drop-in directory is a file": (_no_drop_in_directory, (), "not a directory"),
    "name too long": (_long_name, ("--drop-in-config={node.drop_in}",), "name too long"),
    "read-only toolkit": (_read_only("nvidia"), (), "nvidia/toolkit"),
    "full disk of the toolkit": (_full("nvidia"), (), "no space left"),
    "read-only specs": (_read_only("cdi"), (), "management.nvidia.com-gpu.yaml"),
    "full disk of the specs": (_full("cdi"), (), "no space left"),
    "read-only status": (_read_only("validations"), (), "validations"),
    "full disk of the state": (_full("var"), (), "no space left"),
    "restart not possible": (
        lambda *_: None,
        ("--restart-mode=systemd", "--host-root=/"),
        "cannot restart",
    ),
    "specs where nobody reads": (lambda *_: None, ("--cdi-output-dir=/elsewhere",), "elsewhere"),
    "no source of the toolkit": (
        lambda *_: None,
        ("--toolkit-source-root=/not-there",),
        "/not-there",
    ),
}


@pytest.fixture
def whole(place: Path) -> Iterator[WholeNode]:
    with WholeNode(place) as node:
        yield node


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_touches_nothing(name: str, whole: WholeNode, namespace: Namespace) -> None:
    """On a node that was never touched: not even a state directory is made."""
    prepare, given, said = REFUSALS[name]
    prepare(whole, namespace)
    options = tuple(word.format(node=whole) for word in given)
    _refuses(whole, namespace, options, said)
    assert not (whole.state / "journal.json").exists()
    assert whole.ready() is None


@pytest.mark.parametrize("name", ["read-only configuration", "full disk of the configuration",
                                  "read-only drop-ins", "read-only specs"])  # fmt: skip
def test_refusal_keeps_a_ready_node_ready(
    name: str, whole: WholeNode, namespace: Namespace
) -> None:
    """Another default is asked for, with another toolkit: the old state stays, and stays ready."""
    checks.done(whole.agent("apply"))
    ready = whole.ready()
    prepare, given, said = REFUSALS[name]
    prepare(whole, namespace)
    whole.source = release(whole.directory, "1.20.0")
    if name == "read-only specs":
        remove_driver(whole.driver)
        make_driver(whole.driver, "560.28.03")
    options = ("--set-as-default=true", *(word.format(node=whole) for word in given))
    _refuses(whole, namespace, options, said)
    assert whole.ready() == ready


def test_immutable_file_is_refused_beforehand(whole: WholeNode, namespace: Namespace) -> None:
    """The attribute is seen beforehand."""
    try:
        set_immutable(whole.config, on=True)
    except OSError as error:
        pytest.skip(f"this file system knows no immutable files: {error}")
    try:
        _refuses(whole, namespace, (), "immutable")
    finally:
        set_immutable(whole.config, on=False)


@pytest.mark.parametrize("version", ["1.7.24", "2.1.9"])
def test_configuration_in_a_read_only_usr_is_refused(
    version: str, place: Path, namespace: Namespace
) -> None:
    """Flatcar: the unit's file lies in /usr, which cannot be written (gpu-operator#673)."""
    with WholeNode(place, version) as node:
        namespace.read_only(node.etc)
        _refuses(node, namespace, (), "read-only file system")
        if version.startswith("1"):
            fails(node.agent("apply", prefix=namespace.prefix), 3, "CONTAINERD_CONFIG")


def test_failed_candidate_is_refused_before_a_spec_is_written(
    whole: WholeNode, namespace: Namespace
) -> None:
    """What failed before is refused before a spec that is missing is written."""
    whole.script(die_when={"default": "nvidia"})
    options = ("--proof-timeout=1", "--set-as-default=true")
    result = whole.agent("apply", *options)
    assert result.returncode == 5, checks.said(result)
    (spec,) = whole.cdi.iterdir()
    spec.unlink()
    _refuses(whole, namespace, options, "failed before")


def _refuses(node: WholeNode, namespace: Namespace, options: tuple[str, ...], said: str) -> None:
    """Plan, status and apply say the same, and nothing changes."""
    before, pid, starts = node.everything(), node.supervisor.pid, node.supervisor.starts
    plan = node.agent("plan", "-o", "json", *options, prefix=namespace.prefix)
    refused = shows(plan, "Plan", 1)["refused"]
    assert any(text.startswith("cannot") and said in text for text in refused), refused
    shown = node.agent("status", "-o", "json", *options, prefix=namespace.prefix)
    assert said in json.loads(shown.stdout)["problem"]
    for _ in range(2):
        result = node.agent("apply", *options, prefix=namespace.prefix)
        fails(result, 3, said)
        assert touched(before, node.everything()) == [], checks.said(result)
    assert (node.supervisor.pid, node.supervisor.starts) == (pid, starts)
    assert node.supervisor.running
