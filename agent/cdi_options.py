"""Options for the content of CDI specs.

Invariant: as in `agent.options`, of whose table this is a part. Names are those of `nvidia-ctk cdi
generate`, with its environment.
"""

from __future__ import annotations

from agent.option import Option

NAME_STRATEGIES = ("index", "uuid", "type-index")
HOOKS = (
    "all", "create-symlinks", "enable-cuda-compat", "update-ldcache",
    "disable-device-node-modification", "update-application-profile", "chmod",
)  # fmt: skip

SPECS = (
    Option(
        "device_name_strategies",
        "list",
        ("NVIDIA_CTK_CDI_GENERATE_DEVICE_NAME_STRATEGIES",),
        "Names of nvidia.com/gpu devices, several or all of: index (0, 0:1), uuid, type-index "
        "(gpu0, mig0:1).",
        "index,uuid",
        ("--device-name-strategy",),
    ),
    Option(
        "disabled_hooks",
        "list",
        ("NVIDIA_CTK_CDI_GENERATE_DISABLED_HOOKS",),
        "Hooks to leave out of CDI specs, by their names; all: none is made.",
        "",
        ("--disable-hook",),
    ),
)
