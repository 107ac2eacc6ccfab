"""An install directory that does not last, or that others can change, is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.cli_node import CliNode, Refusal, fails, refuses, shows
from tests.cli.hosted import HostedNode
from tests.cli.installing import CONFIG, RUNTIME, SourceNode, beside, put_foreign
from tests.cli.namespace import Namespace
from tests.conformance import checks
from tests.conformance.trees import snapshot, touched

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root: run tests/run as root")

_OFF = "--cdi-enabled=false"
_TMPFS = ("-t", "tmpfs", "-o", "mode=0755", "tmpfs")


def in_place(node: SourceNode) -> Path:
    """The install directory, made."""
    node.toolkit.parent.mkdir()
    return node.toolkit.parent


def cover(node: SourceNode, namespace: Namespace, kind: str) -> str:
    """Mount something over the install directory; gives what is said of it."""
    directory = str(in_place(node))
    if kind == "noexec":
        namespace.mount("--bind", directory, directory)
        namespace.mount("-o", "remount,bind,noexec", directory)
        return "no program can be run there (noexec)"
    namespace.mount("-t", kind, "-o", "mode=0755", kind, directory)
    return f"it is on {kind}, and empty after a reboot"


@as_root
def test_read_only_install_directory_is_refused(sourced: SourceNode, namespace: Namespace) -> None:
    """Nothing else is changed either."""
    namespace.read_only(in_place(sourced))
    refusal = Refusal(3, f"cannot install the toolkit in {sourced.toolkit}: it cannot be written")
    refuses(sourced, refusal, prefix=namespace.prefix, commands=("apply", "apply"))
    assert list(sourced.toolkit.parent.iterdir()) == []


@as_root
def test_upgrade_in_a_read_only_directory_is_refused(
    sourced: SourceNode, namespace: Namespace
) -> None:
    """A node that is right is, also where nothing can be written; an upgrade is refused."""
    checks.done(sourced.agent("apply"))
    namespace.read_only(sourced.toolkit.parent)
    checks.done(sourced.agent("apply", prefix=namespace.prefix))
    before = snapshot(sourced.toolkit.parent)
    refusal = Refusal(3, "it cannot be written")
    option = "--nvidia-container-runtime.log-level=debug"
    refuses(sourced, refusal, option, prefix=namespace.prefix, commands=("apply", "apply"))
    assert touched(before, snapshot(sourced.toolkit.parent)) == []
    fails(sourced.agent("revert --toolkit", prefix=namespace.prefix), 3, "cannot remove")


@as_root
@pytest.mark.parametrize(
    ("version", "options", "row"),
    [("2.1.9", (), 3), ("2.1.9", (_OFF,), 1), ("1.6.20", (), 6)],
    ids=["row-3", "row-1", "row-6"],
)
def test_read_only_toolkit_is_used_as_it_is(
    version: str, options: tuple[str, ...], row: int, place: Path, namespace: Namespace
) -> None:
    """It is used as it is, and what that means is said."""
    with CliNode(place, version) as node:
        before = snapshot(node.toolkit)
        namespace.read_only(node.toolkit.parent)
        plan = node.agent("plan", *options, "-o", "json", prefix=namespace.prefix)
        data = shows(plan, "Plan", 1)
        assert data["decision"]["row"] == row
        told = [text for text in data["warnings"] if "is used as it is" in text]
        assert len(told) == 1
        assert ("the prefix nvidia.cdi.k8s.io/" in told[0]) == (row == 6)
        checks.done(node.agent("apply", *options, prefix=namespace.prefix))
        answer = node.answer()
        options_of = answer.runtimes["nvidia"]["options"]
        assert options_of["BinaryName"] == str(node.toolkit / RUNTIME)
        assert node.agent("plan", *options, prefix=namespace.prefix).returncode == 0
        assert touched(before, snapshot(node.toolkit)) == []


@as_root
@pytest.mark.parametrize(
    ("version", "options", "row", "kind"),
    [
        ("2.1.9", (_OFF,), 1, "tmpfs"),
        ("2.1.9", (), 3, "tmpfs"),
        ("2.1.9", (), 3, "noexec"),
        ("1.7.24", (), 4, "tmpfs"),
        ("1.7.24", ("--enable-cdi-in-runtime=false",), 5, "noexec"),
        ("1.6.20", (), 6, "tmpfs"),
        ("1.6.20", (), 6, "ramfs"),
        ("1.6.20", (), 6, "noexec"),
    ],
)
def test_place_gone_after_a_reboot_is_refused_where_containers_need_it(
    place: Path, namespace: Namespace, version: str, options: tuple[str, ...], row: int, kind: str
) -> None:
    """Refused where every container would need it."""
    with SourceNode(place, version) as node:
        says = cover(node, namespace, kind)
        if row in (1, 5, 6):
            refuses(node, Refusal(3, says), *options, prefix=namespace.prefix,
                    commands=("apply", "apply"))  # fmt: skip
            plan = shows(node.agent("plan", *options, "-o", "json", prefix=namespace.prefix),
                         "Plan", 1)  # fmt: skip
            assert any(says in text for text in plan["warnings"])
        else:
            done = node.agent("apply", *options, "-o", "json", prefix=namespace.prefix)
            assert shows(done, "Outcome")["decision"]["row"] == row
            assert node.ready()


@as_root
def test_default_by_option_is_refused_on_tmpfs(sourced: SourceNode, namespace: Namespace) -> None:
    """It is the default that matters, not the row."""
    says = cover(sourced, namespace, "tmpfs")
    option, prefix = "--set-as-default=true", namespace.prefix
    refuses(sourced, Refusal(3, says), option, prefix=prefix, commands=("apply",))
    checks.done(sourced.agent("apply", prefix=prefix))


@as_root
def test_foreign_configuration_may_have_the_toolkit_on_tmpfs(
    place: Path, namespace: Namespace
) -> None:
    """The row would have nvidia as default; nobody makes it that, so that nothing depends on it."""
    with SourceNode(place, "1.6.20") as node:
        cover(node, namespace, "tmpfs")
        env = {"NO_RUNTIME_CONFIG": "true"}
        checks.done(node.agent("apply", env=env, prefix=namespace.prefix))
        assert node.answer().default == "runc"


@as_root
def test_files_are_exchanged_one_by_one_on_overlay(
    sourced: SourceNode, namespace: Namespace
) -> None:
    """A directory from a layer below cannot change places with another one: a node's image has a
    toolkit. Each file takes its own place, and gets it back."""
    lower, upper, place = (sourced.directory / name for name in ("lower", "upper", "nvidia"))
    put_foreign(lower / "toolkit")
    upper.mkdir()
    place.mkdir()
    namespace.mount(*_TMPFS, str(upper))
    prefix = namespace.prefix
    subprocess.run([*prefix, "mkdir", upper / "new", upper / "work"], check=True)
    layers = f"lowerdir={lower},upperdir={upper}/new,workdir={upper}/work"
    namespace.mount("-t", "overlay", "overlay", "-o", layers, str(place))

    def look(*words: str) -> list[str]:
        script = f'cd {place} && exec find . "$@"'  # the directory is another one out here
        argv = [*prefix, "sh", "-c", script, "sh", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return sorted(done.stdout.splitlines())

    before = look("-printf", "%p %m %l\n"), look("-type", "f", "-exec", "md5sum", "{}", ";")
    checks.done(sourced.agent("apply", prefix=prefix))
    assert f"./toolkit/{RUNTIME}-hook.real" in look()
    assert not [name for name in look("-maxdepth", "1") if name.endswith("~")]
    assert sourced.agent("plan", prefix=prefix).returncode == 0
    checks.done(sourced.agent("revert --toolkit", prefix=prefix))
    assert (
        look("-printf", "%p %m %l\n"),
        look("-type", "f", "-exec", "md5sum", "{}", ";"),
    ) == before


@as_root
def test_mount_as_install_directory_is_refused(sourced: SourceNode, namespace: Namespace) -> None:
    """A new directory could not take its place."""
    sourced.toolkit.mkdir(parents=True)
    namespace.mount(*_TMPFS, str(sourced.toolkit))
    refuses(sourced, Refusal(3, "it is a mount point"), prefix=namespace.prefix,
            commands=("apply", "apply"))  # fmt: skip
    assert list(sourced.toolkit.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
@pytest.mark.parametrize("which", ["toolkit", "above"])
def test_install_directory_that_others_can_write_is_refused(
    sourced: SourceNode, which: str, mode: int
) -> None:
    """They would become root with the next container."""
    sourced.toolkit.mkdir(parents=True)
    path = sourced.toolkit if which == "toolkit" else sourced.toolkit.parent
    path.chmod(mode)
    before = snapshot(sourced.toolkit.parent)
    subject = "it" if which == "toolkit" else path
    refusal = Refusal(3, f"{subject} can be written by others (mode {mode:04o})")
    refuses(sourced, refusal, commands=("apply", "apply"))
    assert touched(before, snapshot(sourced.toolkit.parent)) == []
    path.chmod(0o755)
    checks.done(sourced.agent("apply"))


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root: run tests/run as root")
def test_directory_of_another_user_is_refused(sourced: SourceNode) -> None:
    """The same."""
    sourced.toolkit.mkdir(parents=True)
    os.chown(sourced.toolkit.parent, 4711, 0)
    refusal = Refusal(3, f"{sourced.toolkit.parent} belongs to user 4711")
    refuses(sourced, refusal, commands=("apply",))


@pytest.mark.parametrize("which", ["toolkit", "above"])
def test_link_as_install_directory_is_followed_and_stays(sourced: SourceNode, which: str) -> None:
    """Followed once: what it leads to is the directory, and the link stays."""
    real = sourced.directory / "disk"
    real.mkdir()
    if which == "above":
        sourced.toolkit.parent.symlink_to(real)
        goal = real / "toolkit"
    else:
        (real / "tools").mkdir()
        sourced.toolkit.parent.mkdir()
        sourced.toolkit.symlink_to(real / "tools")
        goal = real / "tools"
    link = sourced.toolkit.parent if which == "above" else sourced.toolkit
    target = os.readlink(link)
    checks.done(sourced.agent("apply"))
    assert os.readlink(link) == target
    assert str(goal / RUNTIME) in sourced.drop_in.read_text()
    assert str(goal) in (goal / RUNTIME).read_text()
    before = snapshot(real)
    checks.done(sourced.agent("apply"))
    assert touched(before, snapshot(real)) == []
    checks.done(sourced.agent("revert --toolkit"))
    assert os.readlink(link) == target
    assert not (goal / RUNTIME).exists()


def test_file_as_install_directory_is_refused(sourced: SourceNode) -> None:
    """Nobody's toolkit is removed for it."""
    in_place(sourced)
    sourced.toolkit.write_text("mine")
    refuses(sourced, Refusal(3, str(sourced.toolkit)), commands=("apply", "apply"))
    assert sourced.toolkit.read_text() == "mine"
    assert beside(sourced.toolkit) == ["toolkit"]


