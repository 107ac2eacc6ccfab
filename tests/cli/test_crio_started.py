"""Settings that CRI-O takes from flags and its environment win over every file."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.cli_node import fails, is_refused, shows
from tests.cli.crio import CONFIG_MODE, HOOK_BINARY, NAMES, OFF, make, restarts
from tests.conformance.trees import touched
from tests.doubles.crio.crio_node import CrioNode

PLACES = ("-c", "@ETC@/crio.conf", "-d", "@ETC@/crio.conf.d")
DEFAULT = "CONTAINER_DEFAULT_RUNTIME"
SOURCES = [
    ((*PLACES, "--default-runtime=runc"), {}, "--default-runtime"),
    (PLACES, {DEFAULT: "runc"}, DEFAULT),
]


def started(
    place: Path, flags: Sequence[str] = PLACES, variables: Mapping[str, str] | None = None,
    version: str = "1.37.0", text: str = "",
) -> CrioNode:  # fmt: skip
    """Return a node with the packaged handlers, not yet running."""
    node = CrioNode(place, version, flags=flags, variables=variables or {})
    (node.toolkit / HOOK_BINARY).touch(0o755)
    packaged(node, text)
    return node


def packaged(node: CrioNode, text: str = "") -> None:
    """Write the handlers as CRI-O's packages do."""
    tables = '[crio.runtime]\ndefault_runtime = "crun"\n' + "".join(
        f'[crio.runtime.runtimes.{name}]\nruntime_path = "{node.bin}/{name}"\n'
        f'runtime_root = "/run/{name}"\nmonitor_path = "{node.bin}/conmon"\n'
        for name in ("runc", "crun")
    )
    (node.drop_ins / "10-crio.conf").write_text(tables + text)


def config(node: CrioNode) -> Any:
    """What the toolkit's config.toml says of the runtime."""
    path = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    return tomllib.loads(path.read_text())["nvidia-container-runtime"]


@pytest.mark.parametrize(("flags", "variables", "source"), SOURCES)
@pytest.mark.parametrize("version", ["1.30.14", "1.37.0"])
def test_default_set_by_a_flag_is_what_handlers_inherit(
    place: Path, version: str, flags: Sequence[str], variables: Mapping[str, str], source: str
) -> None:
    """It is what handlers inherit from and what undoing has to prove; where it would have to
    change, nothing is touched."""
    with started(place, flags, variables, version) as node:
        shows(node.agent("apply", "-o", "json"), "Outcome")
        assert node.answer().default == "runc"
        for name in NAMES:
            assert node.answer().runtimes[name]["runtime_root"] == "/run/runc"
        assert config(node)["runtimes"][0] == f"{node.bin}/runc"
        before, pid = node.tree(), node.supervisor.pid
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
        for command in ("plan", "apply"):
            done = node.agent(command, OFF, CONFIG_MODE)
            is_refused(command, done, 3, source, "nvidia the default", "runc")
            is_refused(command, node.agent(command, "--native-cdi=false"), 3, source)
        assert touched(before, node.tree()) == []
        assert (node.supervisor.pid, restarts(node)) == (pid, 1)
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert node.answer().default == "runc"
        assert not NAMES & node.answer().runtimes.keys()


def test_undo_is_proven_by_a_default_set_by_a_flag(place: Path) -> None:
    """A change that fails is undone, and that is proven by the default in force."""
    with started(place, variables={DEFAULT: "runc"}) as node:
        node.script(die_when={"handler": "nvidia"})
        result = node.agent("apply")
        node.script()
        fails(result, 5, "cannot apply")
        assert node.answer().default == "runc"
        assert not node.drop_in.exists()


