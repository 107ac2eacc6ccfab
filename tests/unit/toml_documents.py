"""TOML documents in containerd's shape and in any spelling, and edits of them.

`document(random)` makes data like a containerd configuration and writes it as people and tools do:
headers, dotted keys, inline tables, either quote, indented or not, commented, in any order, with
LF or CRLF, with or without a final newline. `operations(random, data)` are edits as the agent does
them. `random` is a `random.Random`, or hypothesis's own, which can shrink.
"""

from __future__ import annotations

import json
import random as randoms
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.tomledit import Append, Op, Path, Set, Unset

Data: TypeAlias = dict[str, Any]
Random: TypeAlias = randoms.Random

CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
HANDLERS = ("runc", "crun", "kata", "nvidia", "io.example.runtime", "my handler")


@dataclass(frozen=True)
class Document:
    """A text, the data that it stands for, and its comments in their order."""

    text: str
    data: Data
    comments: tuple[str, ...]


def data(random: Random) -> Data:
    """Return a configuration's data, with more or less of everything."""
    plugins: Data = {random.choice(CRI): _cri(random)}
    if random.random() < 0.4:
        plugins["io.containerd.internal.v1.opt"] = {"path": "/opt/containerd"}
    whole: Data = {}
    if random.random() < 0.8:
        whole["version"] = random.choice((2, 3))
    if random.random() < 0.4:
        whole["imports"] = ["/etc/containerd/conf.d/*.toml", "x.toml"][: random.randint(0, 2)]
    if random.random() < 0.3:
        whole["oom_score"] = -999
    if random.random() < 0.4:
        whole["grpc"] = {"address": "/run/containerd/containerd.sock", "uid": 0}
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
    if random.random() < 0.2:
        cri["cni"] = {"bin_dir": "/opt/cni/bin", "max_conf_num": 1}
    return cri


def _containerd(random: Random) -> Data:
    table: Data = {}
    if random.random() < 0.5:
        table["default_runtime_name"] = random.choice(HANDLERS)
    if random.random() < 0.3:
        table["snapshotter"] = 'the "best" one'
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
    if random.random() < 0.7:
        table["options"] = {}
        if random.random() < 0.6:
            table["options"]["SystemdCgroup"] = random.random() < 0.7
        if random.random() < 0.5:
            table["options"]["BinaryName"] = "/usr/bin/" + random.choice(("runc", "nvidia"))
    return table


def document(random: Random) -> Document:
    """Return one document; its text parses to its data."""
    wanted = data(random)
    writer = _Writer(random)
    writer.root(wanted)
    text = "\n".join(writer.lines)
    if random.random() < 0.8:
        text += "\n"
    if random.random() < 0.2:
        text = text.replace("\n", "\r\n")
    return Document(text, wanted, tuple(writer.comments))


