"""Files are loaded in containerd's order; what would stop its start is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import Refused
from agent.host.files import FileState
from agent.host.paths import HostRoot
from agent.runtimes.config_file import ConfigFile
from agent.runtimes.containerd import faults
from agent.runtimes.containerd import load as config
from agent.runtimes.containerd.generations import GENERATIONS, Generation

BY_NAME = {gen.name: gen for gen in GENERATIONS}
LATEST = BY_NAME["2.0"]
ROOT = config.DEFAULT_ROOT


class Tree:
    """/etc/containerd of a made-up host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.etc = root / "etc/containerd"
        (self.etc / "conf.d").mkdir(parents=True)
        self.host = HostRoot(str(root))

    def write(self, name: str, *imports: str, text: str = "") -> None:
        """A file with these imports, relative names below /etc/containerd."""
        listed = ", ".join(f"'{item}'" for item in imports)
        (self.etc / name).parent.mkdir(parents=True, exist_ok=True)
        (self.etc / name).write_text(f"imports = [{listed}]\n{text}" if imports else text)

    def load(
        self, gen: Generation = LATEST, overlay: dict[str, FileState | None] | None = None
    ) -> tuple[ConfigFile, ...]:
        """Load the root file and all that it imports."""
        return config.load(self.host, gen, ROOT, overlay or {})

    def names(
        self, gen: Generation = LATEST, overlay: dict[str, FileState | None] | None = None
    ) -> list[str]:
        """Loaded files, by their names below /etc/containerd."""
        return [file.name.removeprefix("/etc/containerd/") for file in self.load(gen, overlay)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "host")


def test_root_file_comes_first_also_where_it_is_missing(tree: Tree) -> None:
    """Without one the daemon runs on its defaults."""
    (file,) = tree.load()
    assert (file.name, file.state, file.data) == (ROOT, None, {})


def test_imports_are_loaded_breadth_first(tree: Tree) -> None:
    """All that the root file names, then what those name, each file once."""
    tree.write("config.toml", "/etc/containerd/a.toml", "/etc/containerd/b.toml")
    tree.write("a.toml", "/etc/containerd/deep.toml", "/etc/containerd/b.toml")
    tree.write("b.toml", "/etc/containerd/deeper.toml")
    tree.write("deep.toml")
    tree.write("deeper.toml")
    assert tree.names() == ["config.toml", "a.toml", "b.toml", "deep.toml", "deeper.toml"]


@pytest.mark.parametrize("target", ["config.toml", "a.toml"])
def test_cycle_ends(target: str, tree: Tree) -> None:
    """A file that imports itself, or the one that imports it."""
    tree.write("config.toml", "/etc/containerd/a.toml")
    tree.write("a.toml", f"/etc/containerd/{target}")
    assert tree.names() == ["config.toml", "a.toml"]


def test_glob_is_in_the_order_of_go(tree: Tree) -> None:
    """As Go sorts: dot files too, capitals first, no other suffix, no deeper directory."""
    tree.write("config.toml", "/etc/containerd/conf.d/*.toml")
    for name in ("b.toml", "a.toml", ".hidden.toml", "Z.toml", "a.toml.bak", "sub/c.toml", "x~"):
        tree.write(f"conf.d/{name}")
    expected = [".hidden.toml", "Z.toml", "a.toml", "b.toml"]
    assert tree.names() == ["config.toml", *(f"conf.d/{name}" for name in expected)]


def test_star_does_not_cross_a_slash(tree: Tree) -> None:
    """A star does not cross a slash."""
    tree.write("config.toml", "/etc/containerd/*/x.toml")
    for name in ("b/x.toml", "a/x.toml", "a/y.toml", "a/b/x.toml"):
        tree.write(name)
    assert tree.names() == ["config.toml", "a/x.toml", "b/x.toml"]


def test_glob_matches_a_file_that_an_edit_brings(tree: Tree) -> None:
    """A file that an edit brings is matched like one that is there, and one that goes is not."""
    tree.write("config.toml", "/etc/containerd/*/x.toml")
    tree.write("a/x.toml")
    etc = "/etc/containerd"
    overlay: dict[str, FileState | None] = {
        f"{etc}/n/x.toml": FileState(b""),
        f"{etc}/a/x.toml": None,
    }
    assert tree.names(overlay=overlay) == ["config.toml", "n/x.toml"]


