"""What a runtime's configuration amounts to, and which part of it is the agent's to change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.conformance.shapes import OURS

# containerd matches keys of TOML without regard to case when a pod runs, so every spelling counts.
_BINARY = ("binaryname", "runtime")
# Of the program that a handler calls: NVIDIA's is called by runc's shim, whatever the base's is.
_PROGRAM = ("runtimeType", "runtimeEngine", "runtimeRoot")
_ANNOTATIONS = "containerannotations"
_OUR_KEYS = ("default_runtime_name", "enable_cdi")
# The last is deprecated, and goes where it is NVIDIA's.
_OUR_TABLES = (*OURS, "default_runtime")
_INLINE = re.compile(r"\bcontainerd = \{")
_CRI_SECTIONS = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")


def pruned(value: Any) -> Any:
    """The value without everything that equals its zero value: Go does not tell them apart."""
    if isinstance(value, Mapping):
        kept = {key: pruned(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", 0, [], {})}
    if isinstance(value, list):
        return [pruned(item) for item in value]
    return value


def binaries(runtime: Mapping[str, Any]) -> set[str]:
    """The binaries that a handler's options name, under every spelling of the key."""
    options = runtime.get("options") or {}
    return {value for key, value in options.items() if key.casefold() in _BINARY}


def inherited(runtime: Mapping[str, Any], strange: Sequence[str] = ()) -> Any:
    """What a handler has besides its program, the annotations that it passes on, and `strange`
    options.

    `runtime` is a handler as Status shows it.
    """
    kept = {
        key: value
        for key, value in runtime.items()
        if key.casefold() != _ANNOTATIONS and key not in _PROGRAM
    }
    options = runtime.get("options") or {}
    kept["options"] = {
        k: v for k, v in options.items() if k.casefold() not in _BINARY and k not in strange
    }
    return pruned(kept)


def passed_on(runtime: Mapping[str, Any]) -> set[str]:
    """The container annotations that a handler passes on, as Status shows it."""
    found = (value for key, value in runtime.items() if key.casefold() == _ANNOTATIONS)
    return {pattern for patterns in found for pattern in patterns or ()}


def others_in_status(config: Mapping[str, Any], ours: Sequence[str] = OURS) -> Any:
    """The configuration that Status shows, without what is the agent's to change."""
    containerd = dict(config["containerd"])
    containerd.pop("defaultRuntimeName", None)
    containerd.pop("defaultRuntime", None)  # deprecated: 1.x shows it as the handler "default" too
    containerd["runtimes"] = _foreign(containerd.get("runtimes") or {}, ours)
    kept = {key: value for key, value in config.items() if key != "enableCDI"}
    return pruned({**kept, "containerd": containerd})


def others_in_dump(dump: Mapping[str, Any], ours: Sequence[str] = OURS) -> Any:
    """The configuration that `config dump` prints, without what is the agent's to change."""
    plugins = dict(dump["plugins"])
    for name in _CRI_SECTIONS:
        section = dict(plugins.get(name, {}))
        containerd = dict(section.get("containerd", {}))
        containerd.pop("default_runtime_name", None)
        legacy = containerd.pop("default_runtime", None) or {}
        if legacy.get("runtime_type"):
            containerd.setdefault("runtimes", {}).setdefault("default", legacy)
        containerd["runtimes"] = _foreign(containerd.get("runtimes", {}), ours)
        section.pop("enable_cdi", None)
        plugins[name] = {**section, "containerd": containerd}
    kept = {key: value for key, value in dump.items() if key not in ("imports", "version")}
    return pruned({**kept, "plugins": plugins})


def _foreign(runtimes: Mapping[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    return {name: runtime for name, runtime in runtimes.items() if name not in ours}


def comments(text: str) -> list[str]:
    """Every comment of a file, in order. The shapes have no '#' in a string."""
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


def foreign_lines(text: str) -> Iterator[str]:
    """The lines of a file that the agent has no business with, in order.

    Keys of handlers count by their last part where they are dotted. A section that is one inline
    table has one line for everything; what it amounts to is compared, not how it is written.
    """
    ours = in_imports = False
    for line in text.splitlines():
        code = line.partition("#")[0].strip()
        key = code.partition("=")[0].strip()
        if code.startswith("["):
            ours = any(f".{name}." in code.strip("[]") + "." for name in _OUR_TABLES)
        in_imports = in_imports or key == "imports"
        last = key.rpartition(".")[2]
        program = last.casefold() in _BINARY and "nvidia-container-runtime" in code
        mine = last in _OUR_KEYS or program or _INLINE.search(code)
        if code and not ours and not in_imports and not mine:
            yield line
        in_imports = in_imports and not code.endswith("]")