def test_nvidia_default_set_by_a_flag_is_refused_where_it_must_go(place: Path) -> None:
    """Fine where it is wanted; refused where it has to go, revert included."""
    with started(place) as node:
        shows(node.agent("apply", "--native-cdi=false", "-o", "json"), "Outcome")
    node.variables[DEFAULT] = "nvidia"
    node.supervisor = node.run()
    with node:
        before, pid = node.tree(), node.supervisor.pid
        fails(node.agent("apply"), 3, DEFAULT, "crun the default")
        fails(node.agent("apply", OFF), 3, DEFAULT)
        fails(node.agent("revert"), 3, DEFAULT, "makes nvidia the default", "no such handler")
        assert touched(before, node.tree()) == []
        data = shows(node.agent("apply", "--native-cdi=false", "-o", "json"), "Outcome")
        assert (data["changed"], data["restarted"]) == ([], False)
        assert node.supervisor.pid == pid


def test_handler_set_by_a_flag_is_refused(place: Path) -> None:
    """No file could change it."""
    value = f"nvidia:{place}/usr-bin/runc:/run/runc"
    node = started(place, (*PLACES, f"--runtimes={value}"))
    conmon = f'[crio.runtime]\nconmon = "{node.bin}/conmon"\n'
    (node.drop_ins / "20-conmon.conf").write_text(conmon)
    with node:
        before = node.tree()
        fails(node.agent("apply"), 3, "--runtimes", "handler nvidia")
        assert touched(before, node.tree()) == []


def test_drop_in_follows_the_directories_of_the_environment(place: Path) -> None:
    """The environment moves them, and our drop-in with them; a flag wins over it."""
    variables = {"CONTAINER_CONFIG": "/nowhere", "CONTAINER_CONFIG_DIR": "@ETC@/other.d"}
    node = started(place, ("--config=@ETC@/crio.conf",), variables)
    node.drop_ins.rename(node.etc / "other.d")
    with node:
        option = f"--drop-in-config={node.etc}/other.d/99-nvidia.conf"
        data = shows(node.agent("plan", option, "-o", "json"), "Plan", 1)
        assert data["runtime"]["config"] == str(node.config)
        shows(node.agent("apply", option, "-o", "json"), "Outcome")
        assert (node.etc / "other.d/99-nvidia.conf").exists()
        assert not node.drop_ins.exists()
        assert node.answer().runtimes.keys() >= NAMES
        shows(node.agent("revert", option, "-o", "json"), "Reverted")


@pytest.mark.parametrize(
    ("flags", "variables"),
    [(("-c", "@ETC@/crio.conf", "--config-dir="), {}),
     (("-c", "@ETC@/crio.conf"), {"CONTAINER_CONFIG_DIR": ""})],
)  # fmt: skip
def test_root_file_is_edited_where_no_drop_in_is_read(
    place: Path, flags: Sequence[str], variables: Mapping[str, str]
) -> None:
    """The root file is edited where it stands, and comes back byte for byte."""
    with started(place, flags, variables) as node:
        text = node.config.read_text() + "# the end\n"
        node.config.write_text(text)
        shows(node.agent("apply", "-o", "json"), "Outcome")
        assert not node.drop_in.exists()
        edited = node.config.read_text()
        assert "# the end" in edited
        assert node.answer().runtimes.keys() >= NAMES
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
        shows(node.agent("apply", OFF, CONFIG_MODE, "-o", "json"), "Outcome")
        assert node.answer().default == "nvidia"
        shows(node.agent("apply", "-o", "json"), "Outcome")
        assert node.answer().default == "crun"
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert node.config.read_text() == text
        assert sorted(path.name for path in node.etc.iterdir()) == ["crio.conf", "crio.conf.d"]


def test_crio_that_reads_no_file_is_refused(place: Path) -> None:
    """Nothing that could be written would be read."""
    socket = ("--listen", f"{place}/crio.sock", "--cdi-spec-dirs", f"{place}/cdi")
    with started(place, ("--config=", "--config-dir=", *socket)) as node:
        before = node.tree()
        fails(node.agent("apply"), 3, "--config-dir", "reads no files")
        assert touched(before, node.tree()) == []


