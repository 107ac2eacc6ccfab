"""From any tree of files a plan leads to the desired one, in our keys only and once."""

from __future__ import annotations

import os
import random as randoms
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cri.client import Answer
from agent.cri.versions import parse_version
from agent.decide import Decision, Evidence, Question, Switch, decide
from agent.errors import Refused
from agent.host.paths import HostPath, HostRoot
from agent.runtimes import desired_state
from agent.runtimes.base import Edits, Endpoint, Runtime
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import edit, generations, load, merge
from agent.runtimes.containerd.adapter import ContainerdNode
from agent.runtimes.containerd.handlers import Features
from agent.runtimes.desired_state import Effective
from agent.state.store import Memory, Original
from agent.toml.document import get
from agent.toolkit.programs import Binary
from tests.conformance import shapes
from tests.conformance.shapes import OURS, Row, Shape
from tests.unit.support.edit_request import edit_request
from tests.unit.support.toml_documents import random_document

TOOLKIT = "/usr/local/nvidia/toolkit"
RUNTIME = f"{TOOLKIT}/nvidia-container-runtime"
ETC = "/etc/containerd"
ROOT, DROP_IN = f"{ETC}/config.toml", f"{ETC}/conf.d/99-nvidia.toml"
NARROW = f"{ETC}/conf.d/99-nvidia*.toml"
NUMBERS = {"1.6": "1.6.20", "1.7": "1.7.24", "2.1": "2.1.9", "2.3": "2.3.4"}
# Of the program that a handler calls.
PROGRAM = ("options", "runtime_type", "runtime_engine", "runtime_root")
V2 = 'plugins."io.containerd.grpc.v1.cri"'
V3 = 'plugins."io.containerd.cri.v1.runtime"'


