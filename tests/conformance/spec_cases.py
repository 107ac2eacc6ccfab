"""CDI specs with one peculiarity each: one file, and a device of it that is asked for.

Data: whether a container gets the device is what the program says of it (`test_cdi.py` asks real
runtimes the same), and `says` is a part of what `cdi validate` says; empty where it says nothing.
`says` holds for any runtime, `REFUSED` says what fits together with which version.
"""

from __future__ import annotations

from dataclasses import dataclass

_WORD = str.maketrans(" .", "--")
_ENV = "{env: [A=1]}"


@dataclass(frozen=True)
class SpecCase:
    """A file by its content, in which KIND stands for a kind of its own."""

    name: str
    content: str
    says: str = ""
    device: str = "a"
    kind: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        """The file."""
        return self.content.replace("KIND", self._kind)

    @property
    def qualified(self) -> str:
        """The device's name as a container asks for it."""
        return f"{self._kind}={self.device}"

    @property
    def _kind(self) -> str:
        return self.kind or f"vendor.example/case-{self.name.translate(_WORD)}"


def spec(edits: str = _ENV, version: str = '"0.5.0"', name: str = "a", more: str = "") -> str:
    """A spec with one device, and more lines."""
    return (
        f"cdiVersion: {version}\nkind: KIND\n"
        f"devices: [{{name: {name}, containerEdits: {edits}}}]\n{more}"
    )


def node(fields: str) -> str:
    """A spec whose device has one device node."""
    return spec(f"{{deviceNodes: [{{{fields}}}]}}")


def mount(fields: str, version: str = '"0.5.0"') -> str:
    """A spec whose device has one mount."""
    return spec(f"{{mounts: [{{{fields}}}]}}", version)


def hook(fields: str) -> str:
    """A spec whose device has one hook."""
    return spec(f"{{hooks: [{{{fields}}}]}}")


def rdt(fields: str, version: str = '"0.7.0"') -> str:
    """A spec whose devices get a class of Intel RDT."""
    return spec(version=version, more=f"containerEdits: {{intelRdt: {{{fields}}}}}\n")


_TWO = "devices: [{name: a, containerEdits: {env: [B=1]}}, "

_NAMES = (
    SpecCase("plain", spec()),
    SpecCase("name is a number", spec(name="0"), device="0"),
    SpecCase("name is a boolean", spec(name="y"), "put it in quotes", device="true"),
    SpecCase("name is octal", spec(name="010"), "put it in quotes", device="8"),
    SpecCase("name is large", spec(name="1234567.0"), "put it in quotes", device="1.234567e+06"),
    SpecCase("name is a number with an exponent", spec(name="1e3"), "quotes", device="1000"),
    SpecCase("name is too large for a number", spec(name="1e999"), device="1e999"),
    SpecCase("name of a MIG device", spec(name="1:0"), device="1:0"),
    SpecCase("name is a date", spec(name="2024-01-02"), device="2024-01-02"),
    SpecCase("name with all there is", spec(name="a_b-c.d:e"), device="a_b-c.d:e"),
    SpecCase("name ends badly", spec(name="a-"), "no device name", device="a-"),
    SpecCase("name starts badly", spec(name="-a"), "no device name", device="-a"),
    SpecCase("name is not ASCII", spec(name="é"), "no device name", device="é"),
    SpecCase("name with a control character", spec(name=r'"a\tb"'), "no device name", "a\tb"),
    SpecCase("name is missing", spec().replace("name: a, ", ""), "no device name", device=""),
    SpecCase("name twice", spec().replace("devices: [", _TWO), "twice"),
    SpecCase("name by a tag", spec(name="!!binary YQ==")),
    SpecCase("name of a type", spec(name='!!int "5"'), device="5"),
    SpecCase("dot in the class", spec(), "0.6.0", kind="vendor.example/dot.class"),
    SpecCase("dot in the class of 0.6", spec(version="0.6.0"), kind="vendor.example/dot.six"),
    SpecCase("capitals in the class", spec(), kind="vendor.example/Q_x"),
    SpecCase("no class", spec(), "VENDOR/CLASS", kind="vendor.example"),
    SpecCase("class with a slash", spec(), "no name", kind="vendor.example/ab/cd"),
    SpecCase("vendor is a number", spec(), "no name", kind="1vendor/gpu"),
)