@pytest.mark.parametrize("variable", [False, True])
def test_crio_that_reads_no_spec_is_refused(place: Path, variable: bool) -> None:
    """No device could be had, whatever is written."""
    variables = {"CONTAINER_CDI_SPEC_DIRS": ""} if variable else {}
    with started(place, variables=variables) as node:
        late = node.drop_ins / "20-site.conf"
        if not variable:
            late.write_text("[crio.runtime]\ncdi_spec_dirs = []\n")
            node.restart()
        before = node.tree()
        named = "CONTAINER_CDI_SPEC_DIRS" if variable else str(late)
        for command in ("plan", "apply"):
            is_refused(command, node.agent(command), 3, "cdi_spec_dirs is empty", named)
        assert touched(before, node.tree()) == []
        assert node.agent("apply", OFF).returncode == 0


def test_hook_goes_where_a_flag_says(place: Path) -> None:
    """Where CRI-O looks, and nowhere else."""
    hooks = place / "flagged.d"
    hooks.mkdir()
    with started(place, (*PLACES, f"--hooks-dir={hooks}")) as node:
        shows(node.agent("apply", OFF, "-o", "json"), "Outcome")
        assert [path.name for path in hooks.iterdir()] == ["oci-nvidia-hook.json"]
        assert list(node.hooks.iterdir()) == []


def test_keys_that_crio_does_not_know_are_not_required(place: Path) -> None:
    """What `crio config` prints behind the last handler, a typo, a key of a newer version: CRI-O
    takes them and never shows them, so that nobody may ask for them."""
    odd = 'hostnetwork_disable_selinux = true\nruntime_rot = "/x"\nfuture = [1]\n'
    with started(place, version="1.30.14", text=odd) as node:
        shows(node.agent("apply", "-o", "json"), "Outcome")
        tables = tomllib.loads(node.drop_in.read_text())["crio"]["runtime"]["runtimes"]
        assert tables["nvidia"].keys() == {
            "runtime_path", "runtime_type", "runtime_root", "monitor_path"
        }  # fmt: skip
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
        assert restarts(node) == 1


INSTALLERS = Path(__file__).resolve().parents[1] / "data/captures/nvidia-ctk-installer-1.20"


def installed(node: CrioNode, name: str = "99-nvidia.conf", handler: str = "nvidia") -> bytes:
    """Leave what NVIDIA's installer 1.20 leaves where it makes nvidia the default; gives the
    drop-in."""
    text = (INSTALLERS / "99-nvidia.conf").read_text()
    text = text.replace("/usr/local/nvidia/toolkit", str(node.toolkit))
    text = text.replace("/usr/libexec/crio", str(node.bin)).replace(".nvidia]", f".{handler}]")
    text = text.replace(
        "[crio.runtime]\n", f'[crio.runtime]\n    default_runtime = "{handler}"\n', 1
    )
    (node.drop_ins / name).write_text(text)
    toolkit = node.toolkit / ".config/nvidia-container-runtime/config.toml"
    toolkit.parent.mkdir(parents=True)
    said = (INSTALLERS / "toolkit-config.toml").read_text()
    toolkit.write_text(said.replace("/usr/libexec/crio", str(node.bin)))
    return text.encode()


def roots(node: CrioNode) -> dict[str, Any]:
    """The state directories of all handlers."""
    return {name: table["runtime_root"] for name, table in node.answer().runtimes.items()}


