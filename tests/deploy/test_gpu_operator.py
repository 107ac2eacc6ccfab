"""The values for gpu-operator's chart: what is in them exists there, and is ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from agent import __version__
from agent.options.settings import resolve
from agent.options.table import OPTIONS
from tests.operator import environment as operator
from tests.tools.runtimes import ROOT

VALUES = ROOT / "deploy/gpu-operator/values.yaml"

# Keys of the chart's own values.yaml (v26.3), of the parts that we touch. Helm drops others.
CHART = frozenset({
    "toolkit.enabled", "toolkit.repository", "toolkit.image", "toolkit.version",
    "toolkit.imagePullPolicy", "toolkit.imagePullSecrets", "toolkit.env", "toolkit.resources",
    "toolkit.installDir", "toolkit.hostNetwork", "cdi.enabled", "cdi.nriPluginEnabled",
    "daemonsets.labels", "daemonsets.annotations", "daemonsets.priorityClassName",
    "daemonsets.tolerations", "daemonsets.updateStrategy", "daemonsets.rollingUpdate",
})  # fmt: skip


def values() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(VALUES.read_text("utf-8"))
    return found


def keys() -> Iterator[str]:
    for part, inner in values().items():
        yield from (f"{part}.{key}" for key in inner)


def test_keys_are_the_chart_s() -> None:
    """One with a typing error would do nothing."""
    assert set(keys()) <= CHART


def test_image_is_this_version() -> None:
    """Its three parts are what the operator puts together."""
    toolkit = values()["toolkit"]
    assert (toolkit["image"], toolkit["version"]) == ("toolkit-agent", __version__)
    assert not toolkit["repository"].endswith("/")


def test_variables_are_ours_and_arrive() -> None:
    """None is one that the operator overwrites; with its own they make sense, and are all used."""
    given = {item["name"]: item["value"] for item in values()["toolkit"]["env"]}
    assert set(given) <= {name for option in OPTIONS for name in option.env}
    sent = {**operator.ALWAYS, **operator.CDI, **operator.CONTAINERD}
    assert not set(given) & set(sent)
    assert all(isinstance(value, str) for value in given.values())
    settings = resolve({}, {**given, **sent}, "nvidia-toolkit")
    assert set(given) <= set(settings.origins.values())


def test_mode_is_one_that_we_serve() -> None:
    """CDI, and no plugin."""
    assert values()["cdi"] == {"enabled": True, "nriPluginEnabled": False}
