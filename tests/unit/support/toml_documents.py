"""TOML documents in containerd's shape and in any spelling, and edits of them.

`random_document(random)` makes data like a containerd configuration and writes it as people and
tools do: headers, dotted keys, inline tables and mixtures of them, arrays of tables, either quote,
lists and strings of several lines, indented or not, commented, in any order, with LF or CRLF, with
or without a final newline. `operations(random, data)` are edits as the agent does them: `plan.py`
those that make a node right, `revert.py` those that undo. `random` is a `random.Random`, or
hypothesis's own, which can shrink.
"""

from __future__ import annotations

import json
import random as randoms
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.toml.document import Append, Op, Path, Set, Unset

Data: TypeAlias = dict[str, Any]
Random: TypeAlias = randoms.Random

CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
HANDLERS = ("runc", "crun", "kata", "nvidia", "io.example.runtime", "my handler")
NARROW = "/etc/containerd/conf.d/99-nvidia*.toml"


@dataclass(frozen=True)
class Document:
    """A text, the data that it stands for, and its comments, in no particular order."""

    text: str
    data: Data
    comments: tuple[str, ...]


def data(random: Random) -> Data:
    """Return a configuration's data, with more or less of everything."""
    plugins: Data = {random.choice(CRI): _cri(random)}
    if random.random() < 0.4:
        plugins["io.containerd.internal.v1.opt"] = {"path": "/opt/containerd"}
    if random.random() < 0.2:
        plugins["io.containerd.transfer.v1.local"] = {
            "config_path": "",
            "unpack_config": [
                {"platform": "linux/amd64", "snapshotter": name}
                for name in random.sample(("overlayfs", "native", "stargz"), random.randint(1, 2))
            ],
        }
    whole: Data = {}
    if random.random() < 0.8:
        whole["version"] = random.choice((2, 3))
    if random.random() < 0.4:
        imports = ["/etc/containerd/conf.d/*.toml", "x.toml", NARROW]
        whole["imports"] = random.sample(imports, random.randint(0, 3))
    if random.random() < 0.3:
        whole["oom_score"] = -999
    if random.random() < 0.4:
        whole["grpc"] = {"address": "/run/containerd/containerd.sock", "uid": 0}
    if random.random() < 0.2:
        whole["proxy_plugins"] = {"stargz": {"type": "snapshot", "address": "/run/s.sock"}}
    if random.random() < 0.2:
        whole["timeouts"] = {"io.containerd.timeout.shim.load": "5s"}
    if random.random() < 0.9:
        whole["plugins"] = plugins
    return whole


def _cri(random: Random) -> Data:
    cri: Data = {}
    if random.random() < 0.3:
        cri["enable_cdi"] = random.random() < 0.5
    if random.random() < 0.3:
        cri["cdi_spec_dirs"] = ["/etc/cdi", "/var/run/cdi"]
    if random.random() < 0.3:
        cri["sandbox_image"] = "registry.example/pause:3.9"
    if random.random() < 0.8:
        cri["containerd"] = _containerd(random)
    if random.random() < 0.3:
        cri["registry"] = {"config_path": "/etc/containerd/certs.d"}
        if random.random() < 0.5:
            names = ("docker.io", "registry.example:5000", "*")
            cri["registry"]["mirrors"] = {
                name: {"endpoint": [f"https://{name}", "http://10.0.0.1"]}
                for name in random.sample(names, random.randint(1, 3))
            }
    if random.random() < 0.2:
        cri["cni"] = {"bin_dir": "/opt/cni/bin", "max_conf_num": 1}
    return cri


def _containerd(random: Random) -> Data:
    table: Data = {}
    if random.random() < 0.5:
        table["default_runtime_name"] = random.choice(HANDLERS)
    if random.random() < 0.3:
        table["snapshotter"] = 'the "best" one'
    if random.random() < 0.15:
        table["default_runtime"] = _handler(random)
    if random.random() < 0.8:
        names = random.sample(HANDLERS, random.randint(0, 3))
        table["runtimes"] = {name: _handler(random) for name in names}
    return table


def _handler(random: Random) -> Data:
    table: Data = {}
    if random.random() < 0.8:
        table["runtime_type"] = "io.containerd.runc.v2"
    if random.random() < 0.2:
        table["pod_annotations"] = ["a.example/*", "b # no comment"]
    if random.random() < 0.2:
        table["container_annotations"] = ["cdi.k8s.io/*"]
    if random.random() < 0.7:
        table["options"] = {}
        if random.random() < 0.6:
            table["options"]["SystemdCgroup"] = random.random() < 0.7
        if random.random() < 0.5:
            table["options"]["BinaryName"] = "/usr/bin/" + random.choice(("runc", "nvidia"))
        if random.random() < 0.2:
            table["options"]["Root"] = ""
    return table


