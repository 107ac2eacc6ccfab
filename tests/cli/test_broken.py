"""Broken input gives the right exit code and one line with the reason, and touches nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows
from tests.conformance import checks

Break = Callable[[CliNode], object]


def append(text: str) -> Break:
    """Break the root file with more text; SECTION is the section of the CRI."""
    return lambda node: edit(node.config, text.replace("SECTION", node.section))


def edit(path: Path, text: str) -> None:
    """Add text at the end of a file."""
    path.write_text(f"{path.read_text()}\n{text}\n")


def replaced_by(make: Callable[[Path], object]) -> Break:
    """Put something else in the root file's place."""

    def broken(node: CliNode) -> None:
        node.config.unlink()
        make(node.config)

    return broken


def imported(name: str, make: Callable[[Path], object]) -> Break:
    """Import something broken by its name."""

    def broken(node: CliNode) -> None:
        make(node.etc / name)
        text = node.config.read_text()
        node.config.write_text(f'imports = ["{node.etc / name}"]\n{text}')

    return broken


def importing(name: str) -> Break:
    """Import what cannot be a file of a configuration; `name` as TOML spells it."""
    return lambda node: node.config.write_text(f'imports = ["{name}"]\n{node.config.read_text()}')


def at_drop_in(make: Callable[[Path], object]) -> Break:
    """Put something where our drop-in has to be."""

    def broken(node: CliNode) -> None:
        node.drop_in.parent.mkdir()
        make(node.drop_in)

    return broken


def with_mode(make: Callable[[Path], object], mode: int) -> Callable[[Path], object]:
    """Make something with that mode, whatever the umask."""

    def made(path: Path) -> None:
        make(path)
        path.chmod(mode)

    return made


def large(path: Path) -> None:
    """Write 2 MiB of valid TOML."""
    path.write_text("# x\n" * (1 << 19))


