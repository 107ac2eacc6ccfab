"""Nodes one by one: settings under names and in places that only some versions look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from tests.conformance.shapes import OURS, ROW3, ROW4, ROW5, Expected, Refused
from tests.generations.mixes import DOWN, IMAGES, LOST, NEW, OLD, SECTIONS, handlers, spread
from tests.generations.model_node import Texts

V1, V2, V3 = (SECTIONS[number] for number in (1, 2, 3))
_RUNC = ("runc",)
_DISABLED = Refused(4, "disabled_plugins", answers=False)
_ALL3, _ALL4 = spread(ROW3, ROW3), spread(ROW4, ROW4)
_NEW3, _NEW4 = dict.fromkeys(NEW, ROW3), dict.fromkeys(NEW, ROW4)
_OLD3, _OLD4 = dict.fromkeys(OLD, ROW3), dict.fromkeys(OLD, ROW4)
_GLOB = "imports = ['@NODE@/etc/containerd/conf.d/*.toml']\n"

_NO_FILES: Mapping[str, str] = MappingProxyType({})


def one(
    name: str, text: str | None, cells: Mapping[str, Expected], seen: tuple[str, ...] = _RUNC,
    *, default: str = "runc", base: str = "runc", files: Mapping[str, str] = _NO_FILES,
) -> Texts:  # fmt: skip
    """A shape of a root file (None: there is none) and other files."""
    texts = dict(files) if text is None else {"config.toml": text, **files}
    return Texts(name, cells, handlers=seen, default=default, base=base, texts=texts)


_SERVERS = """\
version = 4
[plugins.'io.containerd.server.v1.grpc']
  address = '@NODE@/run/containerd.sock' # private
  uid = 0
[plugins.'io.containerd.server.v1.ttrpc']
  address = '@NODE@/run/containerd.sock.ttrpc'
"""
_V4 = _SERVERS + handlers(3, "runc") + f"[{IMAGES}]\n  snapshotter = 'native'\n"
_OFF = "enable_cdi = false\n"
_V2_IMAGES = f"""\
version = 2
plugin_dir = "/opt/plugins"
[{V2}]
  sandbox_image = "registry.example/pause:3.9"
  max_concurrent_downloads = 7
  image_pull_progress_timeout = "9m0s"
  restrict_oom_score_adj = true
  stream_server_port = "10010"
  [{V2}.image_decryption]
    key_model = ""
  [{V2}.registry.mirrors."docker.io"]
    endpoint = ["https://mirror.example"]
  [{V2}.registry.configs."mirror.example".auth]
    username = "someone"
  [{V2}.cni]
    bin_dir = "/usr/libexec/cni"
