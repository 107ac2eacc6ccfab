"""What a CRI-O is told besides its files: flags, and variables of its environment.

Observed on 1.30 and 1.37 with the packaged unit, and read in criocli.go: a flag wins over its
variable, and both win over every file. Of a flag that is given twice the last value counts; a list
takes the values of all. An empty value is a value.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from tests.doubles.crio.generation import Generation, Table
from tests.doubles.crio.load import RefusedError

_SETTINGS = {
    "config": "CONTAINER_CONFIG",
    "config_dir": "CONTAINER_CONFIG_DIR",
    "default_runtime": "CONTAINER_DEFAULT_RUNTIME",
    "hooks_dir": "CONTAINER_HOOKS_DIR",
    "cdi_spec_dirs": "CONTAINER_CDI_SPEC_DIRS",
    "runtimes": "CONTAINER_RUNTIMES",
}
_LISTS = ("hooks_dir", "cdi_spec_dirs", "runtimes")
_FIELDS = (
    "runtime_path", "runtime_root", "runtime_type", "privileged_without_host_devices",
    "runtime_config_path", "container_min_memory",
)  # fmt: skip


def add_to(parser: argparse.ArgumentParser) -> None:
    """Tell a parser of the flags."""
    parser.add_argument("-c", "--config", help="the configuration file")
    parser.add_argument("-d", "--config-dir", help="the directory of drop-ins")
    parser.add_argument("--default-runtime", help="the default, whatever files say")
    for name in _LISTS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action="append", help="values with commas between")


def resolve(options: argparse.Namespace, variables: Mapping[str, str]) -> None:
    """Complete the options by the environment."""
    for name, variable in _SETTINGS.items():
        if getattr(options, name) is None and variable in variables:
            value = variables[variable]
            setattr(options, name, [value] if name in _LISTS else value)


def merge(generation: Generation, document: Table, options: argparse.Namespace) -> None:
    """Put what flags and environment say over what the files say. Raises RefusedError."""
    runtime = document["runtime"]
    if options.default_runtime is not None:
        runtime["default_runtime"] = options.default_runtime
    for name in ("hooks_dir", "cdi_spec_dirs"):
        if getattr(options, name) is not None:
            runtime[name] = _split(getattr(options, name))
    for text in _split(options.runtimes or []):
        label, *fields = text.split(":")
        if not 2 <= len(fields) <= len(_FIELDS):
            raise RefusedError(f'invalid format for --runtimes: "{text}"')
        given: Table = dict(zip(_FIELDS, fields, strict=False))
        given.setdefault("runtime_type", "oci")
        given["privileged_without_host_devices"] = (
            given.get("privileged_without_host_devices") == "true"
        )
        runtime["runtimes"][label] = {**generation.handler(), **given}


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]