@dataclass
class Tree:
    """A node's files below a directory, and what the agent remembers of them.

    `number` is containerd's version. With `on_host` the agent sees the files under their own names.
    """

    folder: Path
    number: str = "2.1.9"
    on_host: bool = False
    binaries: tuple[str, ...] = tuple(shapes.BINARIES.values())
    may_enable: bool = True
    memory: Memory = field(default_factory=Memory)

    @property
    def prefix(self) -> str:
        """What comes before each of the host's paths."""
        return str(self.folder) if self.on_host else ""

    @property
    def host(self) -> HostRoot:
        """The host as the agent sees it."""
        return HostRoot("/" if self.on_host else str(self.folder))

    @property
    def generation(self) -> generations.Generation:
        """The rules of its containerd."""
        version = parse_version(self.number)
        assert version is not None
        return generations.generation(version)

    def write(self, files: Mapping[str, str]) -> None:
        """Put files there, by their names in /etc/containerd."""
        for name, text in files.items():
            path = self.path(f"{ETC}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("@NODE@", self.prefix), encoding="utf-8", newline="")

    def path(self, name: str) -> Path:
        """Where a host path lies."""
        return self.folder / name.lstrip("/")

    def text(self, name: str) -> str:
        """Return a file's text."""
        return self.path(name).read_bytes().decode()

    def files(self) -> tuple[ConfigFile, ...]:
        """Return what containerd loads."""
        return load.load(self.host, self.generation, self.prefix + ROOT)

    def cri(self) -> Effective:
        """Return what containerd makes of it."""
        return merge.effective(self.generation, self.files())

    def decision(self) -> Decision:
        """Return the decision that this runtime's Status would lead to."""
        switch = {None: Switch.ABSENT, True: Switch.TRUE, False: Switch.FALSE}[
            self.cri().enable_cdi
        ]
        dirs = None if switch is Switch.ABSENT else ("/etc/cdi", "/var/run/cdi")
        return decide(
            Question(
                version=self.number,
                evidence=(Evidence("cri-status", switch, dirs),),
                may_enable=self.may_enable,
                enabled_by_agent=self.memory.enabled_cdi,
            )
        )

    def plan(self, decision: Decision | None = None) -> Edits:
        """Return the plan for it as it is."""
        decision = decision or self.decision()
        available = tuple(
            Binary(name, f"{TOOLKIT}/{binary}")
            for name, binary in shapes.BINARIES.items()
            if binary in self.binaries
        )

        place = HostPath("/none", "/none")
        answer = Answer("containerd", self.number, True, None, ())
        runtime = Runtime(Endpoint("containerd", place), None, answer)
        node = ContainerdNode(
            self.host, runtime, self.files(), None, self.host.locate(self.prefix + DROP_IN),
            self.generation,
        )  # fmt: skip
        request = edit_request(decision, available, memory=self.memory)
        return edit.edits(node, request, Features(None, self.generation.missing_shims))

    def apply(self, edits: Edits) -> None:
        """Carry a plan out and remember it, as a transaction does."""
        before, files = self.cri(), dict(self.memory.files)
        for change in edits.changes:
            assert change.after is not None
            path = Path(change.path.agent)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(change.after.data)
            known = files.get(change.path.host)
            digest = change.before.digest if change.before else None
            first = known.digest if known else digest
            files[change.path.host] = Original(
                digest=first, mode=0o644, uid=0, gid=0, written=change.after.digest,
                edited=known is not None and known.written != digest,
            )  # fmt: skip
        default = self.memory.default
        if edits.changes and not desired_state.is_ours(
            before.default, before.table(before.default)
        ):
            default = before.default
        switched = self.memory.enabled_cdi or edits.desired.enable_cdi
        self.memory = Memory(files, default, switched)


def names(edits: Edits) -> list[str]:
    """Return the files that a plan changes, in its order."""
    return [change.path.host for change in edits.changes]


def leaves(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give all that is not a table, by its path; of an empty table the table."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*above, key))
    else:
        yield above, (type(value), value)


def is_ours(path: tuple[str, ...], handlers: tuple[str, ...] = OURS) -> bool:
    """Tell whether a key is one that the agent may write, if these handlers are its to change."""
    if path[:1] in {(), ("imports",), ("version",)}:  # () is all there is of an empty file
        return True
    inner = path[2:]
    if inner in {("enable_cdi",), ("containerd", "default_runtime_name")}:
        return True
    if inner[:2] == ("containerd", "default_runtime"):
        return True  # deprecated: it becomes a handler where the default is ours
    return inner[:2] == ("containerd", "runtimes") and len(inner) > 2 and inner[2] in handlers


def check_changes(edits: Edits, tree: Tree, ours: tuple[str, ...] = OURS) -> None:
    """Check that a plan changes our keys and nothing else, and the root file last."""
    root = tree.prefix + ROOT
    assert root not in names(edits)[:-1]
    for change in edits.changes:
        assert change.after is not None
        if change.before is None:
            assert change.path.host in (root, tree.prefix + DROP_IN)
            continue
        assert replace(change.after, data=b"") == replace(change.before, data=b"")
        old, new = change.before.data.decode(), change.after.data.decode()
        before, after = dict(leaves(tomllib.loads(old))), dict(leaves(tomllib.loads(new)))
        others = {path: value for path, value in before.items() if not is_ours(path, ours)}
        # An empty table that got something in it is no longer a leaf.
        others = {p: v for p, v in others.items() if v != (dict, {})}
        assert others.items() <= after.items()
        added = {path for path in after.keys() - before.keys() if not is_ours(path, ours)}
        # 1.x: where there were no runtimes, runc's own has to be written out with ours, and what
        # the deprecated table is called as a handler.
        assert {path[4] for path in added} <= {"runc", "default"}
        assert not added or tree.generation.merge == "replace"
        comments = [line.strip() for line in old.splitlines() if line.strip().startswith("#")]
        lines = [line.strip() for line in new.splitlines()]
        assert [line for line in comments if line not in lines] == []


def settled(tree: Tree) -> None:
    """Check that there is nothing left to do, with what we remember and without it."""
    assert tree.plan().changes == ()
    tree.memory = Memory(enabled_cdi=tree.memory.enabled_cdi, default=tree.memory.default)
    assert tree.plan().changes == ()


def cells() -> Iterator[tuple[str, str]]:
    """Give every shape of TOML 1.0 with every containerd that it applies to; 2.3 as 2.1."""
    for shape in (one for one in shapes.SHAPES if not one.odd):
        for number, expected in shape.cells.items():
            if isinstance(expected, Row):
                yield shape.name, number
        # Version 1 files are read by 2.3, and shapes/ has no expectation for that.
        if isinstance(shape.cells.get("2.1"), Row):
            yield shape.name, "2.3"


def shaped(shape: Shape, number: str, folder: Path, *, on_host: bool = False) -> Tree:
    """Return the node of a shape."""
    locked = "--enable-cdi-in-runtime=false" in shape.options
    tree = Tree(folder, NUMBERS[number], on_host, shape.binaries, may_enable=not locked)
    tree.path(ETC).mkdir(parents=True)
    if shape.directory.is_dir():
        for path in shape.directory.rglob("*.toml"):
            tree.write({str(path.relative_to(shape.directory)): path.read_text(encoding="utf-8")})
    return tree


@pytest.mark.cases(80)
@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(("name", "number"), list(cells()))
def test_shape_is_made_right_in_our_keys_only(
    name: str, number: str, on_host: bool, tmp_path: Path
) -> None:
    """The pure half of the matrix: what real containerds are asked elsewhere, computed here."""
    shape = shapes.BY_NAME[name]
    tree = shaped(shape, number, tmp_path, on_host=on_host)
    row = shape.cells["2.1" if number == "2.3" else number]
    assert isinstance(row, Row)
    decision, before = tree.decision(), tree.cri()
    assert decision.row == row.number
    edits = tree.plan()
    assert edits.changes
    check_changes(edits, tree, shape.ours)
    tree.apply(edits)
    cri = tree.cri()
    made = {"runc"} if shape.carried and not row.is_default else set()
    assert set(cri.runtimes) == {
        *before.runtimes.keys() - set(shape.removed), *shape.handlers_after, *made
    }  # fmt: skip
    assert cri.default == shape.default_after(row)
    assert cri.enable_cdi == row.cdi_after
    inherited = {k: v for k, v in before.table(shape.base).items() if k not in PROGRAM}
    annotations = [*row.annotations, *inherited.pop("container_annotations", [])]
    for handler in shape.handlers_after:
        table, binary = cri.table(handler), f"{TOOLKIT}/{shapes.BINARIES[handler]}"
        assert {value for _, value in desired_state.binaries(table)} == {binary}
        assert table["runtime_type"] == "io.containerd.runc.v2"
        assert not table.get("runtime_engine")
        assert not table.get("runtime_root")
        assert table.get("container_annotations", []) == annotations
        assert all(desired_state.same(value, table.get(key)) for key, value in inherited.items())
    settled(tree)


def test_missing_files_are_made_with_a_narrow_import(tmp_path: Path) -> None:
    """containerd 2.x without any file: a drop-in and a root file, of the version it reads."""
    tree = Tree(tmp_path)
    edits = tree.plan()
    assert names(edits) == [DROP_IN, ROOT]
    tree.apply(edits)
    root = tomllib.loads(tree.text(ROOT))
    assert root == {"version": 3, "imports": [NARROW]}
    assert tomllib.loads(tree.text(DROP_IN))["version"] == 3


@pytest.mark.parametrize("version", [2, 3])
def test_drop_in_has_the_root_file_s_version(version: int, tmp_path: Path) -> None:
    """Another one makes 2.0 to 2.2 drop a file's settings, and 2.3 exit."""
    tree = Tree(tmp_path)
    tree.write({"config.toml": f"version = {version}\n"})
    tree.apply(tree.plan())
    drop_in = tomllib.loads(tree.text(DROP_IN))
    section = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}[version]
    assert drop_in["version"] == version
    assert set(drop_in["plugins"]) == {section}


def test_import_that_is_there_is_used(tmp_path: Path) -> None:
    """The root file need not be touched then."""
    tree = Tree(tmp_path)
    tree.write({"config.toml": f'version = 3\nimports = ["{ETC}/conf.d/*.toml"]\n'})
    assert names(tree.plan()) == [DROP_IN]


def test_forgotten_file_is_not_woken(tmp_path: Path) -> None:
    """A wider glob would load what nobody has loaded for years."""
    tree = Tree(tmp_path)
    forgotten = f"version = 3\n[{V3}]\nenable_selinux = true\n"
    tree.write({"config.toml": "version = 3\n", "conf.d/50-forgotten.toml": forgotten})
    edits = tree.plan()
    assert f"{ETC}/conf.d/50-forgotten.toml" not in [file.name for file in edits.files]
    tree.apply(edits)
    assert tomllib.loads(tree.text(ROOT))["imports"] == [NARROW]
    assert "enable_selinux" not in tree.cri().section


def test_forgotten_file_at_our_own_path_is_not_woken_either(tmp_path: Path) -> None:
    """It would come into force with our import; a person has to look at it first."""
    tree = Tree(tmp_path)
    forgotten = f"version = 3\n[{V3}]\nenable_selinux = true\n"
    tree.write({"config.toml": "version = 3\n", "conf.d/99-nvidia.toml": forgotten})
    with pytest.raises(Refused, match=r"^cannot add /etc/containerd/conf.d/99-nvidia.toml "):
        tree.plan()


LATE = f'version = 3\nimports = ["{ETC}/conf.d/*.toml"]\n'


def test_later_file_is_changed_in_the_one_key(tmp_path: Path) -> None:
    """What it says wins, so that is where it has to be said."""
    tree = Tree(tmp_path)
    late = f"version = 3\n[{V3}]\n  enable_cdi = false # policy\n  enable_selinux = true\n"
    tree.write({"config.toml": LATE, "conf.d/zz.toml": late})
    edits = tree.plan()
    assert names(edits) == [DROP_IN, f"{ETC}/conf.d/zz.toml"]
    tree.apply(edits)
    after = late.replace("enable_cdi = false", "enable_cdi = true")
    assert tree.text(f"{ETC}/conf.d/zz.toml") == after
    settled(tree)


def test_later_file_with_everything_of_another_tool_is_changed_in_many_keys(tmp_path: Path) -> None:
    """NVIDIA's frozen copy where it is loaded last: each of its handlers runs our binary."""
    tree = Tree(tmp_path)
    late = f"version = 3\n[{V3}.containerd]\ndefault_runtime_name = 'nvidia' # old\n"
    for name in OURS:
        late += (
            f"[{V3}.containerd.runtimes.{name}]\nruntime_type = 'io.containerd.runc.v2'\n"
            "privileged_without_host_devices = true\n"
            f"[{V3}.containerd.runtimes.{name}.options]\nNoNewKeyring = true\n"
            "BinaryName = '/old/nvidia-container-runtime'\n"
        )
    tree.write({"config.toml": LATE, "conf.d/zz.toml": late})
    edits = tree.plan()
    assert names(edits) == [DROP_IN, f"{ETC}/conf.d/zz.toml"]
    tree.apply(edits)
    assert tree.cri().default == "runc"
    assert "# old\n" in tree.text(f"{ETC}/conf.d/zz.toml")
    settled(tree)


@pytest.mark.parametrize("key", ["BinaryName", "binaryName", "BINARYNAME"])
def test_stale_handler_of_a_later_file_runs_our_binary(key: str, tmp_path: Path) -> None:
    """In that file and in its own spelling: a pod runs any of them."""
    tree = Tree(tmp_path)
    late = f'version = 3\n[{V3}.containerd.runtimes.nvidia.options]\n{key} = "/old/nvidia"\n'
    tree.write({"config.toml": LATE, "conf.d/zz.toml": late})
    tree.apply(tree.plan())
    assert f'{key} = "{RUNTIME}"' in tree.text(f"{ETC}/conf.d/zz.toml")
    settled(tree)


@pytest.mark.parametrize("key", ["BinaryName", "binaryName"])
@pytest.mark.parametrize("number", ["1.6.20", "1.7.24", "2.1.9"])
def test_stale_handler_of_the_root_file_runs_our_binary(
    key: str, number: str, tmp_path: Path
) -> None:
    """1.x: in place. 2.x: the drop-in is loaded after it and overrides that very key."""
    tree = Tree(tmp_path, number)
    tree.write(
        {
            "config.toml": f'version = 2\n[{V2}.containerd.runtimes.runc]\nruntime_type = "r"\n'
            f"[{V2}.containerd.runtimes.nvidia.options]\n{key} = '/old/nvidia-container-runtime'\n"
        }
    )
    tree.apply(tree.plan())
    options = tree.cri().table("nvidia")["options"]
    assert {options[key], options["BinaryName"]} == {RUNTIME}
    settled(tree)


def test_frozen_copy_of_another_tool_is_edited_in_place(tmp_path: Path) -> None:
    """At our path, but not our work: what else is in it stays."""
    tree = Tree(tmp_path)
    frozen = (
        f"version = 3\n# nvidia-ctk\n[{V3}]\nenable_selinux = true\n[{V3}.containerd]\n"
        f'default_runtime_name = "nvidia"\n[{V3}.containerd.runtimes.nvidia.options]\n'
        "BinaryName = '/usr/bin/nvidia-container-runtime'\n"
    )
    tree.write({"config.toml": LATE, "conf.d/99-nvidia.toml": frozen})
    edits = tree.plan()
    assert names(edits) == [DROP_IN]
    tree.apply(edits)
    assert "enable_selinux = true\n" in tree.text(DROP_IN)
    assert "# nvidia-ctk\n" in tree.text(DROP_IN)
    assert tree.cri().default == "runc"
    settled(tree)


def test_own_drop_in_is_written_anew(tmp_path: Path) -> None:
    """What an earlier decision needed and this one does not goes without a trace."""
    tree = Tree(tmp_path)
    tree.may_enable = False
    tree.write({"config.toml": LATE + f"[{V3}]\nenable_cdi = false\n"})
    tree.apply(tree.plan())
    assert tree.cri().default == "nvidia"
    tree.may_enable = True
    tree.apply(tree.plan())
    text = tree.text(DROP_IN)
    assert tree.cri().default == "runc"
    assert "default_runtime_name" not in text
    assert "container_annotations" not in text
    settled(tree)


def test_own_drop_in_that_an_admin_edited_is_kept(tmp_path: Path) -> None:
    """A later edit by the admin is the admin's."""
    tree = Tree(tmp_path)
    tree.write({"config.toml": "version = 3\n"})
    tree.apply(tree.plan())
    site = f"\n# ours\n[{V3}.cni]\nmax_conf_num = 2\n"
    edited = tree.text(DROP_IN).replace(f"{RUNTIME}.cdi", "/elsewhere") + site
    tree.path(DROP_IN).write_text(edited, encoding="utf-8")
    edits = tree.plan()
    assert names(edits) == [DROP_IN]
    tree.apply(edits)
    assert tree.text(DROP_IN).endswith(site)
    settled(tree)


@pytest.mark.parametrize("number", ["1.7.24", "2.1.9"])
def test_deleted_drop_in_or_handler_comes_back(number: str, tmp_path: Path) -> None:
    """The state directory remembers; the files decide."""
    tree = Tree(tmp_path, number)
    tree.write({"config.toml": "version = 2\n"})
    before = tree.plan()
    tree.apply(before)
    right = {name: tree.text(name) for name in names(before)}
    victim = names(before)[0]
    tree.path(victim).write_text("version = 2\n", encoding="utf-8")
    tree.apply(tree.plan())
    assert {name: tomllib.loads(tree.text(name)) for name in right} == {
        name: tomllib.loads(text) for name, text in right.items()
    }


SITE = f"""\
version = 2
[{V2}.containerd]
  default_runtime_name = "site"
  [{V2}.containerd.runtimes.site]
    runtime_type = "io.containerd.runc.v2"
    [{V2}.containerd.runtimes.site.options]
      Root = "/run/site"
  [{V2}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def test_custom_default_is_remembered_and_comes_back(tmp_path: Path) -> None:
    """1.6 makes ours the default; after an upgrade to 1.7 the admin's is it again."""
    tree = Tree(tmp_path, "1.6.20")
    tree.write({"config.toml": SITE})
    tree.apply(tree.plan())
    assert (tree.cri().default, tree.memory.default) == ("nvidia", "site")
    assert tree.cri().table("nvidia")["options"]["Root"] == "/run/site"
    settled(tree)
    tree.number = "1.7.24"
    tree.apply(tree.plan())
    cri = tree.cri()
    assert (cri.default, cri.enable_cdi) == ("site", True)
    assert cri.table("nvidia").get("container_annotations") in (None, [])
    settled(tree)


def test_default_of_an_earlier_tool_goes_back_to_runc(tmp_path: Path) -> None:
    """Nobody remembers what it was before; runc is what containerd itself would take."""
    tree = Tree(tmp_path, "1.7.24")
    text = SITE.replace('"site"', '"gpu"').replace(".site", ".gpu")
    binary = 'Root = "/run/site"\n      BinaryName = "/old/nvidia-container-runtime"'
    tree.write({"config.toml": text.replace('Root = "/run/site"', binary)})
    tree.apply(tree.plan())
    assert tree.cri().default == "runc"


def test_owner_of_the_section_is_edited_on_1x(tmp_path: Path) -> None:
    """A section in a later file replaces the whole one of the root file."""
    tree = Tree(tmp_path, "1.7.24")
    tree.write(
        {
            "config.toml": f'imports = ["{ETC}/conf.d/*.toml"]\n' + SITE,
            "conf.d/50-site.toml": SITE,
            "conf.d/60-other.toml": "version = 2\noom_score = 1\n",
        }
    )
    edits = tree.plan()
    assert names(edits) == [f"{ETC}/conf.d/50-site.toml"]
    tree.apply(edits)
    assert tree.text(f"{ETC}/conf.d/50-site.toml").startswith(SITE.splitlines()[0])
    settled(tree)


def test_first_runtimes_table_on_1x_has_runc_too(tmp_path: Path) -> None:
    """Without it the CRI plugin does not load: `runtimes` replaces the built-in table."""
    for number in ("1.6.20", "1.7.24"):
        tree = Tree(tmp_path / number, number)
        tree.write({"config.toml": f'version = 2\n[{V2}]\nsandbox_image = "r.example/p"\n'})
        tree.apply(tree.plan())
        cri = tree.cri()
        assert cri.table("runc") == tree.generation.runc
        assert cri.section["sandbox_image"] == "r.example/p"


def test_version_1_file_is_edited_by_its_own_names(tmp_path: Path) -> None:
    """On 1.x; names of version 2 are ignored there."""
    for number, header in (("1.6.20", ""), ("1.7.24", "version = 1\n")):
        tree = Tree(tmp_path / number, number)
        tree.write({"config.toml": f'{header}[plugins.cri]\nsandbox_image = "r.example/p"\n'})
        edits = tree.plan()
        assert names(edits) == [ROOT]
        tree.apply(edits)
        data = tomllib.loads(tree.text(ROOT))
        assert set(data["plugins"]) == {"cri"}
        assert data["plugins"]["cri"].get("enable_cdi") is (True if header else None)
        settled(tree)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("version = 1\n[plugins.cri.containerd]\nsnapshotter = 'native'\n", 'plugins."cri"'),
        (f"[{V2}.containerd]\nsnapshotter = 'native'\n", V2),
    ],
)
def test_settings_that_containerd_ignores_are_refused(
    text: str, named: str, tmp_path: Path
) -> None:
    """On 2.0 to 2.2, with what to do; a guess would lose what the admin meant."""
    tree = Tree(tmp_path)
    tree.write({"config.toml": text})
    with pytest.raises(Refused, match=r"^cannot edit the configuration: ") as caught:
        tree.plan()
    assert named in caught.value.message
    assert "write `version = 2` at the top" in caught.value.message
    assert "config migrate" not in caught.value.message, "it leaves these settings out"