_VERSIONS = (
    SpecCase("version 0.1", spec(version="0.1.0"), "lower than 0.3.0"),
    SpecCase("version 0.3", spec(version="0.3.0")),
    SpecCase("version 0.3.1", spec(version="0.3.1"), "no version"),
    SpecCase("version with a letter", spec(version="v0.5.0")),
    SpecCase("version 0.8", spec(version="0.8.0")),
    SpecCase("version is a number", spec(version="0.5"), "no version"),
    SpecCase("version of tomorrow", spec(version="9.9.9"), "no version"),
    SpecCase("no version", spec().partition("\n")[2], "no version"),
    SpecCase("number needs 0.5", spec(version="0.3.0", name="0"), "0.5.0", device="0"),
    SpecCase("host path needs 0.5", node("path: /dev/a, hostPath: /dev/null").replace("5.0", "4.0"),
             "0.5.0"),
    SpecCase("mount type needs 0.4",
             mount("hostPath: /etc, containerPath: /x, type: bind", "0.3.0"), "0.4.0"),
    SpecCase("groups need 0.7", spec("{additionalGids: [44]}"), "0.7.0"),
    SpecCase("groups of 0.7", spec("{additionalGids: [44]}", "0.7.0")),
    SpecCase("annotations need 0.6", spec(more="annotations: {a.b/c: d}\n"), "0.6.0"),
    SpecCase("annotations are none", spec(more="annotations: {}\n")),
)  # fmt: skip

REFUSED = (
    SpecCase("version 1.0", spec(version="1.0.0"), "reads up to 0.8.0"),
    SpecCase("version 1.1", spec(version="1.1.0"), "reads up to"),
    SpecCase("network device", spec(
        "{netDevices: [{hostInterfaceName: a, name: b}]}", "1.1.0"), "reads up to"),
    SpecCase("no network device", spec("{env: [A=1], netDevices: []}"), "does not know the field"),
    SpecCase("schemata", rdt("schemata: []", "1.1.0"), "does not know the field"),
)  # fmt: skip

_SHAPES = (
    SpecCase("unknown field", spec(more="foo: 1\n"), "no field 'foo'"),
    SpecCase("unknown field of a node", node("path: /dev/null, foo: 1"), "no field 'foo'"),
    SpecCase("fields in capitals", spec().replace("kind", "KinD").replace("name", "NAME"),
             "is called name"),
    SpecCase("kind in two spellings", spec(more="Kind: zz/yy\n"), "is called kind"),
    SpecCase("devices are a mapping", spec().replace("[{name", "{x: {name").replace("}]", "}}"),
             "not a list"),
    SpecCase("no devices", spec().partition("devices")[0], "no devices"),
    SpecCase("empty device", spec().replace("devices: [", "devices: [~, "), "no device name"),
    SpecCase("device brings nothing", spec("{}"), "brings nothing"),
    SpecCase("edits are missing", spec("~"), "brings nothing"),
    SpecCase("list is missing", spec("{env: [A=1], mounts: ~}")),
    SpecCase("group is negative", spec("{additionalGids: [-1]}", "0.7.0"), "not an integer"),
    SpecCase("mode is text", node('path: /dev/null, fileMode: "0666"'), "not an integer"),
    SpecCase("mode is octal", node("path: /dev/null, fileMode: 0666")),
    SpecCase("major is a fraction", node("path: /dev/null, major: 1.5"), "not a 64-bit integer"),
    SpecCase("major is nearly one", node("path: /dev/null, major: 1.0, minor: 3")),
    SpecCase("annotation is a number", spec(version="0.6.0", more="annotations: {a.b/c: 1}\n")),
    SpecCase("annotation is nothing", spec(version="0.6.0", more="annotations: {a.b/c: ~}\n")),
    SpecCase("annotation is a list", spec(version="0.6.0", more="annotations: {a.b/c: []}\n"),
             "not text"),
    SpecCase("annotation has a bad name", spec(version="0.6.0", more="annotations: {'a b': c}\n"),
             "no name of an annotation"),
    SpecCase("boolean is text", rdt("enableCMT: 'true'"), "not true or false"),
)  # fmt: skip

_YAML = (
    SpecCase("merge", "<<: {cdiVersion: 0.5.0}\n" + spec().partition("\n")[2]),
    SpecCase("merge and set", spec(more="<<: {kind: aa/bb}\n"), "twice"),
    SpecCase("key twice", spec(more="kind: aa/bb\n"), "twice"),
    SpecCase("two documents", spec(more="---\n["), "more than one document"),
    SpecCase("byte order mark", "\ufeff" + spec()),
    SpecCase("nested", spec(more=f"annotations: {'[' * 90}{']' * 90}\n"), "not a mapping"),
    SpecCase("escape of JSON", spec(r'{env: ["A=\/"]}'), "escape"),
    SpecCase("another YAML", f"%YAML 1.2\n---\n{spec()}", "not 1.1"),
    SpecCase("broken", spec(more="foo: [\n"), "neither YAML nor JSON"),
    SpecCase("alias of nothing", spec(more="foo: *bar\n"), "stands for nothing"),
    SpecCase("alias of itself", spec(more="foo: &bar [*bar]\n"), "contains itself"),
    SpecCase("empty", "", "the file is empty"),
    SpecCase("a list", "[]", "it is a list"),
    SpecCase("a word", "hello", "it is text"),
)  # fmt: skip

