"""The scripted nvidia-container-runtime: what it makes of a command line, and of a container.

Anything but `create` goes to the low-level runtime at once. `create` changes the bundle's
config.json first, as the mode wants it. Each call is one JSON line in the file that the variable
SCRIPTED_TOOLKIT_LOG names.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from tests.doubles.toolkit import cdi
from tests.doubles.toolkit.config import Config, load

LOG = "SCRIPTED_TOOLKIT_LOG"
# In the environment of what was executed by a scripted runtime: a second one would go on for ever.
INSIDE = "SCRIPTED_TOOLKIT_INSIDE"

_FORCED = {".cdi": "cdi", ".legacy": "legacy"}
_BY_MOUNT = "/var/run/nvidia-container-devices/"
_HOOK_NAMES = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")
_JIT_KIND = "runtime.nvidia.com/gpu"
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Spec = dict[str, Any]


class Failed(Exception):
    """No container can be made; the message is what the real one says."""


class Change(NamedTuple):
    """What `create` does: in which mode, with which devices."""

    mode: str
    devices: tuple[str, ...]


def main(name: str, version: str, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become the low-level runtime, or end where that cannot be."""
    call: dict[str, Any] = {"program": name, "version": version, "argv": list(argv)}
    try:
        # Real ones take this for granted; they would execute each other until somebody notices.
        if INSIDE in environment:
            raise Failed(f"the low-level runtime of {name} is an nvidia-container-runtime itself")
        config = load(environment)
        forced = next((m for end, m in _FORCED.items() if name.endswith(end)), "")
        config = config._replace(mode=forced or config.mode)
        program = low_level(config.runtimes, environment.get("PATH", ""))
        call |= {"config": config.path, "low_level": program}
        if is_create(argv):
            change = modify(bundle(argv), config)
            call |= {"mode": change.mode, "devices": list(change.devices)}
    except (Failed, cdi.Unresolvable, OSError, ValueError, LookupError, TypeError) as error:
        _fail(call, argv, error, environment)
        sys.exit(1)
    note(call, environment)
    if "--version" in argv:
        print(f"NVIDIA Container Runtime version {version}\n", flush=True)
    # The same process, as a shim wants it.
    os.execve(program, [program, *argv], {**environment, INSIDE: "1"})  # noqa: S606


def is_create(argv: Sequence[str]) -> bool:
    """Whether that is the subcommand; a bundle may have the name too."""
    pairs = zip(["", *argv], argv, strict=False)
    return any(word == "create" and before not in ("--bundle", "-b") for before, word in pairs)


def bundle(argv: Sequence[str]) -> str:
    """The directory with config.json."""
    for word, value in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, rest = word.partition("=")
        if flag in ("--bundle", "-bundle", "-b"):
            return rest if equals else value
    return os.getcwd()


def low_level(candidates: Sequence[str], path: str) -> str:
    """The first of them that is there: by itself where it is a path, else in PATH."""
    for candidate in candidates:
        found = _which(candidate, f"{path}:{_USUAL_PATH}")
        if found:
            return found
    raise Failed(f"no runtime binary found from candidate list: [{' '.join(candidates)}]")


def _which(name: str, path: str) -> str:
    """As `shutil.which`, whose module is slow to import; empty where there is none."""
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in path.split(":") if folder]
    return next((p for p in places if os.path.isfile(p) and os.access(p, os.X_OK)), "")


def modify(directory: str, config: Config) -> Change:
    """Change the bundle as the container asks for it, and say how."""
    path = os.path.join(directory, "config.json")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    spec: Spec = json.loads(text)
    change = wanted(spec, config)
    try:
        apply(spec, change, config)
    except (cdi.Unresolvable, ValueError, OSError) as error:
        reason = f"failed to inject CDI devices: {error}"
        words = "could not apply required modification to OCI specification"
        raise Failed(f"{words}: error modifying OCI spec: {reason}") from error
    if spec != json.loads(text):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(spec, file)
    return change


