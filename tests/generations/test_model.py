"""The rules of the test double, held against real containerds on every shape of the matrix.

Only 1.6, 1.7 and 2.1 can be had; 2.1 stands for 2.0 and 2.2, whose rules were observed to be the
same. What 2.3 and 2.4 make of their files rests on tables of observations alone.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cri.versions import parse_version
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.runtimes.containerd import faults, generations, merge
from agent.runtimes.containerd import load as config_files
from tests.conformance.effective import pruned
from tests.doubles.containerd.generation import CRI_IMAGES, CRI_RUNTIME, GRPC_CRI, generation_of
from tests.doubles.containerd.load import Node, RefusedError, load
from tests.doubles.containerd.populate import effective
from tests.generations.model_node import Texts, write_files
from tests.generations.shapes import SHAPES
from tests.sampling import by_run, sample
from tests.tools.runtimes import Runtime
from tests.tools.runtimes import load as inventory

# By name, because a shape has one row for each group of versions.
WITH_TEXTS = {shape.name: shape for shape in SHAPES if isinstance(shape, Texts) and shape.texts}


def printed(runtime: Runtime, config: Path) -> Mapping[str, Any] | None:
    """The effective configuration as the real one prints it; None where it refuses the files."""
    found = subprocess.run(
        [runtime.executable, "-c", config, "config", "dump"],
        env={"PATH": os.defpath},
        capture_output=True,
        timeout=20,
        check=False,
    )
    return tomllib.loads(found.stdout.decode()) if found.returncode == 0 else None


def computed(version: str, config: Path) -> Mapping[str, Any] | None:
    """The same by the rules."""
    generation = generation_of(version)
    try:
        loaded = load(generation, str(config), Node())
        if loaded.missing and not generation.deep:
            return None
        return effective(generation, loaded)
    except RefusedError:
        return None


def comparable(document: Mapping[str, Any] | None) -> Any:
    """What both have: the CRI's settings and the images', and what is not a plugin's."""
    if document is None:
        return None
    names = (GRPC_CRI, CRI_RUNTIME, CRI_IMAGES)
    return pruned({
        "disabled_plugins": document["disabled_plugins"],
        "oom_score": document["oom_score"],
        **{name: document["plugins"].get(name) for name in names},
    })  # fmt: skip


def modelled(version: str, config: Path) -> tuple[set[str], str, bool | None] | None:
    """Handlers, default and switch by the program's own model; None where it knows of a fault."""
    number = parse_version(version)
    assert number is not None
    gen = generations.generation(number)
    try:
        files = config_files.load(HostRoot("/"), gen, str(config))
    except Refused:
        return None
    if faults.fatal_fault(gen, files) or faults.disabling_entry(gen, files):
        return None
    cri = merge.effective(gen, files)
    return set(cri.runtimes), cri.default, cri.enable_cdi


def decisive(document: Mapping[str, Any] | None) -> tuple[set[str], str, bool | None] | None:
    """The same of a printed configuration; a disabled plugin is not printed, or has no settings."""
    plugins = (document or {}).get("plugins", {})
    section = plugins.get(CRI_RUNTIME) or plugins.get(GRPC_CRI) or {}
    needed = {GRPC_CRI, CRI_RUNTIME, CRI_IMAGES} if CRI_RUNTIME in plugins else {GRPC_CRI}
    off = needed & set((document or {}).get("disabled_plugins", ()))
    if off or "containerd" not in section:
        return None
    below = section["containerd"]
    return set(below["runtimes"]), below["default_runtime_name"], section.get("enable_cdi")


# `config dump` of 2.x swallows that a file is missing, and the daemon does not start.
UNSEEN = {"2.1": {"import-missing", "import-no-star"}}
VERSIONS = {"1.6": "1.6.20", "1.7": "1.7.24", "2.1": "2.1.9"}


@pytest.mark.real
@pytest.mark.parametrize("generation", VERSIONS)
def test_rules_are_those_of_the_real_one(generation: str, tmp_path: Path) -> None:
    """A file tree gives the same effective configuration, or is refused by all three."""
    runtime = inventory().find(generation)
    assert runtime is not None
    wrong = {}
    for name in sample([*WITH_TEXTS], by_run(40, len(WITH_TEXTS)), generation):
        directory = tmp_path / name
        write_files(directory, WITH_TEXTS[name])
        config = directory / "etc/containerd/config.toml"
        if not config.exists() or name in UNSEEN.get(generation, ()):
            continue
        real, rules = printed(runtime, config), computed(VERSIONS[generation], config)
        model = modelled(VERSIONS[generation], config)
        if comparable(real) != comparable(rules) or decisive(real) != model:
            wrong[name] = (decisive(real), decisive(rules), model)
    assert wrong == {}


@pytest.mark.parametrize("version", ["2.0.11", "2.2.7", "2.3.4", "2.4.0-beta.0"])
def test_models_of_program_and_double_are_equal(version: str, tmp_path: Path) -> None:
    """The program's and the double's, which were written apart from each other."""
    wrong = {}
    for name, shape in WITH_TEXTS.items():
        directory = tmp_path / name
        write_files(directory, shape)
        config = directory / "etc/containerd/config.toml"
        if not config.exists() or name in UNSEEN["2.1"]:
            continue
        rules, model = decisive(computed(version, config)), modelled(version, config)
        if rules != model:
            wrong[name] = (rules, model)
    assert wrong == {}