@pytest.mark.parametrize("which", ["usr/local/nvidia", "usr/local/nvidia/toolkit"])
def test_install_directory_that_leads_out_of_the_host_is_refused(
    empty_host: HostedNode, which: str
) -> None:
    """Refused, and what it leads to is left alone."""
    outside = empty_host.directory / "outside"
    outside.mkdir()
    link = empty_host.host / which
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(f"{'../' * 9}{str(outside)[1:]}")
    refuses(empty_host, Refusal(3, "leads out of the host root", None), commands=("plan", "apply"))
    assert list(outside.iterdir()) == []


def test_dangling_install_directory_is_refused(sourced: SourceNode) -> None:
    """Refused: what is behind it may come back."""
    sourced.toolkit.parent.symlink_to(sourced.directory / "disk/nvidia")
    refuses(sourced, Refusal(3, str(sourced.toolkit.parent), None), commands=("plan", "apply"))
    assert not (sourced.directory / "disk").exists()


def test_another_install_directory_takes_the_handlers_along(sourced: SourceNode) -> None:
    """With another install directory the handlers move there, and the old one goes."""
    checks.done(sourced.agent("apply"))
    other = sourced.directory / "a b/nvidia's"
    done = sourced.agent("apply", f"--toolkit-install-dir={other}")
    checks.done(done)
    # The status file has no such characters, and another path would lead nowhere.
    assert "NVIDIA_CDI_HOOK_PATH is not published" in done.stderr
    assert b"NVIDIA_CDI_HOOK_PATH" not in (sourced.ready() or b"")
    assert str(other / "toolkit" / RUNTIME) in sourced.drop_in.read_text()
    assert not sourced.toolkit.exists()
    assert str(other) in (other / "toolkit" / CONFIG).read_text()