def test_stock_file_without_version_works_on_2x(tmp_path: Path) -> None:
    """The package's file has only `disabled_plugins`; a version 3 drop-in goes with it."""
    tree = Tree(tmp_path)
    tree.write({"config.toml": "disabled_plugins = []\n"})
    tree.apply(tree.plan())
    assert tomllib.loads(tree.text(DROP_IN))["version"] == 3
    assert "version" not in tomllib.loads(tree.text(ROOT))
    settled(tree)


LEGACY = f"""\
version = 2
[{V2}.containerd.default_runtime]
  runtime_type = "io.containerd.runc.v2"
  [{V2}.containerd.default_runtime.options]
    BinaryName = "@BINARY@"
[{V2}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


def test_deprecated_default_table_does_not_win_over_ours(tmp_path: Path) -> None:
    """1.6, where ours has to be the default; what it says of options is inherited."""
    tree = Tree(tmp_path, "1.6.20")
    tree.write({"config.toml": LEGACY.replace("BinaryName", "Root").replace("@BINARY@", "/run/x")})
    tree.apply(tree.plan())
    cri = tree.cri()
    assert cri.default == "nvidia"
    assert cri.table("nvidia")["options"]["Root"] == "/run/x"


def test_deprecated_default_table_goes_on_as_the_handler_that_it_was(tmp_path: Path) -> None:
    """Nothing of it is lost: pods ask for it by that name, and ours go on inheriting from it."""
    tree = Tree(tmp_path, "1.6.20")
    tree.write({"config.toml": LEGACY.replace("BinaryName", "Root").replace("@BINARY@", "/run/x")})
    before = tree.cri().table("default")
    tree.apply(tree.plan())
    assert tree.cri().table("default") == before
    assert tree.plan().changes == ()


def test_deprecated_default_table_of_an_earlier_tool_goes(tmp_path: Path) -> None:
    """1.7 with native CDI: ours must not be the default under that name either."""
    tree = Tree(tmp_path, "1.7.24")
    tree.write({"config.toml": LEGACY.replace("@BINARY@", "/old/nvidia-container-runtime")})
    tree.apply(tree.plan())
    cri = tree.cri()
    assert cri.default == "runc"
    settled(tree)


def test_deprecated_default_table_of_the_admin_stays(tmp_path: Path) -> None:
    """1.7 with native CDI: the default is none of our business."""
    tree = Tree(tmp_path, "1.7.24")
    tree.write({"config.toml": LEGACY.replace("@BINARY@", "/usr/bin/site-runc")})
    tree.apply(tree.plan())
    cri = tree.cri()
    assert (cri.default, cri.table("default")["options"]["BinaryName"]) == (
        "default",
        "/usr/bin/site-runc",
    )
    settled(tree)


@pytest.mark.parametrize("number", ["1.7.24", "2.1.9"])
def test_default_without_a_table_is_refused(number: str, tmp_path: Path) -> None:
    """The CRI plugin would not load after the restart; it was broken before us."""
    tree = Tree(tmp_path, number)
    tree.write({"config.toml": SITE.replace('= "site"', '= "gone"')})
    with pytest.raises(Refused, match=r"^cannot use the configuration: .*gone"):
        tree.plan()


def test_spelling_that_cannot_be_edited_changes_nothing(tmp_path: Path) -> None:
    """A refusal comes from the plan, before any file is written."""
    tree = Tree(tmp_path, "1.7.24")
    text = f"version = 2\nplugins = {{ {V2.partition('.')[2]} = {{ enable_cdi = false }} }}\n"
    tree.write({"config.toml": text})
    try:
        edits = tree.plan()
    except Refused:
        assert tree.text(ROOT) == text
    else:
        check_changes(edits, tree)


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.sampled_from(["1.6.20", "1.7.24", "2.1.9", "2.3.4"]))
def test_any_root_file_is_made_right_or_refused(random: randoms.Random, number: str) -> None:
    """Whatever its spelling: our keys only, and the second time nothing."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(os.path.realpath(folder)), number)
        tree.write({"config.toml": random_document(random).text})
        before = tree.text(ROOT)
        try:
            edits = tree.plan()
        except Refused:
            assert tree.text(ROOT) == before
            return
        check_changes(edits, tree)
        tree.apply(edits)
        assert set(OURS) <= set(tree.cri().runtimes)
        assert get({"r": dict(tree.cri().runtimes)}, ("r", tree.cri().default)) is not None
        settled(tree)
