"""The effective configuration as the daemon shows it: Status, `GET /config`, `crio config`."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from tests.doubles.crio.generation import ALWAYS, UNSET, Generation, Table, captured_status
from tests.doubles.crio.validate import known_annotations
from tests.doubles.runtime import toml

# Names in Status that differ from the setting in more than underscores and capitals.
_RENAMED = {"cgroupmanagername": "cgroupmanager"}


def info(generation: Generation, document: Table) -> Mapping[str, str]:
    """Give all of `info` of Status."""
    if not generation.shows_image:
        return {}
    shown: Table = {"sandboxImage": document["image"]["pause_image"]}
    if generation.shows_config:
        shown = {"crio": _runtime(document["runtime"]), **shown}
    return {"config": json.dumps(shown, separators=(",", ":"))}


def _runtime(runtime: Table) -> Table:
    template = captured_status()["crio"]
    shown = _project(template, runtime)
    shown["Runtimes"] = {
        name: _handler(template["Runtimes"]["crun"], table)
        for name, table in runtime["runtimes"].items()
    }
    return shown


def _handler(template: Table, handler: Table) -> Table:
    shown = _project(template, handler)
    for name in list(shown):
        if not shown[name] and isinstance(shown[name], list | dict):
            shown[name] = None
    allowed = set(handler["allowed_annotations"])
    shown["DisallowedAnnotations"] = sorted(known_annotations() - allowed)
    return shown


def _project(template: Table, table: Table) -> Table:
    """Give the template's names the values of the same settings."""
    values = {key.replace("_", ""): value for key, value in table.items()}
    shown: Table = {}
    for name, sample in template.items():
        plain = name.lower()
        value = values.get(_RENAMED.get(plain, plain))
        shown[name] = None if value in ([], {}) and sample is None else value
    return shown


def printable(document: Table) -> Table:
    """Give what is printed: no list that nobody has set, no setting of a handler that is empty."""
    shown: Table = {}
    for name, table in document.items():
        if not isinstance(table, dict):
            shown[name] = table
            continue
        shown[name] = {
            key: value
            for key, value in table.items()
            if key != "runtimes" and (value not in ([], "") or key not in UNSET.get(name, ()))
        }
        if "runtimes" in table:
            shown[name]["runtimes"] = {
                label: {key: value for key, value in handler.items() if value or key in ALWAYS}
                for label, handler in sorted(table["runtimes"].items())
            }
    if not shown.get("storage_option", True):
        del shown["storage_option"]
    return {"crio": shown}


def effective_text(generation: Generation, document: Table) -> str:
    """What `GET /config` answers."""
    shown = printable(document)
    for handler in (
        shown["crio"]["runtime"]["runtimes"].values() if generation.prints_disallowed else ()
    ):
        names = sorted(known_annotations() - set(handler.get("allowed_annotations", ())))
        handler["DisallowedAnnotations"] = random.sample(names, len(names))
    return toml.dumps(shown)


# What the template has after its table of handlers: printed, it lands in the last handler.
_AFTER_HANDLERS = ("hostnetwork_disable_selinux", "disable_hostport_mapping", "timezone")


def template_text(generation: Generation, document: Table, *, everything: bool = False) -> str:
    """What `crio config` prints: what is built in as comments, unless `everything`, as with
    `--default` (captured on 1.30 and 1.37).

    Handlers are one setting: all of them are comments where they are those that are built in, and
    none otherwise (template.go of 1.24 to 1.36).
    """
    built_in: Table = {"runtime": {}}
    if not everything:
        built_in = printable(generation.defaults())["crio"]
    shown = printable(document)["crio"]
    handlers = shown["runtime"].pop("runtimes", {})
    late = {k: shown["runtime"].pop(k) for k in _AFTER_HANDLERS if k in shown["runtime"]}
    lines = ["# The CRI-O configuration file.", ""]
    for name, table in shown.items():
        known = built_in.get(name)
        if not isinstance(table, dict):
            continue
        lines += [f"[crio.{name}]", *_settings(table, known if isinstance(known, dict) else {})]
        if name != "runtime":
            continue
        same = handlers == built_in["runtime"].get("runtimes", {})
        for label, handler in handlers.items():
            whole = toml.dumps({"crio": {"runtime": {"runtimes": {label: handler}}}}).splitlines()
            kept = [line for line in map(str.strip, whole) if line and not _is_above(line)]
            lines += [f"# {line}" if same else line for line in kept]
        lines += _settings(late, built_in["runtime"])
    top = {key: value for key, value in shown.items() if not isinstance(value, dict)}
    return "\n".join(["[crio]", *_settings(top, built_in), *lines]) + "\n"


def _settings(table: Table, known: Table) -> list[str]:
    """Lines of settings, as comments where they are built in."""
    lines: list[str] = []
    for key, value in table.items():
        text = toml.dumps({key: value}).strip()
        same = key in known and known[key] == value
        lines += [*(f"# {line}" if same else line for line in text.splitlines()), ""]
    return lines


def _is_above(line: str) -> bool:
    return line in ("[crio]", "[crio.runtime]", "[crio.runtime.runtimes]")