class _Writer:
    """Writes tables line by line, choosing a spelling for each."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.lines: list[str] = []
        self.comments: list[str] = []
        self.step = random.choice(("", "", "  ", "\t"))
        self.plain = random.random() < 0.4  # most people's files: headers only
        self.shuffled = random.random() < 0.4
        self.commented = random.choice((0.0, 0.1, 0.4))

    def root(self, table: Data) -> None:
        """Write the whole: what needs no header first, then tables with theirs."""
        if not self.plain and self.random.random() < 0.1:
            self.dotted(table, (), "")
            return
        self.body((), table)

    def body(self, path: Path, table: Data) -> None:
        """Write what is in a table whose header, if it has one, is there."""
        indent = self.step * max(0, len(path) - 1)
        below = []
        for key, value in self.items(table):
            if not isinstance(value, dict):
                self.line(f"{indent}{self.key(key)} = {self.value(value)}", indent)
            elif self.plain or self.random.random() < 0.85:
                below.append((key, value))
            elif self.random.random() < 0.5:
                self.line(f"{indent}{self.key(key)} = {self.inline(value)}", indent)
            elif value:
                self.dotted(value, (key,), indent)
            else:
                below.append((key, value))
        for key, value in below:
            self.table((*path, key), value)

    def table(self, path: Path, table: Data) -> None:
        """Write a table with its header, which may be left out where only tables are below it."""
        indent = self.step * (len(path) - 1)
        simple = all(isinstance(value, dict) for value in table.values()) and table
        if simple and self.random.random() < 0.6:
            for key, value in self.items(table):
                self.table((*path, key), value)
            return
        if self.random.random() < 0.4:
            self.lines.append("")
        gap = " " if self.random.random() < 0.05 else ""
        name = f"{gap}.{gap}".join(self.key(part) for part in path)
        self.line(f"{indent}[{gap}{name}{gap}]", indent)
        self.body(path, table)

    def dotted(self, table: Data, path: Path, indent: str) -> None:
        """Write a table as dotted keys in the table that is open."""
        for key, value in self.items(table):
            if isinstance(value, dict) and value and self.random.random() < 0.8:
                self.dotted(value, (*path, key), indent)
                continue
            name = ".".join(self.key(part) for part in (*path, key))
            text = self.inline(value) if isinstance(value, dict) else self.value(value)
            self.line(f"{indent}{name} = {text}", indent)

    def items(self, table: Data) -> Iterator[tuple[str, Any]]:
        """Give a table's items, in any order in a shuffled document."""
        items = list(table.items())
        if self.shuffled:
            self.random.shuffle(items)
        yield from items

    def line(self, text: str, indent: str) -> None:
        """Write a line, commented above or behind."""
        if self.random.random() < self.commented:
            self.lines.append(indent + self.comment())
        if self.random.random() < self.commented:
            text += "  " + self.comment()
        self.lines.append(text)

    def comment(self) -> str:
        """Return a comment that is like no other."""
        text = f"# note {len(self.comments)}: see [plugins] and x = 1"
        self.comments.append(text)
        return text

    def key(self, key: str) -> str:
        """Write a key bare or in either quote."""
        if re.fullmatch(r"[A-Za-z0-9_-]+", key) and self.random.random() < 0.9:
            return key
        return json.dumps(key) if self.random.random() < 0.7 else f"'{key}'"

    def inline(self, table: Data) -> str:
        """Write an inline table."""
        pairs = [
            f"{self.key(key)} = "
            + (self.inline(value) if isinstance(value, dict) else self.value(value))
            for key, value in self.items(table)
        ]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"

    def value(self, value: Any) -> str:
        """Write a scalar or a list."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            return json.dumps(value) if self.random.random() < 0.7 else f"'{value}'"
        if isinstance(value, list):
            return "[" + ", ".join(self.value(item) for item in value) + "]"
        return str(value)


def operations(random: Random, whole: Data) -> list[Op]:
    """Return edits as the agent does them: handlers, single options, default, switch, imports."""
    found = [name for name in CRI if name in whole.get("plugins", {})]
    section: Path = ("plugins", random.choice(found or CRI))
    runtimes = (*section, "containerd", "runtimes")
    handler: Data = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/opt/n"}}
    name = random.choice(HANDLERS)
    choices: list[Op] = [
        Set((*runtimes, name), handler),
        Set((*runtimes, name, "options", "BinaryName"), "/opt/nvidia"),
        Set((*runtimes, name, "runtime_type"), "io.containerd.runc.v2"),
        Set((*section, "containerd", "default_runtime_name"), "nvidia"),
        Set((*section, "enable_cdi"), True),
        Append(("imports",), "/etc/containerd/conf.d/99-nvidia*.toml"),
        Append((*section, "cdi_spec_dirs"), "/run/cdi"),
        Unset((*runtimes, name)),
        Unset((*runtimes, name, "options", "BinaryName")),
        Unset((*section, "containerd", "default_runtime_name")),
        Unset((*section, "enable_cdi")),
    ]
    return random.sample(choices, random.randint(1, 3))
