"""Specs as text, for what the options say and what the node has.

Invariant: needs no runtime, no NVML and none of the large libraries, so that it is quick by hand.
"""

from __future__ import annotations

import os

from agent.cdi import driver, emit
from agent.cdi import management as recipe
from agent.cdi.driver import Driver, Places
from agent.cdi.management import Surroundings
from agent.cdi.model import Spec
from agent.host.paths import HostRoot
from agent.settings import Settings

_FIRMWARE = "/sys/module/firmware_class/parameters/path"


def places(settings: Settings) -> Places:
    """Where the options say that the driver is."""
    return Places(
        driver_root=settings.driver_root,
        driver_root_seen=settings.driver_root_ctr_path,
        dev_root=settings.dev_root,
        dev_root_seen=settings.dev_root_ctr_path,
    )


def management(
    settings: Settings, host: HostRoot, form: str = "yaml", *, hook: str | None
) -> tuple[str, tuple[str, ...]]:
    """The management spec's text, and warnings; hooks are done by the program at the host path
    `hook`. Raises NoDriver."""
    found = driver.find(host, places(settings))
    return emit.text(_spec(settings, host, found, hook), form), _warnings(hook)


def _spec(settings: Settings, host: HostRoot, found: Driver, hook: str | None) -> Spec:
    around = Surroundings(hook, os.uname().release, _firmware(host))
    return recipe.spec(found, around, settings.cdi_kind)


def _warnings(hook: str | None) -> tuple[str, ...]:
    text = (
        "the CDI spec has no hooks: there is no nvidia-cdi-hook on the host; programs in "
        "containers find the driver's libraries by LD_LIBRARY_PATH only"
    )
    return () if hook else (text,)


def _firmware(host: HostRoot) -> str:
    """The kernel's own firmware directory, where somebody set one."""
    try:
        with open(host.agent_path(_FIRMWARE), encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