"""
_SNAPSHOTTER = f"[{V2}.containerd]\n  snapshotter = 'native'\n  discard_unpacked_layers = true\n"
_HANDLER = f"[{V2}.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n"

NAMES = (
    one("v4", _V4, spread(DOWN, ROW3)),
    one("v4-off", _V4 + f"[{V3}]\n{_OFF}", _NEW4),
    one("v4-off-old-name", _V4 + f"[{V2}]\n{_OFF}", _NEW3),  # nobody reads that
    one("v4-stale", _V4 + handlers(3, "nvidia", binary="/old/nvidia-container-runtime").replace(
        f"[{V3}.containerd]\n", ""), _NEW3, ("nvidia", "runc")),
    one("v5", "version = 5\n", spread(DOWN, DOWN)),
    # 2.3 migrates a version 3 file once more; before, such a name has no settings.
    one("v3-off-old-name", f"version = 3\n[{V2}]\n{_OFF}", spread(ROW3, ROW4)),
    one("v3-handler-old-name-20", "version = 3\n" + handlers(2, "site"), _OLD3),
    one("v3-handler-old-name-23", "version = 3\n" + handlers(2, "site", default="site"), _NEW3,
        ("runc", "site"), default="site", base="site"),
    one("v3-both-names", "version = 3\n" + handlers(3, "runc", "new") + handlers(2, "old"), _ALL3,
        ("new", "runc")),
    one("v2-off-new-name", f"version = 2\n{_HANDLER}[{V3}]\n{_OFF}", _ALL4),
    one("v2-off-both", f"version = 2\n[{V2}]\n{_OFF}[{V3}]\nenable_cdi = true\n", _ALL3),
    one("v2-both-names", "version = 2\n" + handlers(2, "old", "runc") + handlers(3, "new"), _ALL3,
        ("new", "runc")),
    one("v2-default-new-name", "version = 2\n" + handlers(2, "site", "runc")
        + f"[{V3}.containerd]\ndefault_runtime_name = 'site'\n", _ALL3, ("runc", "site"),
        default="site", base="site"),
    one("v2-short-name-too", f"version = 2\n{_HANDLER}[{V1}]\n{_OFF}", _ALL3),  # nobody reads that
    one("v3-short-name-too", f"version = 3\n[{V1}]\n{_OFF}", _ALL3),
    one("none-new-name", f"[{V3}]\n{_OFF}", _ALL4),
    one("none-old-name", handlers(2, "site"), spread(LOST, ROW3), ("runc", "site")),
    one("none-all-names", handlers(3, "runc") + f"[{V2}]\n{_OFF}[{V1}]\nenable_selinux = true\n",
        spread(LOST, ROW4)),
    one("v1-off", f"version = 1\n[{V1}]\n{_OFF}", spread(LOST, ROW4)),
    one("v1-long-name", "version = 1\n" + handlers(2, "site"), spread(LOST, ROW3),
        ("runc", "site")),
    one("v1-no-cri", "version = 1\n[grpc]\naddress = '@NODE@/c.sock'\n", _ALL3),
    one("v1-streaming", f"version = 1\n[{V1}]\nstream_server_port = '10010'\n", _ALL3),
    one("v1-drop-in", f"version = 1\n{_GLOB}" + handlers(1, "runc"), _NEW3, ("runc", "site"),
        files={"conf.d/50-site.toml": "version = 1\n" + handlers(1, "site")}),
    one("empty", "", _ALL3),
    one("blank", "\n \n\t\n", _ALL3),
    one("only-a-table", "[plugins]\n", _ALL3),
    one("no-root-forgotten", None, _ALL3,
        files={"conf.d/50-x.toml": f"version = 2\n[{V2}]\n{_OFF}"}),
)  # fmt: skip

IMAGE_SETTINGS = (
    one("v2-images", _V2_IMAGES, _ALL3),
    one("v2-images-handler", _V2_IMAGES + _HANDLER, _ALL3),
    one("v2-images-snapshotter", _V2_IMAGES + _SNAPSHOTTER, _ALL3),
    one("v2-images-all", _V2_IMAGES + _SNAPSHOTTER + _HANDLER, _ALL3),
    one("v2-images-both-names", _V2_IMAGES + _SNAPSHOTTER + _HANDLER
        + f"[{IMAGES}]\nsnapshotter = 'overlayfs'\nmax_concurrent_downloads = 9\n"
        f"[{IMAGES}.pinned_images]\nother = 'x'\n", _ALL3),
    one("v2-images-in-drop-in", f"version = 2\n{_GLOB}{_HANDLER}", _ALL3,
        files={"conf.d/10-images.toml": _V2_IMAGES + _SNAPSHOTTER}),
    one("v2-images-after-ours", f"version = 2\n{_GLOB}", _ALL3,
        files={"conf.d/zz-images.toml": _V2_IMAGES + _SNAPSHOTTER}),
    one("v3-images-v2-drop-in", f"version = 3\n{_GLOB}[{IMAGES}]\nsnapshotter = 'native'\n", _ALL3,
        files={"conf.d/10-images.toml": _V2_IMAGES}),
    one("v2-handler-sandbox-mode", "version = 2\n" + _HANDLER + "sandbox_mode = 'podsandbox'\n"
        "snapshotter = 'native'\n", _ALL3),
)  # fmt: skip

IMPORTS = (
    one("import-relative", "version = 2\nimports = ['conf.d/*.toml']\n", _ALL3, ("runc", "site"),
        files={"conf.d/50-site.toml": "version = 2\n" + handlers(2, "site")}),
    one("import-dotted", "version = 3\nimports = ['./conf.d/../site/*.toml']\n", _ALL3,
        ("runc", "site"), files={"site/a.toml": "version = 3\n" + handlers(3, "site")}),
    one("import-literal", "version = 3\nimports = ['@NODE@/etc/containerd/site.toml']\n", _ALL3,
        ("runc", "site"), files={"site.toml": "version = 3\n" + handlers(3, "site")}),
    one("import-ours", "version = 3\nimports = ['conf.d/99-nvidia.toml']\n", _ALL3,
        files={"conf.d/99-nvidia.toml": "# reserved\n"}),
    one("import-missing", "version = 3\nimports = ['site.toml']\n", spread(DOWN, DOWN)),
    one("import-no-directory", "version = 2\nimports = ['/no/such/*.toml']\n", _ALL3),
    one("import-twice", "version = 3\nimports = ['a.toml', '@NODE@/etc/containerd/*a.toml']\n",
        _ALL3, ("runc", "site"), files={"a.toml": "version = 3\n" + handlers(3, "site")}),
    one("import-itself", "version = 3\nimports = ['config.toml', '*.toml']\n", _ALL3),
    one("import-nested", "version = 3\nimports = ['a.toml']\n", _ALL4, ("runc", "site"),
        files={"a.toml": "version = 3\nimports = ['deep/*.toml']\n" + handlers(3, "site"),
               "deep/b.toml": f"version = 3\n[{V3}]\n{_OFF}"}),
    one("import-nested-v2", "version = 2\nimports = ['a.toml']\n", _ALL4, ("runc", "site"),
        files={"a.toml": "imports = ['deep/*.toml']\n" + handlers(2, "site"),
               "deep/b.toml": f"version = 2\n[{V2}]\n{_OFF}"}),
    one("import-no-star", "version = 3\nimports = ['@NODE@/etc/containerd/con?.toml']\n",
        spread(DOWN, DOWN)),
    one("import-middle", "version = 3\nimports = ['@NODE@/etc/containerd/*/99-nvidia.toml']\n",
        _ALL3),
    one("forgotten", f"version = 3\n[{V3}]\nenable_selinux = true\n", _ALL3,
        files={"conf.d/50-x.toml": f"version = 3\n[{V3}]\n{_OFF}"}),
    one("forgotten-v2", f"version = 2\n{_HANDLER}", _ALL3,
        files={"conf.d/50-x.toml": "version = 4\nbroken = [\n"}),
    one("forgotten-at-our-path", "version = 3\n", spread(
        Refused(3, "99-nvidia.toml"), Refused(3, "99-nvidia.toml")),
        files={"conf.d/99-nvidia.toml": f"version = 3\n[{V3}]\nenable_selinux = true\n"}),
    one("frozen-asleep-v4", "version = 2\n", spread(
        Refused(3, "99-nvidia.toml"), Refused(3, "99-nvidia.toml")),
        files={"conf.d/99-nvidia.toml": "version = 4\n" + handlers(3, *OURS)}),
)  # fmt: skip

DISABLED = (
    one("disabled-v2", "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n",
        spread(_DISABLED, _DISABLED)),
    one("disabled-v3", "version = 3\ndisabled_plugins = ['io.containerd.cri.v1.runtime']\n",
        spread(_DISABLED, _DISABLED)),
    one("disabled-images", "version = 3\ndisabled_plugins = ['io.containerd.cri.v1.images']\n",
        spread(_DISABLED, _DISABLED)),
    one("disabled-none", "disabled_plugins = ['cri']\n", spread(_DISABLED, _DISABLED)),
    one("disabled-v1", "version = 1\ndisabled_plugins = ['cri']\n", spread(_DISABLED, _DISABLED)),
    one("disabled-short-v2", "version = 2\ndisabled_plugins = ['cri']\n", spread(DOWN, DOWN)),
    one("disabled-in-drop-in", f"version = 3\n{_GLOB}", spread(_DISABLED, _DISABLED),
        files={"conf.d/a.toml": "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n"}),
    one("disabled-other", "version = 3\ndisabled_plugins = ['io.containerd.snapshotter.v1.zfs']\n",
        _ALL3),
)  # fmt: skip

LATE = (
    # After ours, and in a spelling that only some versions read.
    one("late-off-old-name", f"version = 3\n{_GLOB}", spread(ROW3, ROW4),
        files={"conf.d/zz.toml": f"version = 3\n[{V2}]\n  {_OFF}"}),
    one("late-stale-none", f"version = 3\n{_GLOB}", _ALL3, ("nvidia", "runc"),
        files={"conf.d/zz.toml": handlers(3, "nvidia", binary="/old/nvidia-container-runtime")}),
    one("late-stale-v2", f"version = 2\n{_GLOB}{_HANDLER}", _ALL3, ("nvidia", "runc"),
        default="nvidia", files={"conf.d/zz.toml": "version = 2\n" + handlers(
            2, "nvidia", default="nvidia", binary="/old/nvidia-container-runtime")}),
    one("late-v2-below-v4", _SERVERS.replace("4\n", "4\n" + _GLOB, 1), _NEW4, ("nvidia", "runc"),
        files={"conf.d/zz.toml": f"version = 2\n[{V2}]\n{_OFF}" + handlers(
            2, "nvidia", binary="/old/nvidia-container-runtime")}),
    one("late-v1-below-v3", f"version = 3\n{_GLOB}", _NEW4, ("nvidia", "runc"),
        files={"conf.d/zz.toml": f"version = 1\n[{V1}]\n{_OFF}" + handlers(
            1, "nvidia", binary="/old/nvidia-container-runtime")}),
)  # fmt: skip

_KEEP = ("--enable-cdi-in-runtime=false",)
_ALL5, _NEW5 = spread(ROW5, ROW5), dict.fromkeys(NEW, ROW5)
# CDI is off and has to stay so: ours becomes the default, wherever the default is said.
LOCKED = tuple(
    replace(shape, options=_KEEP)
    for shape in (
        one("locked-v4", _V4 + f"[{V3}]\n{_OFF}", _NEW5),
        one("locked-v2-new-name", f"version = 2\n{_HANDLER}[{V3}]\n{_OFF}", _ALL5),
        one("locked-v2-default-new-name", f"version = 2\n[{V2}]\n{_OFF}"
            + handlers(2, "site", "runc") + f"[{V3}.containerd]\ndefault_runtime_name = 'site'\n",
            _ALL5, ("runc", "site"), default="site", base="site"),
        one("locked-v3-old-name", f"version = 3\n[{V2}]\n{_OFF}"
            + handlers(2, "site", default="site"), _NEW5, ("runc", "site"), default="site",
            base="site"),
        one("locked-v3-late-v2", f"version = 3\n{_GLOB}", _ALL5, ("runc", "site"), default="site",
            base="site", files={"conf.d/zz.toml": f"version = 2\n[{V2}]\n{_OFF}"
                                + handlers(2, "site", default="site")}),
        one("locked-v1", f"version = 1\n[{V1}]\n{_OFF}", _NEW5),
    )
)  # fmt: skip

_NV = "/old/nvidia-container-runtime"
_SOLE2, _SOLE3 = (handlers(number, "nvidia", default="nvidia", binary=_NV) for number in (2, 3))
_TYPED = f"[{V3}.containerd.runtimes.runc]\nruntime_type = '{{}}'\n"
_V1_TYPE = _TYPED.format("io.containerd.runc.v1")
_UNABLE = Refused(3, "no runtime_type")
_TWO = ("nvidia", "runc")


def sole(name: str, text: str, cells: Mapping[str, Expected], **files: str) -> Texts:
    """A node whose only handler besides the built-in one is NVIDIA's: runc gets its options."""
    found = one(name, text, cells, _TWO, default="nvidia", base="nvidia",
                files={f"conf.d/{key}.toml": value for key, value in files.items()})  # fmt: skip
    return replace(found, carried=True)


