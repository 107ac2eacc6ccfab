"""Run a command in a fresh clone on a machine that has nothing but Debian's smallest system.

    python3 -m tests.tools.fresh_root [-u] SUITE COMMAND...
    python3 -m tests.tools.fresh_root trixie ./tests/run

The clone is of what is committed here. The system is SUITE's with ca-certificates, git and python3,
in private mount and process namespaces. It uses this machine's network and settings of apt and pip,
including a mirror, and is removed after the command. `-u` runs the command as an ordinary user.
This tool itself needs root, and Python 3.11 or newer without other packages.
Exits as the command does, and with 3 where there can be no such system.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tools.fetch_runtimes import NotHere, archive_and_suites, one_line
from tests.tools.image_tools import ImageTools, unpack
from tests.tools.private_apt import AptError, Source, run_command
from tests.tools.runtimes import ROOT, cache_directory

_PACKAGES = ("ca-certificates", "git", "python3")
_USER = "user"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Settings of pip and of the network that a variable may hold; where the value is a file, it comes
# along.
_VARIABLES = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CLIENT_CERT",
    "PIP_PROXY", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CONFIG_FILE", "SSL_CERT_FILE",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
)  # fmt: skip
_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
_HOME_FILES = (".config/pip/pip.conf", ".pip/pip.conf")

# Arguments: the new root, a directory in it, and what is run there.
_ENTER = """
set -eu
root=$1 directory=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
cd "$root"
mkdir old
pivot_root . old
cd /
umount -l /old
rmdir /old
cd "$directory"
exec "$@"
"""


class Unavailable(Exception):
    """There can be no such system here; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the system, run the command in it, and remove it."""
    parser = argparse.ArgumentParser(description="Run a command in a fresh clone on a bare Debian.")
    parser.add_argument("-u", dest="user", action="store_true", help="as an ordinary user")
    parser.add_argument("suite", help="Debian suite, such as trixie")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run (default: bash)")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of `finally`
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    folder = None
    try:
        if os.geteuid() != 0:
            raise Unavailable("it needs root: run it as root")
        archive = _system(options.suite)
        folder = Path(tempfile.mkdtemp(prefix="fresh-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        root = folder / "root"  # others may enter it, once they are inside
        root.mkdir(mode=0o755)
        home = prepare(root, archive, options.suite, _USER if options.user else "root")
        words = _as_user(home) if options.user else []
        return enter(root, home, [*words, *(options.command or ["bash"])])
    except (Unavailable, AptError, NotHere, AssertionError) as error:
        print(f"fresh_root: cannot make a fresh system: {one_line(error)}", file=sys.stderr)
        return 3
    finally:
        if folder is not None:
            shutil.rmtree(folder)


def _system(suite: str) -> Path:
    """The smallest system in a tar, made once and kept in the cache."""
    cache = cache_directory() / "fresh"
    target = cache / f"{suite}.tar"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        archive, (own, *_) = archive_and_suites()
        tools = cache / f"tools-{own}"
        if not tools.exists():
            unpack(archive, own, tools, ["mmdebstrap"], [])
        with tempfile.TemporaryDirectory(dir=cache, prefix=".tar-") as draft:
            made = Path(draft) / "root.tar"
            ImageTools(tools, cache).bootstrap(made, _PACKAGES, suite)
            made.rename(target)
    return target


def prepare(root: Path, archive: Path, suite: str, who: str) -> Path:
    """Unpack the system into `root`, with this machine's settings and the clone in a home."""
    _run("tar", "-C", str(root), "--numeric-owner", "-xpf", str(archive))
    source, _ = archive_and_suites()
    _write_apt(root / "etc/apt", source, suite)
    home = Path("/root" if who == "root" else f"/home/{who}")
    if who != "root":
        _run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", who)
    named = [os.environ.get(name, "") for name in _VARIABLES]
    for path in [*_FILES, *(value for value in named if value.startswith("/"))]:
        _bring(path, root, path)
    for name in _HOME_FILES:
        _bring(f"{Path.home()}/{name}", root, f"{home}/{name}")
    clone = f"{root}{home}/project"
    # Whoever owns the checkout: it is only read.
    safe = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    _run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), clone, variables=safe)
    _run("chroot", str(root), "chown", "-R", f"{who}:", str(home))
    return home


def _write_apt(etc: Path, source: Source, suite: str) -> None:
    """The mirror of this machine, and how it is reached."""
    trusted = "[trusted=yes] " if source.trusted else ""
    (etc / "sources.list").write_text(f"deb {trusted}{source.uri} {suite} main\n")
    dump = ("apt-config", "dump", "--format", '%F "%v";%n', "Acquire::http", "Acquire::https")
    said = run_command(dump).stdout
    (etc / "apt.conf.d/90machine").write_text(said)


def enter(root: Path, home: Path, command: Sequence[str]) -> int:
    """Run it in the clone, in namespaces that end with it; its exit code."""
    machine = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    own = {"HOME": str(home), "PATH": _PATH, "LANG": "C.UTF-8"}
    if "TERM" in os.environ:
        own["TERM"] = os.environ["TERM"]
    namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
    words = [
        *("setpriv", "--pdeathsig", "KILL", "--", "unshare", *namespaces, "--"),
        *("sh", "-c", _ENTER, "sh", str(root), f"{home}/project", *command),
    ]
    code = subprocess.run(words, env=machine | own, check=False).returncode
    return code if code >= 0 else 128 - code


def _as_user(home: Path) -> list[str]:
    rights = ("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--")
    return [*rights, "env", f"USER={_USER}", f"HOME={home}"]


def _bring(path: str, root: Path, inside: str) -> None:
    """Copy a file of this machine, if there is one."""
    if not Path(path).is_file():
        return
    target = Path(f"{root}{inside}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a link, perhaps
    shutil.copyfile(path, target)


def _run(*argv: str, variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, env={**os.environ, **(variables or {})}, stdin=subprocess.DEVNULL, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise Unavailable(f"{argv[0]} ended with {done.returncode}: {done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