# What is broken while the runtime still runs on what was there before, and what the line names.
BROKEN: dict[str, tuple[Break, str]] = {
    "no TOML": (append("version = = 3"), "config.toml: it is not valid TOML"),
    "half a line": (append('[plugins."io.con'), "config.toml: it is not valid TOML"),
    "not UTF-8": (
        lambda node: node.config.write_bytes(b"a = '\xff'\n"),
        "config.toml: line 1 is not UTF-8",
    ),
    "NUL": (lambda node: node.config.write_bytes(b"a = 1\0\n"), "config.toml"),
    "a key twice": (append("[SECTION]\nx = 1\nx = 2"), "config.toml: it is not valid TOML"),
    "version is text": (
        lambda node: node.config.write_text('version = "3"\n'),
        "config.toml: version",
    ),
    "version is a truth": (
        lambda node: node.config.write_text("version = true\n"),
        "config.toml: version",
    ),
    "imports is text": (
        lambda node: node.config.write_text('version = 3\nimports = "a.toml"\n'),
        "config.toml: imports",
    ),
    "imports has a number": (
        lambda node: node.config.write_text("version = 3\nimports = [1]\n"),
        "config.toml: imports",
    ),
    "plugins is a list": (
        lambda node: node.config.write_text("version = 3\nplugins = []\n"),
        "config.toml: plugins",
    ),
    "runtimes is text": (
        lambda node: node.config.write_text(
            f"version = 3\n[{node.section}.containerd]\nruntimes = 'runc'\n"
        ),
        "runtimes",
    ),
    "a handler is text": (
        lambda node: node.config.write_text(
            f"version = 3\n[{node.section}.containerd.runtimes]\nnvidia = 'nvidia'\n"
        ),
        "runtimes.nvidia",
    ),
    "options are a list": (
        lambda node: node.config.write_text(
            f"version = 3\n[{node.section}.containerd.runtimes.nvidia]\noptions = [1]\n"
        ),
        "runtimes.nvidia",
    ),
    "enable_cdi is text": (append("[SECTION]\nenable_cdi = 'yes'"), "enable_cdi"),
    "the default is a number": (
        append("[SECTION.containerd]\ndefault_runtime_name = 7"),
        "default_runtime_name",
    ),
    "the default is no handler": (
        append("[SECTION.containerd]\ndefault_runtime_name = 'gone'"),
        "gone",
    ),
    "root file is a directory": (replaced_by(Path.mkdir), "config.toml: it is a directory"),
    "root file is a dangling link": (
        replaced_by(lambda path: path.symlink_to("nowhere.toml")),
        "config.toml is dangling",
    ),
    "root file is a circle": (replaced_by(lambda path: path.symlink_to(path)), "too many links"),
    "root file is a pipe": (replaced_by(os.mkfifo), "config.toml: it is not a regular file"),
    "root file has 2 MiB": (replaced_by(large), "config.toml: it is larger than"),
    "import is missing": (imported("gone.toml", lambda path: path), "gone.toml"),
    "import is no TOML": (imported("a.toml", lambda path: path.write_text("=")), "a.toml"),
    "import is a directory": (imported("a.toml", Path.mkdir), "a.toml: it is a directory"),
    "import has 2 MiB": (imported("a.toml", large), "a.toml: it is larger than"),
    "import is a dangling link": (
        imported("a.toml", lambda path: path.symlink_to("nowhere.toml")),
        "a.toml is dangling",
    ),
    "drop-in is a directory": (at_drop_in(Path.mkdir), "99-nvidia.toml: it is a directory"),
    "drop-in is no TOML": (at_drop_in(lambda path: path.write_text("[")), "99-nvidia.toml"),
    "drop-in is a dangling link": (
        at_drop_in(lambda path: path.symlink_to("nowhere.toml")),
        "99-nvidia.toml is dangling",
    ),
    "root file can be written by others": (
        lambda node: node.config.chmod(0o666),
        "config.toml: it can be written by others",
    ),
    "import can be written by others": (
        imported("a.toml", with_mode(Path.touch, 0o664)),
        "a.toml: it can be written by others",
    ),
    "root file's directory can be written by others": (
        lambda node: node.etc.chmod(0o777),
        "can be written by others",
    ),
    "drop-in's directory can be written by others": (
        lambda node: with_mode(Path.mkdir, 0o777)(node.drop_in.parent),
        "conf.d can be written by others",
    ),
    "import leads into a process": (importing("/proc/self/root/x.toml"), "leads into a process"),
    "import has a line break": (importing("/etc/a\\nb.toml"), "control character"),
    "import has a NUL": (importing("/etc/a\\u0000b.toml"), "control character"),
    "import has 300 letters": (importing(f"/etc/{'a' * 300}"), "file name too long"),
    "import has 5000 letters": (importing("/etc" + "/a" * 2500), "file name too long"),
    "drop-in's directory is a file": (lambda node: (node.etc / "conf.d").touch(), "conf.d"),
}