@pytest.mark.parametrize("pattern", ["/no/where/*.toml", "/etc/containerd/conf.d/*.toml"])
def test_glob_without_matches_is_no_error(pattern: str, tree: Tree) -> None:
    """Neither a missing directory nor an empty one is an error."""
    tree.write("config.toml", pattern)
    assert tree.names() == ["config.toml"]


@pytest.mark.parametrize(
    ("generation", "loaded"), [("1.6", False), ("1.7", True), ("2.0", True), ("2.3", True)]
)
def test_relative_glob_starts_where_the_version_says(
    generation: str, loaded: bool, tree: Tree
) -> None:
    """1.6 takes it relative to the daemon's working directory, later ones to the file."""
    tree.write("config.toml", "conf.d/*.toml")
    tree.write("conf.d/a.toml")
    expected = ["config.toml", "conf.d/a.toml"] if loaded else ["config.toml"]
    assert tree.names(BY_NAME[generation]) == expected


@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.0", "2.3"])
def test_relative_name_starts_at_the_importing_file(generation: str, tree: Tree) -> None:
    """Relative to the importing file everywhere, also one level down."""
    tree.write("config.toml", "conf.d/a.toml")
    tree.write("conf.d/a.toml", "b.toml", "../c.toml")
    tree.write("conf.d/b.toml")
    tree.write("c.toml")
    names = tree.names(BY_NAME[generation])
    assert names == ["config.toml", "conf.d/a.toml", "conf.d/b.toml", "c.toml"]


def test_missing_literal_import_is_refused(tree: Tree) -> None:
    """containerd does not start so; the importing file and the missing one are both named."""
    tree.write("config.toml", "/etc/containerd/a.toml")
    tree.write("a.toml", "/etc/containerd/gone.toml")
    with pytest.raises(
        Refused, match=r"^cannot use /etc/containerd/a\.toml: .*/gone\.toml, which does not exist"
    ):
        tree.load()


def test_links_are_followed_inside_the_host(tree: Tree) -> None:
    """The daemon's name stays, the place is where the link leads on the host."""
    (tree.root / "data").mkdir()
    (tree.root / "data/real.toml").write_text("version = 3\n")
    (tree.etc / "config.toml").symlink_to("/data/real.toml")
    (file,) = tree.load()
    assert (file.name, file.path.host, file.version) == (ROOT, "/data/real.toml", 3)


