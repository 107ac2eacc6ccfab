"""Fill the plugins' settings from the merged sections, as a daemon does when it loads them."""

from __future__ import annotations

import copy
from typing import Any

from tests.doubles.containerd.generation import Generation, Table
from tests.doubles.containerd.load import Loaded, RefusedError

# Tables whose keys are free: a handler's options, images by use, and what a registry is told.
_FREE = ("options", "pinned_images", "mirrors", "configs", "auths", "headers", "runtime_platforms")


def effective(generation: Generation, loaded: Loaded) -> Table:
    """Give the whole configuration, every plugin with all its settings, as `config dump` prints it.

    Raises RefusedError for a setting of a wrong type. Keys that the plugin does not know do
    nothing, nor does a section that no plugin has, or has under another version's name.
    """
    document = dict(loaded.document)
    given, short = document["plugins"], not generation.deep and document["version"] < 2
    plugins = dict(given) if generation.deep else {}  # 2.x prints what it does not know as it is
    for name, shape in generation.defaults()["plugins"].items():
        spelled = name.rsplit(".", 1)[-1] if short else name
        if spelled not in document["disabled_plugins"]:
            plugins[name] = _fill(shape, given.get(spelled, {}), generation.deep, spelled)
    document["plugins"] = plugins
    document["version"] = generation.config_version
    if not generation.deep:
        document["imports"] = list(loaded.files)
    return document


def _fill(shape: Table, given: object, deep: bool, name: str) -> Table:
    """Put the given keys over the built-in ones; `deep` keeps what a map has already."""
    if not isinstance(given, dict):
        raise _wrong(given, shape, name)
    filled = copy.deepcopy(shape)
    for key, value in given.items():
        if key == "runtimes" and key in shape:
            filled[key] = _fill_handlers(shape[key], value, deep)
        elif key in _FREE:
            if not isinstance(value, dict):
                raise _wrong(value, {}, key)
            filled[key] = {**(filled.get(key, {}) if deep else {}), **copy.deepcopy(value)}
        elif isinstance(shape.get(key), dict):
            filled[key] = _fill(shape[key], value, deep, key)
        elif key in shape:
            if not _fits(value, shape[key], deep):
                raise _wrong(value, shape[key], key)
            filled[key] = copy.deepcopy(value)
    return filled


def _fill_handlers(shape: Table, given: object, deep: bool) -> Table:
    """Fill the table of handlers: 1.x forgets the built-in one as soon as a file has the table."""
    if not isinstance(given, dict):
        raise _wrong(given, shape, "runtimes")
    empty = {key: type(value)() for key, value in shape["runc"].items()}
    if deep:
        del empty["options"]  # shown only where a file has it
    handlers = copy.deepcopy(shape) if deep else {}
    for name, handler in given.items():
        handlers[name] = _fill(handlers.get(name, empty), handler, deep, name)
    return handlers


def _fits(value: object, shape: Any, deep: bool) -> bool:
    """Whether a value can be decoded; only the library of 2.x takes an integer for a float."""
    if isinstance(value, list) and isinstance(shape, list):
        # All lists are of strings, but for the one of tables in the transfer service.
        kind = dict if shape and isinstance(shape[0], dict) else str
        return all(isinstance(item, kind) for item in value)
    return type(value) is type(shape) or (deep and type(shape) is float and type(value) is int)


def _wrong(value: object, shape: object, key: str) -> RefusedError:
    """Word it like both TOML libraries at once: 1.x says "Can't convert", 2.x "cannot decode"."""
    kinds = f"TOML {type(value).__name__} into {key} of type {type(shape).__name__}"
    return RefusedError(f"toml: cannot decode {kinds}")
