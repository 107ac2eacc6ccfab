"""The shape of the program: layers of imports, one module per library, sizes of functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "agent"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.startswith("api_pb2")
}

# From the outside in. A module imports from its own line or from lines below it, wherever in its
# text the import stands. A name stands for the package and all that is in it; the longest counts.
LAYERS = (
    ("agent.__main__",),
    ("agent.cli",),
    ("agent.daemon",),
    ("agent.transaction",),
    ("agent.doctor",),
    ("agent.reports",),
    ("agent.verify",),
    ("agent.plan",),
    ("agent.runtimes",),
    ("agent.cdi", "agent.toolkit", "agent.status"),
    ("agent.state",),
    ("agent.systemd",),
    ("agent.runtimes.containerd.generations", "agent.cri", "agent.log"),
    ("agent.decide", "agent.runtimes.command", "agent._cri"),
    ("agent.cri.versions", "agent.toml"),
    ("agent.host",),
    ("agent.options",),
    ("agent.errors", "agent"),
    ("agent.redaction",),
)
LEVEL = {name: len(LAYERS) - number for number, names in enumerate(LAYERS) for name in names}

# A library that is slow, big or hard is known to one module only.
ONLY = {
    "click": {
        "agent.cli",
        "agent.cli.about",
        "agent.cli.base",
        "agent.cli.cdi",
        "agent.cli.completion",
    },
    "grpc": {"agent.cri.client"},
    "jeepney": {"agent.systemd.dbus"},
    "tomlkit": {"agent.toml.place"},
    "structlog": {"agent.log"},
    "yaml": {"agent.cdi.specs.read"},
    "pynvml": {"agent.cdi.driver.nvml_child"},
}
ALLOWED = set(ONLY) | {"google"}

FUNCTION_LINES = 50


def level(module: str) -> int:
    """Return how far out a module is, by the longest name of the table that covers it."""
    name = module
    while name not in LEVEL or (name == "agent" and module != "agent"):
        if "." not in name:
            raise AssertionError(f"{module} is in no layer")
        name = name.rpartition(".")[0]
    return LEVEL[name]


@cache
def tree(module: str) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Give all nodes but those of `if TYPE_CHECKING`, which nothing ever runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _runtime_nodes(child)


@cache
def imports(module: str, *, types: bool = False) -> set[str]:
    """Return every module that one imports when it runs, sooner or later; with `types` also those
    that it imports under TYPE_CHECKING."""
    found: set[str] = set()
    for node in (ast.walk if types else _runtime_nodes)(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return found


def test_imports_go_one_way() -> None:
    """From the command line inwards; what is inside does not know what is around it, not even for
    its types."""
    wrong = {
        (module, name)
        for module in MODULES
        for name in imports(module, types=True)
        if name.partition(".")[0] == "agent" and level(name) > level(module)
    }
    assert wrong == set()


def test_no_module_imports_itself_through_others() -> None:
    """A circle works until somebody moves a line."""
    edges = {module: imports(module) & MODULES.keys() for module in MODULES}
    while leaves := {module for module, names in edges.items() if not names}:
        edges = {m: names - leaves for m, names in edges.items() if m not in leaves}
    assert sorted(edges) == []


def test_no_folder_holds_more_than_a_dozen_modules() -> None:
    """Who looks for a room sees all doors at once."""
    for folder in {path.parent for path in MODULES.values()}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 12, folder


def test_library_is_imported_in_one_module() -> None:
    """Changing it, or doing without it, is one module's matter."""
    users: dict[str, set[str]] = {library: set() for library in ONLY}
    for module in MODULES:
        for library in {name.split(".")[0] for name in imports(module)} & ONLY.keys():
            users[library].add(module)
    assert users == ONLY


def test_no_other_library_is_imported() -> None:
    """A dependency is a decision; the rest comes with Python."""
    names = {name.split(".")[0] for module in MODULES for name in imports(module)}
    foreign = names - set(sys.stdlib_module_names) - {"agent"}
    assert foreign <= ALLOWED


def test_functions_are_of_a_size_that_can_be_read() -> None:
    """The module says what it is for."""
    long = [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1}"
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert long == []
    silent = [m for m in MODULES if tree(m).body and not ast.get_docstring(tree(m))]
    assert silent == []


def loads(*arguments: str) -> set[str]:
    """Return all modules that a run of Python with these arguments loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["apply", "--help"], ["config"], ["config", "-o", "yaml"]],
)
def test_help_loads_no_library_that_it_does_not_need(arguments: list[str]) -> None:
    """Someone who reads the help, and an idle supervisor, pay for neither gRPC nor tomlkit."""
    loaded = loads("-m", "agent", *arguments)
    assert "click" in loaded
    heavy = {
        "grpc", "google.protobuf", "tomlkit", "structlog", "asyncio", "yaml", "jeepney", "pynvml",
    }  # fmt: skip
    assert loaded & heavy == set()


def test_work_loads_no_help() -> None:
    """Only a person who asks pays for help texts and completion."""
    loaded = loads("-m", "agent", "config")
    assert "agent.cli.base" in loaded
    unneeded = {"agent.cli.help", "agent.cli.completion", "click.shell_completion", "difflib"}
    assert loaded & unneeded == set()


def test_a_runtime_is_loaded_where_there_is_one() -> None:
    """The HTTP client of CRI-O takes longest of all to load."""
    commands = "import agent.plan.propose, agent.transaction.converge, agent.transaction.revert"
    loaded = loads("-c", f"{commands}, agent.reports.node")
    assert "agent.runtimes.registry" in loaded
    assert not [name for name in loaded if name.startswith(("agent.runtimes.crio", "http"))]


# Data about runtimes: what each reads of a CDI spec and of TOML, and what NVIDIA calls them.
NAMES_ALLOWED = ("agent.runtimes", "agent.decide", "agent.options", "agent.cdi.specs", "agent.toml")


def test_no_runtime_is_known_by_name() -> None:
    """Whatever differs between runtimes is behind their adapters; prose may name them."""
    nodes = [
        (module, node)
        for module in MODULES
        if not module.startswith(NAMES_ALLOWED)
        for node in ast.walk(tree(module))
    ]
    texts = {id(node.value) for _, node in nodes if isinstance(node, ast.Expr)}
    found = [
        (module, word)
        for module, node in nodes
        if id(node) not in texts
        for word in (
            getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "module", "") or "",
            node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "",
        )
        if re.search("[Cc]rio(?!_config_mode)|cri-o|CRI-O|[Cc]ontainerd(?!/)", word)
    ]  # fmt: skip
    assert found == []


def test_no_shell_and_no_fork() -> None:
    """A shell is an injection in waiting, and a forked gRPC hangs. The process that makes
    namespaces has to fork to be in the new one of processes, and has loaded no gRPC."""
    for module in MODULES.keys() - {"agent.host.isolation_child"}:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.keyword):
                assert node.arg != "shell", module
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"os.fork", "os.system", "os.popen"}, module