@pytest.mark.parametrize("name", ["99-nvidia.conf", "99-nvidia.toml"])
@pytest.mark.parametrize("version", ["1.30.14", "1.37.0"])
def test_configuration_of_nvidias_installer_is_taken_over(
    place: Path, version: str, name: str
) -> None:
    """The default of the files without NVIDIA's comes back, what pods run by stays, a second apply
    changes nothing, with or without a memory; and the installer's bytes come back."""
    with started(place, version=version) as node:
        original = installed(node, name)
        node.restart()
        assert node.answer().default == "nvidia"
        before, listed = roots(node), config(node)["runtimes"]
        shows(node.agent("apply", "-o", "json"), "Outcome")
        assert [path.name for path in node.drop_ins.iterdir() if path.name.startswith("99")] == [
            name
        ]
        assert (node.answer().default, roots(node)) == ("crun", before)
        assert (
            config(node)["runtimes"][:2] == listed[:2] == [f"{node.bin}/crun", f"{node.bin}/runc"]
        )
        assert config(node)["modes"]["cdi"]["annotation-prefixes"] == []
        tree, pid = node.tree(), node.supervisor.pid
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
        shutil.move(node.state, place / "aside")
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []
        assert (touched(tree, node.tree()), node.supervisor.pid) == ([], pid)
        shutil.rmtree(node.state)
        shutil.move(place / "aside", node.state)
        shows(node.agent("revert", "-o", "json"), "Reverted")
        assert (node.drop_ins / name).read_bytes() == original


def test_handler_of_nvidia_is_known_by_its_program(place: Path) -> None:
    """A handler is NVIDIA's by what it calls; so is the default that has to go."""
    with started(place) as node:
        installed(node, "50-gpu.conf", "gpu")
        node.restart()
        shows(node.agent("apply", "-o", "json"), "Outcome")
        assert node.answer().default == "crun"
        assert {*roots(node).values()} == {"/run/crun", "/run/runc"}
        assert roots(node)["nvidia"] == "/run/crun"
        assert shows(node.agent("apply", "-o", "json"), "Outcome")["changed"] == []


def test_handlers_keep_the_low_level_runtime_of_running_pods(place: Path) -> None:
    """Handlers stay on the low-level runtime that pods run by, and it is said."""
    with started(place) as node:
        shows(node.agent("apply", "-o", "json"), "Outcome")
        before = config(node)["runtimes"]
        path = node.drop_ins / "10-crio.conf"
        path.write_text(
            path.read_text().replace('default_runtime = "crun"', 'default_runtime = "runc"')
        )
        node.restart()
        data = shows(node.agent("apply", "-o", "json"), "Outcome")
        assert [text for text in data["warnings"] if "stay on crun" in text]
        assert roots(node)["nvidia"] == "/run/crun"
        assert config(node)["runtimes"][0] == before[0] == f"{node.bin}/crun"
        assert restarts(node) == 1


HOOK = """{"version": "1.0.0", "hook": {"path": "%s", "args": ["x", "prestart"]},
"when": {"always": true}, "stages": ["prestart"]}"""
OLD_HOOK = '{"Hook": "%s", "arguments": ["prestart"], "cmds": [".*"], "stage": ["prestart"]}'
SOME_HOOK = '{"hook": "%s", "arguments": ["prestart"], "annotation": ["a"], "stage": ["prestart"]}'


@pytest.fixture
def hooked(place: Path) -> CrioNode:
    """A node that looks for hooks in two directories, not yet running."""
    node = make(place, text="")
    later = place / "later.d"
    later.mkdir()
    (node.drop_ins / "10-hooks.conf").write_text(
        f'[crio.runtime]\nhooks_dir = ["{node.hooks}", "{later}"]\n'
    )
    (place / "hook-link").symlink_to(node.toolkit / HOOK_BINARY)
    return node


@pytest.mark.parametrize("where", ["hooks.d/oci-nvidia-hook.json", "hooks.d/a.json",
                                   "later.d/oci-nvidia-hook.json", "later.d/b.json"])  # fmt: skip
