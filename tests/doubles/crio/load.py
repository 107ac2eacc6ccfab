"""Read CRI-O's files and merge them as the daemon does.

Every file counts, whatever its name: first the one of `-c`, then those of `-d` as Go's
filepath.Walk finds them: each directory by the names in it, a sub-directory where its own name
comes. A key in a later file takes the place of the same key in an earlier one. The table of
handlers keeps those that only an earlier file has, but a handler that a later file names again is
that file's alone: the decoder starts it from nothing. A version that merges a handler's keys would
look the same wherever the path is the one in PATH, so it can be had, too: `by_key`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

from tests.doubles.crio.generation import DURATIONS, Generation, Table
from tests.doubles.runtime import toml

_WORDS = {str: "string", bool: "boolean", int: "integer", list: "slice", dict: "map"}


class RefusedError(Exception):
    """What the daemon says before it exits with 1, or logs where it reloads."""


def load(
    generation: Generation, config: str | None, directory: str | None, *, by_key: bool = False
) -> Table:
    """Give the merged configuration, without the outermost table; raises RefusedError."""
    document = generation.defaults()
    main = "/etc/crio/crio.conf" if config is None else config
    # Only the usual file may be missing; an empty name is none, and none is read.
    if main and (config is not None or os.path.exists(main)):
        try:
            _add(generation, document, main, by_key)
        except RefusedError as error:
            raise RefusedError(f"update config from file: {error}") from error
    where = "/etc/crio/crio.conf.d" if directory is None else directory
    if os.path.exists(where):
        for name in walk(where):
            try:
                _add(generation, document, name, by_key)
            except RefusedError as error:
                raise RefusedError(f"update config from path: walk path: {error}") from error
    return document


def walk(path: str) -> Iterator[str]:
    """Give the files below a path in order; a link is a file, wherever it leads."""
    if os.path.islink(path) or not os.path.isdir(path):
        yield path
        return
    for name in sorted(os.listdir(path), key=os.fsencode):
        yield from walk(os.path.join(path, name))


def _add(generation: Generation, document: Table, name: str, by_key: bool) -> None:
    try:
        text = Path(name).read_bytes().decode()
        table = toml.loads(text.removeprefix("\ufeff"), toml_11=generation.reads_toml_11)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise RefusedError(f"open {name}: {reason}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise RefusedError(f"unable to decode configuration {name}: toml: {error}") from error
    whole: Table = {"crio": document}
    try:
        _decode(whole, table, "", generation.handler(), by_key)
    except TypeError as error:
        raise RefusedError(f"unable to decode configuration {name}: toml: {error}") from error


def _decode(into: Table, given: Table, path: str, handler: Table, by_key: bool) -> None:
    """Put what a file gives over what is there; unknown keys do nothing. Raises TypeError.

    Like the decoder it takes a setting's name in any case where the exact one is not known.
    """
    for key, value in given.items():
        folded = [name for name in into if name.casefold() == key.casefold()]
        name = key if key in into else (folded or [""])[0]
        if not name:
            continue
        place = f"{path}.{name}".lstrip(".")
        if (name == "runtimes" or _is_free(name)) and not isinstance(value, dict):
            continue  # the decoder lets pass whatever is no map where it expects one
        _check(value, into[name], name, place)
        if place == "crio.runtime.runtimes":
            for label, table in value.items():
                _check(table, {}, label, f"{place}.{label}")
                old = into[name].get(label) if by_key else None
                into[name][label] = copy.deepcopy(old or handler)
                _decode(into[name][label], table, f"{place}.{label}", handler, by_key)
        elif isinstance(value, dict) and not _is_free(name):
            _decode(into[name], value, place, handler, by_key)
        else:
            into[name] = copy.deepcopy(value)


def _is_free(name: str) -> bool:
    """Whether a table's keys are the user's."""
    return name in ("platform_runtime_paths", "default_annotations")


def _check(value: object, shape: object, name: str, place: str) -> None:
    items = value if isinstance(value, list) else []
    values = list(value.values()) if isinstance(value, dict) and _is_free(name) else []
    good = type(value) is type(shape) or (name in DURATIONS and type(value) is int)
    if not good or not all(isinstance(item, str) for item in (*items, *values)):
        raise TypeError(
            f'(last key "{place}"): incompatible types: TOML value has type '
            f"{type(value).__name__}; destination has type {_WORDS[type(shape)]}"
        )