_EDITS = (
    SpecCase("variable without value", spec("{env: [A]}"), "NAME=value"),
    SpecCase("variable without name", spec("{env: [=1]}"), "NAME=value"),
    SpecCase("variable is a number", spec("{env: [5]}"), "NAME=value"),
    SpecCase("variable is nothing", spec("{env: [~]}"), "NAME=value"),
    SpecCase("variable with a line break", spec(r'{env: ["A=1\nB=2"]}'), "in one line"),
    SpecCase("node", node("path: /dev/null")),
    SpecCase("node without path", node("hostPath: /dev/null"), "there is no path"),
    SpecCase("node is relative", node("path: dev/x, hostPath: /dev/null"), "absolute path"),
    SpecCase("node is missing", node("path: /dev/none"), "is missing on the host"),
    SpecCase("node is relative and missing", node("path: dev/none"), "is missing on the host"),
    SpecCase("node with all of it", node("path: /dev/none, type: c, major: 1, minor: 3")),
    SpecCase("node with half of it", node("path: /dev/none, major: 1, minor: 3"), "is missing"),
    SpecCase("node with a slash", node("path: /dev/a, hostPath: /dev/null/"), "ends with a slash"),
    SpecCase("node is a link", node("path: /dev/a, hostPath: /dev/stdin"), "but a link"),
    SpecCase("node is a file", node("path: /dev/a, hostPath: /etc/passwd"), "is no device node"),
    SpecCase("node of another type", node("path: /dev/null, type: b"), "is of type c"),
    SpecCase("node of type u", node("path: /dev/null, type: u"), "is of type c"),
    SpecCase("node of no type", node("path: /dev/null, type: x"), "there is no type"),
    SpecCase("node for all", node("path: /dev/null, permissions: rwm")),
    SpecCase("node for none", node("path: /dev/null, permissions: none"), "are no permissions"),
    SpecCase("node with any number", node("path: /dev/a, type: c, major: -1"), "any number"),
    SpecCase("mount", mount("hostPath: /etc/passwd, containerPath: /x, options: [ro, bind]")),
    SpecCase("mount without bind", mount("hostPath: /etc/passwd, containerPath: /x"), "rbind"),
    SpecCase("mount of type bind", mount("hostPath: /etc, containerPath: /x, type: bind"), "rbind"),
    SpecCase("mount is relative", mount("hostPath: etc, containerPath: /x, options: [bind]"),
             "is not found"),
    SpecCase("mount of a file with a slash",
             mount("hostPath: /etc/passwd/, containerPath: /x, options: [bind]"),
             "ends with a slash"),
    SpecCase("mount of memory", mount("hostPath: tmpfs, containerPath: /x, type: tmpfs")),
    SpecCase("mount is missing", mount("hostPath: /none, containerPath: /x, options: [bind]"),
             "mount source '/none' is missing"),
    SpecCase("mount of nothing", mount("containerPath: /x, options: [bind]"), "there is no path"),
    SpecCase("mount to nothing", mount("hostPath: /etc, options: [bind]"), "there is no path"),
    SpecCase("hook", hook("hookName: createContainer, path: /bin/true")),
    SpecCase("hook is missing", hook("hookName: createContainer, path: /none"), "hook binary"),
    SpecCase("hook of the container", hook("hookName: poststop, path: /none"), "hook binary"),
    SpecCase("hook cannot be run", hook("hookName: prestart, path: /etc/passwd"), "cannot be run"),
    SpecCase("hook without name", hook("hookName: sometimes, path: /bin/true"), "does not exist"),
    SpecCase("hook without path", hook("hookName: poststop"), "there is no path"),
    SpecCase("hook is relative", hook("hookName: createContainer, path: true"), "absolute path"),
    SpecCase("hook in no time", hook("hookName: createContainer, path: /bin/true, timeout: -1"),
             "over before"),
    SpecCase("hook with a bad variable", hook("hookName: poststop, path: /bin/true, env: [A]"),
             "NAME=value"),
    SpecCase("class", rdt("closID: x")),
    SpecCase("class of the root", rdt("closID: /"), "no name of a class"),
    SpecCase("class above", rdt("closID: .."), "no name of a class"),
    SpecCase("class without name", rdt("")),
    SpecCase("one device suffers", spec().replace("]\n", ", {name: b, containerEdits: "
             "{deviceNodes: [{path: /dev/none}]}}]\n"), "is missing on the host"),
    SpecCase("all devices suffer", spec(more="containerEdits: {deviceNodes: "
             "[{path: /dev/none}]}\n"), "is missing on the host"),
)  # fmt: skip

CASES = (*_NAMES, *_VERSIONS, *_SHAPES, *_YAML, *_EDITS)