@pytest.mark.parametrize("text", [HOOK, OLD_HOOK, SOME_HOOK])
def test_foreign_hook_is_named_and_never_doubled(hooked: CrioNode, where: str, text: str) -> None:
    """Named in every row with handlers, in both spellings; never doubled by ours, and never
    removed."""
    with hooked as node:
        foreign = node.directory / where
        foreign.write_text(text % (node.directory / "hook-link"))
        option = f"--hooks-dir={node.hooks}"
        data = shows(node.agent("apply", option, "-o", "json"), "Outcome")
        [warning] = [text for text in data["warnings"] if str(foreign) in text]
        assert "row 8" in warning
        assert ("all containers" in warning) == (text != SOME_HOOK)
        original, ours = foreign.read_bytes(), node.hooks / "oci-nvidia-hook.json"
        hidden = where == "later.d/oci-nvidia-hook.json"
        result = node.agent("apply", OFF, option, "-o", "json")
        if hidden and text == SOME_HOOK:
            fails(result, 3, str(foreign), "in its place")
            return
        data = shows(result, "Outcome")
        told = [text for text in data["warnings"] if str(foreign) in text]
        assert bool(told) == (foreign != ours)
        if foreign != ours:
            assert ours.exists() == (text == SOME_HOOK)
            assert foreign.read_bytes() == original
        assert node.agent("revert", option).returncode == 0
        assert foreign.read_bytes() == original


def conditional(path: str, arguments: str, when: str) -> str:
    """A hook of version 1.0.0."""
    return (
        f'{{"version": "1.0.0", "hook": {{"path": "{path}", "args": [{arguments}]}}, '
        f'"when": {when}, "stages": ["prestart"]}}'
    )


@pytest.mark.parametrize(
    ("when", "for_all"),
    [('{"always": true}', True), ('{"commands": [".*"]}', True),
     ('{"always": true, "commands": [".*"]}', True),
     ('{"always": true, "commands": ["^nvidia-smi$"]}', False),
     ('{"always": true, "annotations": {"^gpu$": "yes"}}', False),
     ('{"always": true, "hasBindMounts": true}', False),
     ('{"always": false, "commands": [".*"]}', False), ("{}", False)],
)  # fmt: skip
def test_hook_is_written_where_the_foreign_one_does_not_always_run(
    hooked: CrioNode, when: str, for_all: bool
) -> None:
    """All of them have to hold. Where theirs does not run for every container, ours is written:
    the others would have no GPU."""
    with hooked as node:
        foreign = node.hooks / "a.json"
        foreign.write_text(conditional(str(node.directory / "hook-link"), '"x"', when))
        data = shows(node.agent("apply", OFF, f"--hooks-dir={node.hooks}", "-o", "json"), "Outcome")
        assert (node.hooks / "oci-nvidia-hook.json").exists() != for_all
        assert [text for text in data["warnings"] if str(foreign) in text]


NVIDIAS = (
    "nvidia-container-runtime-hook", "nvidia-container-toolkit", "nvidia-container-toolkit.real"
)  # fmt: skip
SPELLINGS = (
    ("@/NAME", '"hook", "prestart"'),
    ("@/other", '"NAME", "prestart"'),
    ("@/sh", '"sh", "-c", "exec @/NAME -config=/x prestart"'),
    ("@/env", '"env", "A=1", "@/NAME", "prestart"'),
    ("@/sh", '"sh", "-c", "test -e @/link-NAME && \'@/link-NAME\'"'),
)


def test_hook_of_nvidia_is_known_in_every_spelling(hooked: CrioNode) -> None:
    """By what its file names, by what it calls itself, or by what another program runs; and
    whatever calls other programs is none."""
    above, later = hooked.directory / "tools", hooked.directory / "later.d"
    above.mkdir()
    for name in NVIDIAS:
        (above / name).touch(0o755)
        (above / f"link-{name}").symlink_to(name)
    for number, (path, arguments) in enumerate(SPELLINGS):
        for name in NVIDIAS:
            first, second = (text.replace("NAME", name).replace("@", str(above))
                     for text in (path, arguments))  # fmt: skip
            (later / f"{number}-{name}.json").write_text(
                conditional(first, second, '{"always": true}')
            )
    (later / "log.json").write_text(
        conditional("/usr/bin/log", '"log", "--skip=gpu"', '{"always": true}')
    )
    with hooked as node:
        told = shows(node.agent("apply", "-o", "json"), "Outcome")["warnings"]
        for file in later.iterdir():
            found = [text for text in told if text.startswith(f"{file} is an OCI hook for all")]
            assert len(found) == (file.name != "log.json"), file
