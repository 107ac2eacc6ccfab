"""Options for the content of CDI specs.

Invariant: this is a part of the table in `agent.options.table`, with the same invariant. Names and
variables are those of `nvidia-ctk cdi generate`.
"""

from __future__ import annotations

from agent.options.device_classes import DEVICE_CLASSES
from agent.options.option import Option

_HOOKS = (
    "all", "create-symlinks", "enable-cuda-compat", "update-ldcache",
    "disable-device-node-modification", "update-application-profile", "chmod",
)  # fmt: skip

CSV_DIRECTORY = "/etc/nvidia-container-runtime/host-files-for-container.d"
_CSV_FILES = ",".join(f"{CSV_DIRECTORY}/{name}.csv" for name in ("devices", "drivers", "l4t"))
MODES = (
    "management", "auto", "nvml", "gpu", "csv", "wsl",
    *(device_class.mode for device_class in DEVICE_CLASSES),
)  # fmt: skip
# Those of NVIDIA's feature flags that are accepted.
FEATURES = (
    "disable-nvsandboxutils", "disable-nvsandbox-utils", "disable-multiple-csv-devices",
    "no-additional-gids-for-device-nodes",
)  # fmt: skip


_ABSOLUTE, _ABSOLUTE_NEEDS = "/.*", "give an absolute path"
_WORD = "([A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9])?"
_WORD_NEEDS = (
    "give two or more letters, digits and _ - . with a letter first and none of _ - . last"
)


def _env(name: str) -> tuple[str, ...]:
    return (f"NVIDIA_CTK_CDI_GENERATE_{name}",)


# Options of all commands that make specs.
SPECS = (
    Option("device_name_strategies", "list", _env("DEVICE_NAME_STRATEGIES"),
           "Names of nvidia.com/gpu devices, one or more of: index (0, 0:1), uuid, type-index "
           "(gpu0, mig0:1).",
           default="index,uuid", flags=("--device-name-strategy",),
           choices=("index", "uuid", "type-index")),
    Option("disabled_hooks", "list", _env("DISABLED_HOOKS"),
           "Names of hooks to leave out of CDI specs; all: every hook.",
           default="", flags=("--disable-hook", "--disable-hooks"), choices=_HOOKS),
    Option("enabled_hooks", "list", _env("ENABLED_HOOKS"),
           "Hooks to make although they are disabled; chmod is made only if it is listed here.",
           default="", flags=("--enable-hook", "--enable-hooks"), choices=_HOOKS[1:]),
    Option("ldconfig_path", "path", _env("LDCONFIG_PATH"),
           "ldconfig on the host, for hooks.",
           unset="nvidia-cdi-hook searches it"),
    Option("library_search_paths", "list", _env("LIBRARY_SEARCH_PATHS"),
           "Directories with the driver's libraries. On a Tegra: directories below the driver "
           "root, which are searched first.",
           default="", unset="the usual ones, else the loader's cache",
           flags=("--library-search-path",), pattern=_ABSOLUTE, needs=_ABSOLUTE_NEEDS),
    Option("config_search_paths", "list", _env("CONFIG_SEARCH_PATHS"),
           "Directories with the driver's configuration files for graphics.",
           default="", unset="the usual ones", flags=("--config-search-path",),
           pattern=_ABSOLUTE, needs=_ABSOLUTE_NEEDS),
    Option("csv_files", "list", _env("CSV_FILES"),
           "On a Tegra: CSV files on the host that list the files and devices for containers.",
           default=_CSV_FILES, unset=f"devices.csv, drivers.csv and l4t.csv in {CSV_DIRECTORY}",
           flags=("--csv.file",), pattern=_ABSOLUTE, needs=_ABSOLUTE_NEEDS),
    Option("csv_ignore_patterns", "list", _env("CSV_IGNORE_PATTERNS"),
           "On a Tegra: patterns of listed links to leave out; **/ stands for any directory.",
           default="", flags=("--csv.ignore-pattern",)),
    Option("csv_compat_container_root", "path", _env("CSV_CONTAINER_COMPAT_ROOT"),
           "On an Orin: directory of a newer CUDA in a container.",
           default="/usr/local/cuda/compat_orin", flags=("--csv.compat-container-root",)),
)  # fmt: skip

# Options of `cdi generate` alone.
GENERATE = (
    Option("spec_mode", "choice", _env("MODE"),
           "Which spec to make. nvml, csv (Tegra) and wsl (WSL2) make nvidia.com/gpu; auto "
           "selects one of these for the machine; gpu means nvml.",
           default="management", flags=("--mode", "--discovery-mode"), choices=MODES),
    Option("output", "file", ("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH",),
           "Write the spec to this file on the host, in one step.",
           unset="print it"),
    Option("form", "choice", _env("OUTPUT_FORMAT"),
           "Format of the spec.",
           unset="by the name of the output file, else yaml",
           flags=("--format",), choices=("yaml", "json")),
    Option("vendor", "text", _env("VENDOR"),
           "Vendor of the kind.",
           unset="nvidia.com, or that of --cdi-kind", flags=("--vendor", "--cdi-vendor"),
           pattern=_WORD, needs=_WORD_NEEDS),
    Option("class_name", "text", _env("CLASS"),
           "Class of the kind.",
           unset="gpu, or that of the mode", flags=("--class", "--cdi-class"),
           pattern=_WORD, needs=_WORD_NEEDS),
    Option("device_ids", "list", _env("DEVICE_IDS"),
           "GPUs and MIG devices by index or UUID, or IMEX channels by number; none: a device "
           "without a GPU.",
           default="all", flags=("--device-id", "--device-ids", "--device", "--devices")),
    Option("no_all_device", "bool", _env("NO_ALL_DEVICE"),
           "Do not add a device `all`.",
           default="false"),
    Option("hook_path", "file", ("NVIDIA_CTK_CDI_HOOK_PATH",),
           "Program of hooks: a path on the host, which is not checked, or nvidia-cdi-hook or "
           "nvidia-ctk.",
           unset="nvidia-cdi-hook, if it is installed",
           flags=("--nvidia-cdi-hook-path", "--nvidia-ctk-path")),
    Option("feature_flags", "list", _env("FEATURE_FLAGS"),
           f"One or more of: {', '.join(FEATURES)}.",
           default="", flags=("--feature-flag", "--feature-flags"), choices=FEATURES),
)  # fmt: skip
# Variables of `nvidia-ctk` for options of all commands; only `cdi generate` reads them.
GENERATE_ENV = {"driver_root": "NVIDIA_CTK_DRIVER_ROOT", "dev_root": "NVIDIA_CTK_DEV_ROOT"}
