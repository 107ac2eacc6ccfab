"""The low-level OCI runtimes that NVIDIA's runtime calls to run containers.

Invariant: NVIDIA's runtime is never listed as its own low-level runtime, under any name. It would
call itself for ever.
"""

from __future__ import annotations

from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.options.settings import Settings
from agent.runtimes import registry
from agent.runtimes.desired_state import Effective, is_nvidia
from agent.toml.document import Data
from agent.toolkit import programs
from agent.toolkit.config import HOSTS_CONFIG, config_beside, read_config, read_config_file


def runtimes(
    settings: Settings,
    host: HostRoot,
    kind: str,
    effective: Effective | None,
    base: str | None,
    current: str | None = None,
) -> tuple[str, ...]:
    """The low-level runtimes for the toolkit's config.toml, in the order in which
    nvidia-container-runtime tries them.

    The list has `current`, which NVIDIA's runtime calls now; the programs of the handler `base` and
    of the default runtime; and the usual ones of this kind of runtime. If `effective` is None, the
    list begins with that in the present config.toml. --nvidia-container-runtime.runtimes replaces
    the whole list."""
    if settings.low_level_runtimes:
        return settings.low_level_runtimes
    adapter = registry.adapter(kind)
    usual = adapter.low_level
    if effective is None:
        config = read_config(programs.directory(settings, host).agent)
        paths: list[str | None] = [*(config.runtimes if config else ())]
    else:
        names = (base, effective.default, *usual)
        foreign = (name for name in names if name and not is_nvidia(effective, name, ()))
        paths = [adapter.low_level_program(effective, name) for name in foreign]
    present = [path for path in paths if path and _real(host, path)]
    if current and _real(host, current) not in [_real(host, path) for path in present[:1]]:
        present.insert(0, current)
    candidates = dict.fromkeys((*present, *usual))
    return tuple(path for path in candidates if not _is_itself(host, path))


def called_by(host: HostRoot, table: Data) -> str | None:
    """The low-level runtime that a CRI-O handler with NVIDIA's runtime calls now. None for any
    other handler. `table` is the handler's table.

    The name is read in the config.toml beside NVIDIA's program, else in the host's own. Only this
    low-level runtime finds the running containers again (observed on CRI-O 1.30 and 1.37)."""
    path = table.get("runtime_path")
    if not isinstance(path, str) or not programs.is_nvidia(path):
        return None
    for name in (config_beside(path), HOSTS_CONFIG):
        try:
            config = read_config_file(host.resolve(name).agent)
        except Refused:
            continue
        if config and config.runtimes:
            return first_existing(host, config.runtimes)
    return None


def first_existing(host: HostRoot, runtimes: tuple[str, ...]) -> str | None:
    """The first of these low-level runtimes that exists, None if none does. NVIDIA's runtime calls
    this one."""
    return next((path for path in runtimes if _real(host, path)), None)


def _is_itself(host: HostRoot, path: str) -> bool:
    """Is this program NVIDIA's runtime, under any name?"""
    return programs.is_nvidia(path) or programs.is_nvidia(_real(host, path) or path)


def _real(host: HostRoot, path: str) -> str | None:
    """The agent path of a program, given by its host path or its name; None if it does not
    exist."""
    places = [path] if "/" in path else [f"{above}/{path}" for above in programs.DIRECTORIES]
    return next((program for name in places if (program := programs.runs(host, name))), None)
