"""The CRI's view of an effective configuration: `Status(verbose=true)`'s `info`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.doubles.containerd.generation import CRI_IMAGES, CRI_RUNTIME, GRPC_CRI, Generation, Table

_LINUX = "io.containerd.runtime.v1.linux"
_DEPRECATED = {"default_runtime": "default", "untrusted_workload_runtime": "untrusted"}

# JSON names that differ from the TOML key in more than underscores and capitals.
_RENAMED = {"maxcontainerlogsize": "maxcontainerloglinesize"}

_NO_NETWORK = (
    "cni config load failed: no network config found in /etc/cni/net.d: "
    "cni plugin not initialized: failed to load cni config"
)


def why_dead(generation: Generation, document: Table) -> str | None:
    """Say why the CRI plugin of this configuration does not load, if so."""
    needed = (GRPC_CRI, CRI_RUNTIME, CRI_IMAGES) if generation.deep else (GRPC_CRI,)
    if any(name not in document["plugins"] for name in needed):
        return "disabled, or one that it needs"
    containerd = _named(generation, document["plugins"][generation.cri]["containerd"])
    name = containerd["default_runtime_name"]
    if not name:
        return "invalid plugin config: `default_runtime_name` is empty"
    if name not in containerd["runtimes"]:
        return (
            "invalid plugin config: no corresponding runtime configured in `containerd.runtimes` "
            f'for `containerd` `default_runtime_name = "{name}"'
        )
    switch = not generation.deep and document["plugins"][GRPC_CRI]["systemd_cgroup"]
    return None if generation.deep else _why_dead_1x(containerd, switch)


def _named(generation: Generation, containerd: Table) -> Table:
    """Give the section with the handlers that 1.x makes of deprecated tables; no dump shows them
    so."""
    found = {**containerd, "runtimes": dict(containerd["runtimes"])}
    for key, name in _DEPRECATED.items() if not generation.deep else ():
        if containerd[key]["runtime_type"]:
            found["runtimes"][name] = containerd[key]
            found |= {"default_runtime_name": name} if name == "default" else {}
    return found


def _why_dead_1x(containerd: Table, systemd_cgroup: bool) -> str | None:
    """Say what is the v1.linux shim's alone; observed on 1.6.20 and 1.7.24."""
    runtimes = containerd["runtimes"]
    default = runtimes[containerd["default_runtime_name"]]
    only = f"only works for runtime {_LINUX}"
    if systemd_cgroup and default["runtime_type"] != _LINUX:
        return f"invalid plugin config: `systemd_cgroup` {only}"
    for table in runtimes.values():
        for key in ("runtime_engine", "runtime_root") if table["runtime_type"] != _LINUX else ():
            if table[key]:
                return f"invalid plugin config: `{key}` {only}"
    return None


def address_of(document: Table) -> str:
    """Give the path of the socket to listen on."""
    server: Table = document["plugins"].get("io.containerd.server.v1.grpc", document["grpc"])
    return str(server["address"])


def config_info(generation: Generation, document: Table) -> Table:
    """Give `info["config"]` of an effective configuration: the captured answer with its values.

    One thing is simplified: an empty list or table that a file spells out is null here, too.
    """
    template = generation.status_config()
    section = document["plugins"][generation.cri]
    # 2.x kept the directories' names.
    config = _project(template, section) | {
        "containerdRootDir": document["root"],
        "containerdEndpoint": address_of(document),
        "rootDir": f"{document['root']}/{GRPC_CRI}",
        "stateDir": f"{document['state']}/{GRPC_CRI}",
    }
    shape = template["containerd"]["runtimes"]["runc"]
    named = _named(generation, section["containerd"])
    config["containerd"]["defaultRuntimeName"] = named["default_runtime_name"]
    config["containerd"]["runtimes"] = {
        name: _handler(shape, table) for name, table in named["runtimes"].items()
    }
    return config


def info(config: Table, golang: str) -> Mapping[str, str]:
    """Give all of `info`; the load status of the network is plain text, the rest JSON."""
    cni = config["cni"]
    network = {
        "PluginDirs": cni.get("binDirs") or [cni["binDir"]],
        "PluginConfDir": cni["confDir"],
        "PluginMaxConfNum": cni["maxConfNum"],
        "Prefix": "eth",
        "Networks": [],
    }
    return {
        "config": json.dumps(config, separators=(",", ":")),
        "cniconfig": json.dumps(network, separators=(",", ":")),
        "golang": json.dumps(golang),
        "lastCNILoadStatus": _NO_NETWORK,
        "lastCNILoadStatus.default": _NO_NETWORK,
    }


def _project(template: Table, table: Table) -> Table:
    """Give the template's keys the values of the same settings in `table`."""
    values = {key.replace("_", ""): value for key, value in table.items()}
    result = {}
    for name, sample in template.items():
        plain = name.lower().replace("_", "")
        value = values.get(plain, values.get(_RENAMED.get(plain, ""), sample))
        if isinstance(sample, dict) and isinstance(value, dict):
            value = _project(sample, value)
        result[name] = None if sample is None and not value else value
    return result


def _handler(shape: Table, table: Table) -> Table:
    handler = _project({**shape, "options": None}, {"options": None, **table})
    for key in ("sandboxMode", "sandboxer"):
        if handler.get(key) == "":
            handler[key] = "podsandbox"
    return handler