@pytest.mark.parametrize("where", ["config.toml", "conf.d/a.toml"])
@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (Path.mkdir, "it is a directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.write_bytes(b"#" * (2 << 20)), "larger than"),
        (lambda path: path.write_bytes(b"# caf\xe9\n"), "line 1 is not UTF-8"),
        (lambda path: path.write_bytes(b"\xef\xbb\xbfversion = 3\n"), "a byte order mark; .* 2.x"),
        (lambda path: path.symlink_to("/no/where"), "dangling"),
        (lambda path: path.symlink_to(path.name), "too many links"),
        (lambda path: path.symlink_to("../../../../outside"), "leads out of the host root"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_used_is_refused(
    make: Callable[[Path], None], cause: str, where: str, tree: Tree
) -> None:
    """The root file or an imported one: by its name on the host, and in finite time."""
    if where != "config.toml":
        tree.write("config.toml", "/etc/containerd/conf.d/*.toml")
    make(tree.etc / where)
    with pytest.raises(Refused, match=cause) as told:
        tree.load()
    assert told.value.message.startswith("cannot ")
    assert f"/etc/containerd/{where}" in told.value.message
    assert str(tree.root) not in told.value.message


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a = = 1", r"not valid TOML.*line 1"),
        ("a = 1\na = 2\n", "not valid TOML"),
        ("a = " + "[" * 9000, "valid TOML|nested"),
        ("a." * 70 + "a = 1", "more than 64 parts"),
    ],
)
def test_unparsable_root_file_is_refused_and_an_import_marked(
    text: str, cause: str, tree: Tree
) -> None:
    """The root file is refused. An imported one is marked, for the runtime to say what is in it,
    and is nothing but its bytes to us."""
    (tree.etc / "config.toml").write_text(text)
    with pytest.raises(Refused, match=f"^cannot read {ROOT}: .*({cause})"):
        tree.load()
    tree.write("config.toml", "/etc/containerd/conf.d/*.toml")
    (tree.etc / "conf.d/a.toml").write_text(text)
    _, file = tree.load()
    assert re.search(cause, file.unread)
    assert file.data == {}
    assert file.state is not None
    assert file.state.data == text.encode()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("version = '3'\n", "version"),
        ("version = true\n", "version"),
        ("imports = 'a'\n", "imports"),
        ("imports = [1]\n", "imports"),
        ("imports = [['a']]\n", "imports"),
        ("plugins = 3\n", "plugins"),
        ("[plugins]\n'io.containerd.cri.v1.runtime' = 1\n", "io.containerd.cri.v1.runtime"),
        ("[plugins.'io.containerd.cri.v1.runtime']\nenable_cdi = 'yes'\n", "enable_cdi"),
        ("[plugins.'io.containerd.cri.v1.runtime']\ncontainerd = []\n", "containerd"),
        ("[plugins.'io.containerd.cri.v1.runtime'.containerd]\nruntimes = ''\n", "runtimes"),
        ("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\nx = 1\n", "x"),
        (
            "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 1\n",
            "default_runtime_name",
        ),
        (
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.x]\noptions = 3\n",
            "options",
        ),
    ],
)
def test_wrong_type_is_refused(text: str, key: str, tree: Tree) -> None:
    """With the key and the file."""
    tree.write("config.toml", text=text)
    with pytest.raises(Refused, match=rf"^cannot use {ROOT}: .*{key} is not"):
        tree.load()


# --- states that files are going to have -------------------------------------------------------


def test_overlay_is_what_the_file_is_going_to_be(tree: Tree) -> None:
    """The disk is not looked at for these."""
    tree.write("config.toml", text="version = 2\n")
    (file,) = tree.load(overlay={ROOT: FileState(b"version = 3\n")})
    assert file.version == 3


def test_overlay_brings_and_takes_files_of_a_glob(tree: Tree) -> None:
    """A drop-in that comes is found, one that goes is not, and neither is a miss."""
    tree.write("config.toml", "/etc/containerd/conf.d/*.toml")
    tree.write("conf.d/goes.toml")
    overlay = {
        "/etc/containerd/conf.d/comes.toml": FileState(b"version = 3\n"),
        "/etc/containerd/conf.d/goes.toml": None,
        "/etc/containerd/conf.d/comes.bak": FileState(b"= ="),
    }
    assert tree.names(overlay=overlay) == ["config.toml", "conf.d/comes.toml"]


def test_overlay_may_lie_in_a_directory_to_come(tree: Tree) -> None:
    """conf.d comes with its first file."""
    tree.write("config.toml", "/etc/containerd/new.d/99-*.toml")
    overlay: dict[str, FileState | None] = {"/etc/containerd/new.d/99-x.toml": FileState(b"")}
    assert tree.names(overlay=overlay) == ["config.toml", "new.d/99-x.toml"]


def test_overlay_that_takes_a_literal_import_is_refused(tree: Tree) -> None:
    """Whoever deletes it breaks containerd."""
    tree.write("config.toml", "/etc/containerd/a.toml")
    tree.write("a.toml")
    with pytest.raises(Refused, match=r"a\.toml, which does not exist"):
        tree.load(overlay={"/etc/containerd/a.toml": None})


def test_overlay_names_the_place_behind_a_link(tree: Tree) -> None:
    """One file, whatever name it is loaded by."""
    (tree.root / "data").mkdir()
    (tree.root / "data/real.toml").write_text("version = 2\n")
    (tree.etc / "config.toml").symlink_to("/data/real.toml")
    (file,) = tree.load(overlay={"/data/real.toml": FileState(b"version = 3\n")})
    assert file.version == 3


