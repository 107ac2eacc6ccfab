"""CDI specs of others, and what containerd before 2.4 makes of them when it starts with CDI on.

Data: each case is one file of a spec directory. `deadly` is what 1.7.24 and 2.1.9 did (both the
same); `lenient` marks those where we take a file for deadly that is not, for another fault in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_VERSION = 'cdiVersion: "0.5.0"\n'
_DEVICES = "devices: [{name: gpu0, containerEdits: {env: [A=1]}}]\n"
_JSON_DEVICES = '"devices": [{"name": "gpu0", "containerEdits": {"env": ["A=1"]}}]'


def make_root(directory: Path) -> Path:
    """A host's root with the usual directories of specs; returns `directory`."""
    for name in ("etc/cdi", "run/cdi", "var"):
        (directory / name).mkdir(parents=True)
    (directory / "var/run").symlink_to("/run")
    return directory


def spec(kind: str, version: str = _VERSION) -> str:
    """A spec of this kind, as it is usually written."""
    return f"{version}kind: {kind}\n{_DEVICES}"


def with_line(line: str) -> str:
    """A spec with this line, or several, in place of its kind."""
    return f"{_VERSION}{line}\n{_DEVICES}"


def in_json(member: str) -> str:
    """A spec in JSON with this member for its kind."""
    return f'{{"cdiVersion": "0.5.0", {member}, {_JSON_DEVICES}}}'


@dataclass(frozen=True)
class Case:
    """One file by its name and content; `link` makes the file, or the directory, a link."""

    name: str
    deadly: bool
    content: str | bytes
    file: str = "site.yaml"
    link: str = ""
    mode: int = 0o644
    lenient: bool = False

    def __str__(self) -> str:
        return self.name

    def make(self, place: Path) -> Path:
        """Write it; returns the spec directory."""
        directory = place / "cdi"
        (real := place / "real").mkdir(parents=True)
        if self.link == "directory":
            directory.symlink_to("real")
        else:
            directory.mkdir()
        at = real if self.link else directory
        path = at / self.file
        path.parent.mkdir(exist_ok=True)
        data = self.content if isinstance(self.content, bytes) else self.content.encode()
        path.write_bytes(data)
        path.chmod(self.mode)
        if self.link == "file":
            path = path.rename(path.with_suffix(".txt"))
            (directory / self.file).symlink_to(os.path.relpath(path, directory))
        return directory


_V = spec("v/gpu")

# What a kind may be, in its plainest spelling.
_KINDS = tuple(
    Case(f"kind {kind}", deadly, spec(kind))
    for kind, deadly in (
        ("v/gpu", True), ("probe.example/x", True), ("v/x", True), ("ab/x", True),
        ("vendor.example/gpu", False), ("ab/cd", False), ("1/gpu", False), ("ab/1", False),
        ("/gpu", False), ('"v/"', False), ("v", False), ("gpu", False), ("a_-/x", False),
        ("ab/x/y", False), ("ab//x", False), ("é/gpu", False), ('" v/gpu"', False), ('""', False),
    )
)  # fmt: skip