@pytest.mark.parametrize(("broken", "names"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_configuration_is_refused_and_stays(
    same_node: CliNode, broken: Break, names: str
) -> None:
    """Exit 3, the file is named, and it stays as broken as it was."""
    broken(same_node)
    refuses(same_node, Refusal(3, names), commands=("apply", "apply"))
    assert same_node.answer().ready
    found = shows(same_node.agent("status", "-o", "json"), "Status", 1)
    assert names in found["problem"]


def test_repaired_configuration_is_applied(node: CliNode) -> None:
    """A refusal leaves nothing behind that stands in the way of the next run."""
    text = node.config.read_text()
    edit(node.config, "version = = 3")
    refuses(node, Refusal(3, "config.toml"))
    node.config.write_text(text)
    checks.done(node.agent("apply"))
    assert node.error() == {}
    assert node.ready()
    assert "nvidia" in node.answer().runtimes


def test_a_refusal_leaves_readiness(node: CliNode) -> None:
    """The running runtime is proven still, whatever became of the files."""
    checks.done(node.agent("apply"))
    ready = node.ready()
    assert ready
    edit(node.config, "version = = 3")
    refuses(node, Refusal(3, "config.toml"), commands=("apply", "apply", "revert"))
    assert node.ready() == ready


def test_missing_toolkit_is_refused_by_its_name(node: CliNode) -> None:
    """No file, a directory, or no right to execute it: exit 3, the binary is named."""
    binary = node.toolkit / "nvidia-container-runtime"
    refusal = Refusal(3, "nvidia-container-runtime is neither in", "NO_TOOLKIT")
    binary.chmod(0o644)
    refuses(node, refusal)
    binary.unlink()
    refuses(node, refusal, commands=("apply",))
    binary.mkdir()
    refuses(node, refusal, commands=("apply",))


def test_handler_without_its_binary_is_left_out(node: CliNode) -> None:
    """A handler without its binary is left out, with a warning."""
    (node.toolkit / "nvidia-container-runtime.cdi").unlink()
    result = node.agent("apply")
    checks.done(result)
    assert "nvidia-cdi is left out" in result.stdout
    assert set(node.answer().runtimes) == {"runc", "nvidia", "nvidia-legacy"}


def test_hard_links_get_a_warning(node: CliNode) -> None:
    """The other name keeps the old content; told, and done all the same."""
    other, old = node.directory / "other.toml", node.config.read_text()
    os.link(node.config, other)
    result = node.agent("apply")
    checks.done(result)
    assert f"{node.config} has 2 names (hard links)" in result.stdout
    assert node.config.read_text() != old == other.read_text()


BAD_ENVIRONMENT = {
    "CDI_ENABLED": "perhaps",
    "CDI_KIND": "gpu",
    "NO_RUNTIME_CONFIG": "10",
    "KUBELET_VERSION": "new",
    "RUNTIME_CONFIG": "etc/config.toml",
    "NVIDIA_RUNTIME_NAME": "bad name",
    "AGENT_NATIVE_CDI": "maybe",
    "AGENT_DEVICE_LIST_STRATEGY": "envvar,luck",
    "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES": "no slash",
    "NVIDIA_CONTAINER_RUNTIME_MODE": "fast",
    "RUNTIME": "runc",
}


@pytest.mark.parametrize(("name", "value"), BAD_ENVIRONMENT.items())
def test_bad_environment_is_a_usage_error(same_node: CliNode, name: str, value: str) -> None:
    """Exit 2, and the line names the value that cannot be used."""
    env = {name: value}
    refusal = Refusal(2, value.rpartition(",")[2], None)
    refuses(same_node, refusal, env=env, commands=("apply",))
    assert not same_node.state.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--frobnicate"],
        ["--runtime"],
        ["--runtime=docker"],
        ["--cdi-enabled=perhaps"],
        ["--restart-mode=sometimes"],
        ["--proof-timeout=soon"],
        ["--proof-timeout=0"],
        ["-o", "xml"],
        ["--state-dir=relative"],
        ["stray"],
    ],
    ids=" ".join,
)
def test_bad_command_line_is_a_usage_error(same_node: CliNode, words: list[str]) -> None:
    """Exit 2, and nothing was even looked at."""
    word = words[-1].removeprefix("--").rpartition("=")[2]
    refuses(same_node, Refusal(2, word, None), *words, commands=("apply", "revert"))
    assert not same_node.state.exists()


def test_unknown_command_is_a_usage_error(same_node: CliNode) -> None:
    """Exit 2, naming it."""
    fails(same_node.agent("improve"), 2, "improve")


def test_configuration_of_docker_is_refused_with_the_reason(same_node: CliNode) -> None:
    """Docker is no CRI runtime, and the line says what to give instead."""
    result = same_node.agent("apply", env={"RUNTIME": "docker"})
    fails(result, 2, "docker", "--runtime=containerd")