def wanted(spec: Spec, config: Config) -> Change:
    """The mode, where it depends on the container, and the devices."""
    names = requested(spec, config)
    mode = config.mode
    if mode == "auto":
        mode = "cdi" if names and all(map(cdi.is_qualified, names)) else "jit-cdi"
    if mode != "cdi":  # no other one looks at annotations
        names = requested(spec, config._replace(prefixes=()))
    kind = {"cdi": config.default_kind, "jit-cdi": _JIT_KIND}.get(mode)
    if kind:
        names = [name if cdi.is_qualified(name) else f"{kind}={name}" for name in names]
    return Change(mode, tuple(dict.fromkeys(names)))


def requested(spec: Spec, config: Config) -> list[str]:
    """Names of devices as the container gives them: by annotation, else by mount, else by
    variable."""
    annotations = sorted((spec.get("annotations") or {}).items())
    named = [v for k, v in annotations if config.prefixes and k.startswith(config.prefixes)]
    devices = [name for value in named for name in value.split(",") if name]
    if not devices and config.accepts_mounts:
        devices = list(_by_mount(spec.get("mounts") or ()))
    if devices:
        return devices
    process = spec.get("process") or {}
    pairs = (word.partition("=") for word in process.get("env") or ())
    value = {name: value for name, _, value in pairs}.get("NVIDIA_VISIBLE_DEVICES", "")
    if value in ("", "void") or not (config.accepts_variable or _is_privileged(process)):
        return []
    return [name for name in value.split(",") if name]


def apply(spec: Spec, change: Change, config: Config) -> None:
    """Change `spec` for these devices, in that mode."""
    if change.mode in ("cdi", "jit-cdi"):
        _remove_hook(spec)
    if not change.devices:
        return
    if change.mode == "cdi":
        cdi.inject(spec, change.devices, config.spec_dirs)
    elif change.mode == "jit-cdi":
        # The real one asks the driver what to add; where there is none, this much is left.
        cdi.edit(spec, {"env": ["NVIDIA_VISIBLE_DEVICES=void"]})
    elif change.mode == "legacy":
        args = ["nvidia-container-runtime-hook", "prestart"]
        path = _which(config.hook, os.environ.get("PATH", os.defpath)) or config.hook
        cdi.edit(spec, {"hooks": [{"hookName": "prestart", "path": path, "args": args}]})


def note(call: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Write one line about a call, if somebody wants to know."""
    if environment.get(LOG):
        with open(environment[LOG], "a", encoding="utf-8") as log:
            log.write(json.dumps(call) + "\n")


def _by_mount(mounts: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for mount in mounts:
        name = mount["destination"].removeprefix(_BY_MOUNT)
        if mount.get("source") != "/dev/null" or name == mount["destination"]:
            continue
        head, *rest = name.split("/")
        yield f"{rest[0]}/{rest[1]}={rest[2]}" if head == "cdi" and len(rest) == 3 else name


def _is_privileged(process: Mapping[str, Any]) -> bool:
    return "CAP_SYS_ADMIN" in ((process.get("capabilities") or {}).get("bounding") or ())


def _remove_hook(spec: Spec) -> None:
    hooks = spec.get("hooks") or {}
    if hooks.get("prestart"):
        kept = [h for h in hooks["prestart"] if os.path.basename(h["path"]) not in _HOOK_NAMES]
        hooks["prestart"] = kept


def _fail(
    call: dict[str, Any], argv: Sequence[str], error: Exception, environment: Mapping[str, str]
) -> None:
    """Say why, where people look and where a shim does."""
    note(call | {"error": str(error)}, environment)
    print(f"error: {error}", file=sys.stderr)
    for word, value in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--log" and value:
            with open(value, "a", encoding="utf-8") as log:
                log.write(json.dumps({"level": "error", "msg": str(error)}) + "\n")