def test_overlay_of_broken_text_is_refused_by_name(tree: Tree) -> None:
    """Our own candidate is held to the same rules."""
    with pytest.raises(Refused, match=rf"^cannot read {ROOT}: it is not valid TOML"):
        tree.load(overlay={ROOT: FileState(b"= =")})


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("disabled_plugins = ['cri']\n", "cri"),
        ("disabled_plugins = ['x', 'io.containerd.grpc.v1.cri']\n", "io.containerd.grpc.v1.cri"),
        ("disabled_plugins = ['crio']\n", None),
        ("disabled_plugins = 'cri'\n", None),
        ("", None),
    ],
)
def test_disabled_cri_is_refused(text: str, entry: str | None, tree: Tree) -> None:
    """Docker's package ships such a file."""
    tree.write("config.toml", text=text)
    found = faults.disabling_entry(LATEST, (config.load_file(tree.host, ROOT),))
    assert (found and found[1]) == entry


# --- whose the files are -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777])
@pytest.mark.parametrize("name", ["config.toml", "a.toml", "conf.d/b.toml"])
def test_file_that_others_can_write_is_refused(name: str, mode: int, tree: Tree) -> None:
    """Root file, import by name and by glob: it says what root runs."""
    tree.write("config.toml", "/etc/containerd/a.toml", "/etc/containerd/conf.d/*.toml")
    tree.write("a.toml")
    tree.write("conf.d/b.toml")
    (tree.etc / name).chmod(mode)
    with pytest.raises(Refused, match=rf"^cannot use /etc/containerd/{name}: .*{mode:04o}.*go-w"):
        tree.load()


@pytest.mark.parametrize("name", ["config.toml", "conf.d/b.toml"])
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run tests/run as root")
def test_file_of_somebody_else_is_refused(name: str, tree: Tree) -> None:
    """A mode of 0600 says nothing where its owner is not root."""
    tree.write("config.toml", "/etc/containerd/conf.d/*.toml")
    tree.write("conf.d/b.toml")
    (tree.etc / name).chmod(0o600)
    os.chown(tree.etc / name, 12345, 0)
    with pytest.raises(Refused, match=rf"^cannot use /etc/containerd/{name}: .*user 12345.*chown"):
        tree.load()


def test_directory_that_others_can_write_is_refused(tree: Tree) -> None:
    """They could put another file in the place of this one. In a sticky one they can add a file,
    which counts where there is a wildcard."""
    tree.write("config.toml", "/etc/containerd/conf.d/b.toml")
    tree.write("conf.d/b.toml")
    (tree.etc / "conf.d").chmod(0o775)
    with pytest.raises(Refused, match=r"^cannot use .*b\.toml: /etc/containerd/conf.d can be"):
        tree.load()
    (tree.etc / "conf.d").chmod(0o1777)
    assert len(tree.load()) == 2
    tree.write("config.toml", "/etc/containerd/conf.d/*.toml")
    with pytest.raises(Refused, match=r"^cannot use the directory /etc/containerd/conf.d"):
        tree.load()


def test_place_of_a_file_to_come_is_looked_at(tree: Tree) -> None:
    """Nothing is written where others could replace it."""
    (tree.etc / "conf.d").chmod(0o777)
    place = "/etc/containerd/conf.d/99-nvidia.toml"
    with pytest.raises(Refused, match=r"^cannot use .*99-nvidia.toml: /etc/.*conf.d can be"):
        config.load_file(tree.host, place, {place: FileState(b"")})


def test_file_behind_a_link_is_the_one_that_counts(tree: Tree) -> None:
    """A link's mode is always 0777 and says nothing; its target's does."""
    (tree.root / "data").mkdir()
    (tree.root / "data/real.toml").write_text("")
    (tree.etc / "config.toml").symlink_to("/data/real.toml")
    assert len(tree.load()) == 1
    (tree.root / "data/real.toml").chmod(0o666)
    with pytest.raises(Refused, match=r"^cannot use .*/config.toml: /data/real.toml can be"):
        tree.load()