_SPELLINGS = (
    Case("json", True, in_json('"kind": "v/gpu"'), "site.json"),
    Case("json with an escape", True, in_json(r'"kind": "\u0076/gpu"'), "site.json"),
    Case("json with tabs", True, in_json('\n\t"kind":\t"v/gpu"'), "site.json"),
    Case("json in capitals", True, in_json('"KIND": "v/gpu"'), "site.json"),
    Case("yaml called json", True, _V, "site.json"),
    Case("quoted", True, with_line('"kind": "v/gpu"')),
    Case("quoted once", True, with_line("'kind': 'v/gpu' # ours")),
    Case("quoted over lines", True, with_line('kind: "v/\\\n  gpu"')),
    Case("flow", True, '{kind: v/gpu, cdiVersion: "0.5.0", ' + _DEVICES.strip() + "}"),
    Case("capital", True, with_line("Kind: v/gpu")),
    Case("kelvin sign", True, with_line("\u212aind: v/gpu")),
    Case("explicit key", True, with_line("? kind\n: v/gpu")),
    Case("folded", True, with_line("kind: >-\n  v/gpu")),
    Case("literal", False, with_line("kind: |\n  ab/x")),
    Case("next line", True, with_line("kind:\n  v/gpu")),
    Case("tab", True, with_line("kind:\tv/gpu")),
    Case("tag", True, with_line("kind: !!str v/gpu")),
    Case("binary", True, with_line("kind: !!binary di9ncHU=")),
    Case("anchor", True, with_line("kind: &a v/gpu")),
    Case("alias", True, _V.replace("kind: v", "annotations: {a.b/c: &a v/gpu}\nkind: *a\n#")
         .replace("0.5", "0.6")),
    Case("merge", True, with_line("<<: {kind: v/gpu}")),
    Case("merge overridden", False, with_line("<<: {kind: v/gpu}\nkind: ab/cd")),
    Case("indented", True, "".join(f"  {line}\n" for line in _V.splitlines())),
    Case("byte order mark", True, "\ufeff" + _V),
    Case("carriage returns", True, _V.replace("\n", "\r\n")),
    Case("utf-16", True, _V.encode("utf-16")),
    Case("directive", True, "%YAML 1.1\n---\n" + _V),
    Case("first document", True, _V + "---\n" + spec("ab/cd")),
    Case("second document", False, spec("ab/cd") + "---\n" + _V),
    Case("nested", False, with_line("kind: ab/cd\nannotations:\n  kind: v/gpu")),
)  # fmt: skip

_FILES = (
    Case("dot file", True, _V, ".site.yaml"),
    Case("ending alone", True, _V, ".yaml"),
    Case("yml", False, _V, "site.yml"),
    Case("capital ending", False, _V, "site.YAML"),
    Case("backup", False, _V, "site.yaml.bak"),
    Case("sub-directory", False, _V, "more/site.yaml"),
    Case("no permissions", True, _V, mode=0),
    Case("link to a file", True, _V, link="file"),
    Case("directory that is a link", False, _V, link="directory"),
    Case("large", True, f"# {'x' * (2 << 20)}\n{_V}"),
)

_OTHER_FAULTS = (
    Case("no devices", True, f"{_VERSION}kind: v/gpu\n"),
    Case("bad device", True, f"{_VERSION}kind: v/gpu\ndevices: [{{name: '%%'}}]\n"),
    Case("broken yaml", False, _V + "x: [\n"),
    Case("not utf-8", False, _V.encode() + b"# \xe9\n"),
    Case("list", False, "- kind: v/gpu\n"),
    Case("unknown field", False, _V + "foo: 1\n", lenient=True),
    Case("unknown version", False, _V.replace("0.5.0", "9.9.9"), lenient=True),
    Case("no version", False, spec("v/gpu", ""), lenient=True),
    Case("kind twice", False, with_line("kind: ab/cd\nkind: v/gpu")),
)

_ITEM = spec("ab/cd").replace("[A=1]}", "[A=1], mounts: %s}")

_EMPTY_ITEMS = (
    Case("empty item", True, _ITEM % "[~]"),
    Case("empty item below", True, spec("ab/cd") + "containerEdits:\n  hooks:\n  -\n"),
    Case("empty item at the end", True, spec("ab/cd") + "containerEdits:\n  hooks:\n  -"),
    Case("empty item with a comment", True,
         spec("ab/cd") + "containerEdits:\n  deviceNodes:\n  - # none\n"),
    Case("empty item in json", True, in_json('"kind": "ab/cd"').replace(
        '["A=1"]', '["A=1"], "deviceNodes": [null]'), "site.json"),
    Case("empty item by a tag", True, _ITEM % '[!!null ""]'),
    Case("empty item by an alias", True,
         _ITEM.replace("cd\n", "cd\nannotations: &a\n", 1) % "[*a]"),
    Case("empty list", False, _ITEM % "[]"),
    Case("no list", False, _ITEM % "~"),
    Case("empty variable", False, spec("ab/cd").replace("[A=1]", "[~]")),
    Case("empty item and unknown field", False, _ITEM % "[~]" + "foo: 1\n"),
)  # fmt: skip

CASES = (*_KINDS, *_SPELLINGS, *_FILES, *_OTHER_FAULTS, *_EMPTY_ITEMS)
