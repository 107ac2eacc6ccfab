"""The toolkit's pod of gpu-operator, in a mount namespace of its own.

    with Pod(node, environment, binds) as pod:
        pod.until(lambda: ...)

Its root directory is a layer over this machine's, with nothing of the node in it but what the
operator mounts: the node's root at /host, read-only all through, and the directories of `binds`. It
runs among the node's processes, by the operator's own script, with a PATH of its own in which
`nvidia-toolkit` is the program under test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from tests.operator.environment import MOUNTS, SCRIPT, Bind
from tests.tools.runtimes import ROOT
from tests.tools.waiting import holds_steadily, wait_until

_BIN = "opt/pod/bin"
# Everything that the script calls. Its two waits of five seconds are short ones here.
_SLEEP = "#!/bin/sh\nexec {sleep} 0.2\n"
_PROGRAM = '#!/bin/sh\nexec {python} -c "{code}" "$@"\n'
_CODE = "import sys; sys.path.insert(0, '{root}'); from agent.cli import nvidia_toolkit as m; m()"

# Arguments: the pod's directory, the directories that Python needs, and `HOST POD` of each mount.
# Of the first, those are bound that lie on another mount than the root: the layer does not show
# these, and what it holds itself, in /usr perhaps, would be hidden by a bind.
# What a pod sees of the host is read-only where the operator does not mount it again, also below
# the mounts in there. Its links are those of an image, where /var/run is one to /run.
_MAKE = """
set -e
mkdir -p "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
root=$1/root; shift
mount -t tmpfs tmpfs "$root/run"
for folder in /proc /sys /dev $1; do
    above=$folder
    until [ -z "$above" ] || mountpoint -q "$above"; do above=${above%/*}; done
    if [ -n "$above" ]; then
        mkdir -p "$root$folder"
        mount --rbind "$folder" "$root$folder"
    fi
done
shift
mkdir -p "$root/host"
mount --rbind / "$root/host"
umount -l "$root/host$root"
for folder in / /etc /etc/containerd /opt /run /usr/local /var/lib; do
    if mountpoint -q "$root/host$folder"; then mount -o remount,bind,ro "$root/host$folder"; fi
done
while [ "$1" != -- ]; do
    mkdir -p "$1" "$root$2"
    mount --rbind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" env -i -C / "$@"
"""


class Node(Protocol):
    """A node with mounts of its own."""

    directory: Path

    @property
    def prefix(self) -> Sequence[str]:
        """Words that, before an argument list, run it inside."""


class Pod:
    """The pod from entering to leaving, and again after `restart`; it says what it says in `log`.

    Its layer lies in `node.directory`/layers, which is memory.
    """

    def __init__(self, node: Node, env: Mapping[str, str], binds: Sequence[Bind]) -> None:
        self.node = node
        self.env = dict(env)
        self.binds = (*MOUNTS, *binds)
        self.log = node.directory / "run/pod.log"
        self.number = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The pod's first process, which all that follows becomes."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Make it and start it; the one of before has ended."""
        self.number += 1
        self._process = self.run(f"pod-{self.number}")

    def run(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a container: without words the operator's command, else these in its place."""
        place = self.node.directory / "layers" / name
        self._inside("mkdir", "-p", str(place / "upper"))
        for path, text in _programs().items():
            self._write(place / "upper" / path, text)
        # As in our image: a shell that becomes what it is told to run.
        self._inside("ln", "-s", "bash", str(place / "upper" / _bin() / "sh"))
        variables = [f"{key}={value}" for key, value in self.env.items()]
        folders = " ".join(sorted({str(ROOT), sys.prefix, sys.base_prefix}))
        binds = [word for bind in self.binds for word in (bind.host, _in_image(bind.pod))]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--", *self.node.prefix),
                    *("unshare", "--mount", "--propagation", "private", "--"),
                    *("sh", "-c", _MAKE, "sh", str(place), folders, *binds, "--"),
                    *(f"PATH=/{_BIN}", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", *variables),
                    *(words or ("/bin/sh", "-c", "/bin/entrypoint.sh")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> int:
        """End it as the kubelet does; gives its exit code."""
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def said(self) -> str:
        """What its containers said so far."""
        return self.log.read_text("utf-8")

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds; an assertion fails if it does not, or if the pod ends."""
        wait_until(holds, self.said, lambda: self.process.poll() is None)

    def rest(self) -> None:
        """Wait until it has looked at the node, and has nothing to do."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")

        def waits() -> bool:
            is_supervisor = b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
            return is_supervisor and not children.read_text("ascii")

        self.until(holds_steadily(waits, 50))  # a second, which has two looks of the supervisor

    def _inside(self, *argv: str, data: str = "") -> None:
        words = [*self.node.prefix, *argv]
        subprocess.run(words, input=data, text=True, check=True, capture_output=True, timeout=20)

    def _write(self, path: Path, text: str) -> None:
        script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod 0700 "$1"'
        self._inside("sh", "-c", script, "sh", str(path), data=text)


def _programs() -> dict[str, str]:
    """The pod's own files."""
    code = _CODE.format(root=ROOT)
    return {
        f"{_bin()}/entrypoint.sh": SCRIPT,
        f"{_BIN}/nvidia-toolkit": _PROGRAM.format(python=sys.executable, code=code),
        f"{_BIN}/sleep": _SLEEP.format(sleep=_found("sleep")),
        f"{_BIN}/cat": f'#!/bin/sh\nexec {_found("cat")} "$@"\n',
    }


def _bin() -> str:
    """Where /bin leads, which is a link in this machine's root, or it is none."""
    return os.path.realpath("/bin").lstrip("/")


def _found(name: str) -> str:
    for directory in os.defpath.split(":"):
        if directory and os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise FileNotFoundError(name)


def _in_image(path: str) -> str:
    """A link is followed inside the image, not on the machine that makes the mount."""
    return path.replace("/var/run/", "/run/", 1)