# The default is NVIDIA's, or cannot run pods.
DEFAULTS = (
    sole("sole-v2", f"version = 2\n{_SOLE2}", _ALL3),
    sole("sole-v4", _SERVERS + _SOLE3, _NEW3),
    sole("sole-late-default", f"version = 3\n{_GLOB}" + handlers(3, "nvidia", binary=_NV), _ALL3,
         zz=f"version = 3\n[{V3}.containerd]\ndefault_runtime_name = 'nvidia'\n"),
    sole("sole-runc-v1", f"version = 3\n{_GLOB}{_SOLE3}", _ALL3,
         **{"50": f"version = 3\n{_V1_TYPE}"}),
    sole("sole-untyped", f"version = 3\n{_GLOB}{_SOLE3}", _ALL3,
         **{"50": "version = 3\n" + _TYPED.format("")}),
    one("untyped-v4", _SERVERS + _TYPED.format(""), dict.fromkeys(NEW, _UNABLE)),
    one("runc-v1-v4", _SERVERS + _V1_TYPE, dict.fromkeys(NEW, _UNABLE)),
    one("no-sandboxer-v4", _SERVERS + handlers(3, "runc", "nvidia", binary="/old/{}").replace(
        " # as ever", "\nsandboxer = ''"), _NEW3, _TWO),
)  # fmt: skip

SINGLES = (*DEFAULTS, *LOCKED, *NAMES, *IMAGE_SETTINGS, *IMPORTS, *DISABLED, *LATE)