def random_document(random: Random) -> Document:
    """Return one document; its text parses to its data."""
    wanted = data(random)
    writer = _Writer(random)
    writer.root(wanted)
    blocks = ["\n".join(block) for block in writer.blocks if block]
    text = "\n".join(blocks)
    if random.random() < 0.25:
        first = len(blocks) if not writer.blocks[0] else 1
        moved = blocks[1:] if first == 1 else list(blocks)
        random.shuffle(moved)
        other = "\n".join([*(blocks[:1] if first == 1 else []), *moved])
        # A dotted key cannot add to a table that a header above it has made.
        text = other if _means(other, wanted) else text
    if random.random() < 0.8:
        text += "\n"
    if random.random() < 0.2:
        text = text.replace("\n", "\r\n")
    return Document(text, wanted, tuple(writer.comments))


def _means(text: str, wanted: Data) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


class _Writer:
    """Writes tables line by line, choosing a spelling for each. The first of its blocks is what
    comes before the first header; each other begins with a header."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.blocks: list[list[str]] = [[]]
        self.comments: list[str] = []
        self.step = random.choice(("", "", "  ", "\t"))
        self.plain = random.random() < 0.4  # most people's files: headers only
        self.shuffled = random.random() < 0.4
        self.commented = random.choice((0.0, 0.1, 0.4))
        self.tight = random.random() < 0.1
        self.below: list[tuple[Path, Any]] = []

    def root(self, table: Data) -> None:
        """Write the whole: what needs no header first, then tables with theirs."""
        if not self.plain and self.random.random() < 0.1:
            self.dotted(table, (), (), "")
            self.headers()
            return
        self.body((), table)

    def body(self, path: Path, table: Data) -> None:
        """Write what is in a table whose header, if it has one, is there."""
        indent = self.step * max(0, len(path) - 1)
        below: list[tuple[Path, Any]] = []
        for key, value in self.items(table):
            if _is_tables(value) and (self.plain or self.random.random() < 0.7):
                below.append(((*path, key), value))
            elif not isinstance(value, dict):
                self.key_value((key,), value, indent)
            elif self.plain or self.random.random() < 0.85:
                below.append(((*path, key), value))
            elif self.random.random() < 0.5:
                self.key_value((key,), value, indent)
            elif value:
                self.dotted(value, path, (key,), indent)
            else:
                below.append(((*path, key), value))
        self.below += below
        self.headers()

    def headers(self) -> None:
        """Write the tables that are still to be written, each with a header."""
        below, self.below = self.below, []
        for path, value in below:
            if isinstance(value, dict):
                self.table(path, value)
            else:
                self.array(path, value)

    def table(self, path: Path, table: Data) -> None:
        """Write a table with its header, which may be left out where only tables are below it."""
        simple = all(isinstance(value, dict) for value in table.values()) and table
        if simple and self.random.random() < 0.6:
            for key, value in self.items(table):
                self.table((*path, key), value)
            return
        self.blocks.append([])
        self.header(path, "[", "]")
        self.body(path, table)

    def header(self, path: Path, opening: str, closing: str) -> None:
        """Write the line that opens a table."""
        if self.random.random() < 0.4:
            self.blocks[-1].append("")
        gap = " " if self.random.random() < 0.05 else ""
        name = f"{gap}.{gap}".join(self.key(part) for part in path)
        indent = self.step * (len(path) - 1)
        self.line(f"{indent}{opening}{gap}{name}{gap}{closing}", indent)

    def array(self, path: Path, tables: list[Data]) -> None:
        """Write an array of tables."""
        self.blocks.append([])
        for table in tables:
            self.header(path, "[[", "]]")
            for key, value in self.items(table):
                self.key_value((key,), value, self.step * (len(path) - 1))

    def dotted(self, table: Data, base: Path, path: Path, indent: str) -> None:
        """Write a table as dotted keys in the table that is open."""
        for key, value in self.items(table):
            if isinstance(value, dict) and value and self.random.random() < 0.8:
                if path and self.random.random() < 0.15:
                    self.below.append(((*base, *path, key), value))
                else:
                    self.dotted(value, base, (*path, key), indent)
            else:
                self.key_value((*path, key), value, indent)

    def items(self, table: Data) -> Iterator[tuple[str, Any]]:
        """Give a table's items, in any order in a shuffled document."""
        items = list(table.items())
        if self.shuffled:
            self.random.shuffle(items)
        yield from items

    def key_value(self, path: Path, value: Any, indent: str) -> None:
        """Write a key with its value."""
        gap = " " if self.random.random() < 0.05 else ""
        name = f"{gap}.{gap}".join(self.key(part) for part in path)
        equals = "=" if self.tight else " = "
        text = self.inline(value) if isinstance(value, dict) else self.value(value, indent)
        self.line(f"{indent}{name}{equals}{text}", indent)

    def line(self, text: str, indent: str) -> None:
        """Write a line, commented above or behind."""
        if self.random.random() < self.commented:
            self.blocks[-1].append(indent + self.comment())
        if self.random.random() < self.commented:
            text += "  " + self.comment()
        self.blocks[-1].append(text)

    def comment(self) -> str:
        """Return a comment that is like no other."""
        text = f"# note {len(self.comments)}: see [plugins] and x = 1"
        self.comments.append(text)
        return text

    def key(self, key: str) -> str:
        """Write a key bare or in either quote."""
        if re.fullmatch(r"[A-Za-z0-9_-]+", key) and self.random.random() < 0.9:
            return key
        if self.random.random() < 0.05:
            return json.dumps(key).replace("e", "\\u0065")
        return json.dumps(key) if self.random.random() < 0.7 else f"'{key}'"

    def inline(self, table: Data) -> str:
        """Write an inline table."""
        pairs = [
            f"{name} = " + (self.inline(value) if isinstance(value, dict) else self.value(value))
            for name, value in self.pairs(table)
        ]
        gap = "" if self.tight else " "
        return f"{{{gap}{', '.join(pairs)}{gap}}}" if pairs else self.random.choice(("{}", "{ }"))

    def pairs(self, table: Data) -> Iterator[tuple[str, Any]]:
        """Give an inline table's entries, some of them with dotted keys."""
        for key, value in self.items(table):
            if isinstance(value, dict) and value and self.random.random() < 0.2:
                for below, inner in self.pairs(value):
                    yield f"{self.key(key)}.{below}", inner
            else:
                yield self.key(key), value

    def value(self, value: Any, indent: str | None = None) -> str:
        """Write a scalar or a list; on several lines only where an indentation is given."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            if indent is not None and self.random.random() < 0.03:
                return self.random.choice((f'"""\n{value}"""', f"'''{value}'''"))
            return json.dumps(value) if self.random.random() < 0.7 else f"'{value}'"
        if isinstance(value, dict):
            return self.inline(value)
        if not isinstance(value, list):
            return str(value)
        if indent is not None and self.random.random() < 0.2:
            return self.long_list(value, indent)
        comma = "," if value and self.random.random() < 0.1 else ""
        return "[" + ", ".join(self.value(item) for item in value) + comma + "]"

    def long_list(self, items: list[Any], indent: str) -> str:
        """Write a list in several lines, with comments, the last comma or not."""
        lines = ["[" + self.behind()]
        for number, item in enumerate(items):
            last = number + 1 == len(items) and self.random.random() < 0.5
            if self.random.random() < self.commented:
                lines.append(f"{indent}  {self.comment()}")
            lines.append(f"{indent}  {self.value(item)}{'' if last else ','}{self.behind()}")
        if items and self.random.random() < 0.2 and "#" not in lines[-1]:
            return "\n".join(lines) + "]"
        return "\n".join([*lines, indent + "]"])

    def behind(self) -> str:
        """Return a comment for the end of a line, or none."""
        return " " + self.comment() if self.random.random() < self.commented else ""


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, dict) for i in value)


def operations(random: Random, whole: Data) -> list[Op]:
    """Return edits as the agent does them: handlers, single options, default, switch, imports."""
    found = [name for name in CRI if name in whole.get("plugins", {})]
    section: Path = ("plugins", random.choice(found or CRI))
    runtimes = (*section, "containerd", "runtimes")
    legacy = (*section, "containerd", "default_runtime")
    name = random.choice(HANDLERS)
    choices: list[Op] = [
        Set((*runtimes, name), _ours(random)),
        Set((*runtimes, name, "options", "BinaryName"), "/opt/nvidia"),
        Set((*runtimes, name, "options", "Root"), ""),
        Set((*runtimes, name, "runtime_type"), "io.containerd.runc.v2"),
        Set((*runtimes, name, "container_annotations"), ["nvidia.cdi.k8s.io/*", "cdi.k8s.io/*"]),
        Set((*runtimes, name, "container_annotations"), []),
        Set((*runtimes, "default"), {"runtime_type": "io.containerd.runc.v2"}),
        Unset(legacy),
        Set((*section, "containerd", "default_runtime_name"), "nvidia"),
        Set((*section, "enable_cdi"), True),
        Append(("imports",), NARROW),
        Append((*section, "cdi_spec_dirs"), "/run/cdi"),
        Set(("imports",), ["/proc/self/fd/7", "/proc/self/fd/8"]),
        Set(("imports",), [item for item in whole.get("imports", []) if item != NARROW]),
        Unset(("imports",)),
        Unset((*runtimes, name)),
        Unset((*runtimes, name, "options", "BinaryName")),
        Unset((*section, "containerd", "default_runtime_name")),
        Unset((*section, "enable_cdi")),
    ]
    return random.sample(choices, random.randint(1, 4))


def _ours(random: Random) -> Data:
    """A handler as the agent makes it, or as an admin had it."""
    if random.random() < 0.3:
        return _handler(random)
    table: Data = {"runtime_type": "io.containerd.runc.v2"}
    if random.random() < 0.4:
        table["container_annotations"] = ["nvidia.cdi.k8s.io/*"]
    return {**table, "options": {"BinaryName": "/opt/n", "SystemdCgroup": True}}
