"""The generations of containerd: a table of the rules by which each reads its configuration.

Invariant: every difference between versions is a field of `Generation`. The modules that use the
table contain no version numbers. The rules were observed on 1.6.20, 1.7.24, 2.0.11, 2.1.9, 2.2.7,
2.3.4 and 2.4.0-beta.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agent.cri.versions import Version
from agent.toml.dialect import GO_TOML_1, GO_TOML_2, Kind
from agent.toml.document import Data

# Names of the plugin with handlers and CDI in files of version 1, of version 2, and of 3 and 4.
CRI_V1 = "cri"
CRI_V2 = "io.containerd.grpc.v1.cri"
CRI_V3 = "io.containerd.cri.v1.runtime"
CRI_PLUGINS = (CRI_V3, CRI_V2, CRI_V1)
# The plugin with the settings of images, since version 3.
IMAGES = "io.containerd.cri.v1.images"

# Keys of the CRI section of version 2 that other plugins have in version 3; CRI_V3 has the others.
STREAMING = frozenset({
    "disable_tcp_service", "enable_tls_streaming", "stream_idle_timeout", "stream_server_address",
    "stream_server_port", "x509_key_pair_streaming",
})  # fmt: skip
IMAGE_KEYS = frozenset({
    "image_decryption", "image_pull_progress_timeout", "image_pull_with_sync_fs",
    "max_concurrent_downloads", "registry", "stats_collect_period",
})  # fmt: skip
SANDBOX_IMAGE = "sandbox_image"
# The same for keys in the table `containerd`.
SNAPSHOTS = frozenset({"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"})
# Tables in which the sections under the old and the new name are merged key by key.
TWO_LEVELS = frozenset({"containerd", "cni"})

# The `runc` handler that containerd has when no file defines any (`containerd config default`).
_RUNC_16: Data = {
    "runtime_type": "io.containerd.runc.v2",
    "options": {
        "BinaryName": "", "CriuImagePath": "", "CriuPath": "", "CriuWorkPath": "", "IoGid": 0,
        "IoUid": 0, "NoNewKeyring": False, "NoPivotRoot": False, "Root": "", "ShimCgroup": "",
        "SystemdCgroup": False,
    },
}  # fmt: skip
_RUNC_17: Data = {**_RUNC_16, "sandbox_mode": "podsandbox"}
_RUNC_2: Data = {"runtime_type": "io.containerd.runc.v2"}


@dataclass(frozen=True)
class Generation:
    """The rules of a range of containerd's versions. A "file version" below is the value of the key
    `version` in a configuration file.

    `since`: the first version of containerd.
    `merge`: the section of a plugin in a later file replaces the earlier sections ("replace"), or
    is merged into them ("deep").
    `reads`: "set": one file version counts for all files, that of the last file whose version is
    `lowest` or higher; without such a file, `unversioned`. "file": the version of each file counts
    for that file, 0 if the file has none.
    `names`: the sections with the CRI's settings, by file version. A key in the first of several
    sections hides the same key in the others (but see TWO_LEVELS).
    `highest`: the highest file version. `containerd config default` has it, and so has a root file
    that we create. `strict`: a file with a higher version is refused; else it is read as `highest`.
    `relative_globs`: globs are taken relative to the importing file, not to the daemon's working
    directory.
    `enable_cdi`: the default of the key, None if there is no such key.
    `runc`: the table of the built-in handler, with the keys that a file has to write out.
    `missing_shims`: runtime types of 1.x for which there is no shim.
    `toml`: the extensions to TOML 1.0 that the TOML reader accepts.
    `brittle_cdi`: a CDI spec whose vendor or class has one letter makes containerd panic.
    """

    name: str
    since: Version
    merge: Literal["replace", "deep"]
    reads: Literal["set", "file"]
    lowest: int
    unversioned: int
    names: Mapping[int, tuple[str, ...]]
    highest: int
    strict: bool
    relative_globs: bool
    enable_cdi: bool | None
    runc: Data
    missing_shims: tuple[str, ...] = ()
    toml: frozenset[Kind] = GO_TOML_2
    brittle_cdi: bool = True

    @property
    def renames(self) -> bool:
        """Are sections of a file of version 1 or none renamed to those of version 2 before the
        files are merged?"""
        return self.merge == "deep" and self.reads == "set"


_SHIMS_1X = ("io.containerd.runtime.v1.linux", "io.containerd.runc.v1")
_NAMES_1X = {1: (CRI_V1,), 2: (CRI_V2,)}
_NAMES_20 = {2: (CRI_V3, CRI_V2), 3: (CRI_V3,)}
_NAMES_23 = {
    0: (CRI_V3, CRI_V2, CRI_V1),
    1: (CRI_V3, CRI_V2, CRI_V1),
    2: (CRI_V3, CRI_V2),
    3: (CRI_V3, CRI_V2),  # read in the source: the step from 3 to 4 migrates it again
    4: (CRI_V3,),
}


_1_6 = Generation(
    "1.6", since=(0, 0, 0), merge="replace", reads="set", lowest=1, unversioned=1, names=_NAMES_1X,
    highest=2, strict=False, relative_globs=False, enable_cdi=None, runc=_RUNC_16, toml=GO_TOML_1,
)  # fmt: skip
_1_7 = replace(
    _1_6, name="1.7", since=(1, 7, 0), strict=True, relative_globs=True, enable_cdi=False,
    runc=_RUNC_17,
)  # fmt: skip
_2_0 = Generation(
    "2.0", since=(2, 0, 0), merge="deep", reads="set", lowest=2, unversioned=3, names=_NAMES_20,
    highest=3, strict=True, relative_globs=True, enable_cdi=True, runc=_RUNC_2,
    missing_shims=_SHIMS_1X,
)  # fmt: skip
_2_3 = replace(
    _2_0, name="2.3", since=(2, 3, 0), reads="file", lowest=0, names=_NAMES_23, highest=4
)
_2_4 = replace(_2_3, name="2.4", since=(2, 4, 0), brittle_cdi=False)
GENERATIONS = (_1_6, _1_7, _2_0, _2_3, _2_4)


def generation(version: Version) -> Generation:
    """The generation to which a version of containerd belongs."""
    return max((g for g in GENERATIONS if version >= g.since), key=lambda g: g.since)


def section_name(version: int) -> str:
    """The name of the section with handlers and `enable_cdi` in a file of this file version."""
    return CRI_V1 if version <= 1 else CRI_V2 if version == 2 else CRI_V3
