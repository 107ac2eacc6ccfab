"""Root files and drop-ins of different versions together, and what the runtimes make of them.

The expectations are data, from tables of what real daemons did (2.0.11, 2.1.9, 2.2.7, 2.3.4 and
2.4.0-beta.0), and of 2.1.9 once more from the daemon itself (`test_model.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.conformance.shapes import OURS, ROW3, ROW4, Expected, Refused
from tests.generations.model_node import Texts

OLD, NEW = ("2.0.11", "2.2.7"), ("2.3.4", "2.4.0-beta.0")
VERSIONS = (*OLD, *NEW)

# The daemon does not run, or its CRI does not: nothing can be asked.
DOWN = Refused(4, "cannot reach", answers=False)
NO_CRI = Refused(4, "CRI", answers=False)
# It runs, and does not read what an admin wrote.
LOST = Refused(3, "version = 2")

SECTIONS = {
    1: "plugins.cri",
    2: 'plugins."io.containerd.grpc.v1.cri"',
    3: "plugins.'io.containerd.cri.v1.runtime'",
}
IMAGES = "plugins.'io.containerd.cri.v1.images'"


def spread(old: Expected, new: Expected) -> Mapping[str, Expected]:
    """The expectation of each version."""
    return {**dict.fromkeys(OLD, old), **dict.fromkeys(NEW, new)}


def handlers(names: int, *wanted: str, default: str = "", binary: str = "/usr/bin/{}") -> str:
    """The tables of some handlers, under the section name of that version."""
    section = SECTIONS[names]
    text = f"[{section}.containerd]\n" + (f'default_runtime_name = "{default}"\n' * bool(default))
    for name in wanted:
        text += (
            f"[{section}.containerd.runtimes.{name}]\n"
            'runtime_type = "io.containerd.runc.v2" # as ever\n'
            f"[{section}.containerd.runtimes.{name}.options]\n"
            f'BinaryName = "{binary.format(name)}"\nSystemdCgroup = true\n'
        )
    return text


@dataclass(frozen=True)
class Part:
    """A file: the version that it names, and the version whose section names it uses."""

    version: int | None
    names: int

    def __str__(self) -> str:
        """For the name of a shape."""
        return f"v{self.version}" if self.version else f"none{self.names}"

    def text(self, body: str, *imports: str) -> str:
        """The file with this body."""
        head = f"version = {self.version}\n" if self.version else ""
        listed = ", ".join(f"'{item}'" for item in imports)
        return f"# site\n{head}" + (f"imports = [{listed}]\n" if imports else "") + body


NONE2, NONE3, V1, V2, V3, V4 = (
    Part(None, 2), Part(None, 3), Part(1, 1), Part(2, 2), Part(3, 3), Part(4, 3),
)  # fmt: skip
DROP_INS = (NONE2, NONE3, V1, V2, V3, V4)

# What 2.0 to 2.2 take of the root file (main) and of a drop-in (site): both, or one, because the
# whole is read by the version of the last file, and version 3's names hide those of version 2.
BOTH, MAIN, SITE = ("main", "runc", "site"), ("main", "runc"), ("runc", "site")
_OLD: Mapping[tuple[Part, Part], tuple[str, ...] | Refused] = {
    (NONE3, NONE2): LOST, (NONE3, NONE3): BOTH, (NONE3, V1): LOST, (NONE3, V2): MAIN,
    (NONE3, V3): BOTH, (NONE3, V4): DOWN,
    (NONE2, NONE2): LOST, (NONE2, NONE3): LOST, (NONE2, V1): LOST, (NONE2, V2): BOTH,
    (NONE2, V3): LOST, (NONE2, V4): DOWN,
    (V1, NONE2): LOST, (V1, NONE3): LOST, (V1, V1): LOST, (V1, V2): BOTH, (V1, V3): LOST,
    (V1, V4): DOWN,
    (V2, NONE2): BOTH, (V2, NONE3): SITE, (V2, V1): BOTH, (V2, V2): BOTH, (V2, V3): SITE,
    (V2, V4): DOWN,
    (V3, NONE2): LOST, (V3, NONE3): BOTH, (V3, V1): LOST, (V3, V2): MAIN, (V3, V3): BOTH,
    (V3, V4): DOWN,
    **{(V4, part): DOWN for part in (NONE2, NONE3, V1, V4)},
    # Read by the drop-in's version, a version 4 root file is one like any other.
    (V4, V2): MAIN, (V4, V3): BOTH,
}  # fmt: skip


def _new(root: Part, drop_in: Part) -> tuple[str, ...] | Refused:
    """2.3 and 2.4 read each file by its own version, and refuse a drop-in with a higher one."""
    higher = root.version is not None and (drop_in.version or 0) > root.version
    return DOWN if higher else BOTH


def version_mixes() -> Iterator[Texts]:
    """Every pair, with the drop-in loaded before ours and after it."""
    for (root, drop_in), old in _OLD.items():
        for place in ("50-site", "zz-site"):
            files = {
                "config.toml": root.text(
                    "oom_score = -999\n" + handlers(root.names, "main"), "conf.d/*.toml"
                ),
                f"conf.d/{place}.toml": drop_in.text(handlers(drop_in.names, "site")),
            }
            for versions, seen in ((OLD, old), (NEW, _new(root, drop_in))):
                yield Texts(
                    f"{root}+{drop_in}-{place[:2]}",
                    dict.fromkeys(versions, seen if isinstance(seen, Refused) else ROW3),
                    handlers=() if isinstance(seen, Refused) else seen,
                    texts=files,
                )


def switch_mixes() -> Iterator[Texts]:
    """The drop-in says `enable_cdi = false` and nothing else: does it count?"""
    for root in (NONE3, V2, V3, V4):
        for drop_in in DROP_INS:
            old = _OLD[root, drop_in]
            if (root, drop_in) in ((V2, V3), (V2, NONE3)):
                seen = ("runc",) if drop_in == V3 else MAIN
            else:
                seen = MAIN
            for place in ("50-site", "zz-site"):
                body = f"[{SECTIONS[drop_in.names]}]\n  enable_cdi = false # policy\n"
                files = {
                    "config.toml": root.text(handlers(root.names, "main"), "conf.d/*.toml"),
                    f"conf.d/{place}.toml": drop_in.text(body),
                }
                for versions, found in ((OLD, old), (NEW, _new(root, drop_in))):
                    expected = found if isinstance(found, Refused) else ROW4
                    yield Texts(
                        f"{root}+{drop_in}-off-{place[:2]}",
                        dict.fromkeys(versions, expected),
                        handlers=seen if versions == OLD else MAIN,
                        texts=files,
                    )


def frozen_mixes() -> Iterator[Texts]:
    """A whole copy of the section that NVIDIA's installer wrote, of any version: at our path, or
    at one that is loaded before or after it."""
    for root in (V2, V3, V4, NONE3):
        for drop_in in (V2, V3, V4):
            for place in ("99-nvidia", "50-nvidia", "zz-nvidia"):
                files = {
                    "config.toml": root.text(
                        f"[{SECTIONS[root.names]}]\ncdi_spec_dirs = ['/etc/cdi', '/run/cdi']\n",
                        "@NODE@/etc/containerd/conf.d/*.toml",
                    ),
                    f"conf.d/{place}.toml": drop_in.text(_frozen(drop_in.names)),
                }
                down = isinstance(_new(root, drop_in), Refused)
                yield Texts(
                    f"{root}+{drop_in}-frozen-{place[:2]}",
                    spread(DOWN if drop_in == V4 else ROW3, DOWN if down else ROW3),
                    handlers=("runc", *OURS),
                    default="nvidia",
                    texts=files,
                )


def _frozen(names: int) -> str:
    section = SECTIONS[names]
    stale = handlers(names, *OURS, binary="/old/nvidia-container-runtime")
    whole = handlers(names, "runc", default="nvidia")
    rest = stale.replace(f"[{section}.containerd]\n", "")
    return f"{whole}{rest}[{section}.cni]\nmax_conf_num = 2\n"
