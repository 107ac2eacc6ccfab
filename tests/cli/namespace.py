"""A mount namespace for the program under test alone."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Namespace:
    """A mount namespace for the agent alone, in which directories can be made read-only."""

    def __init__(self) -> None:
        argv = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount"]
        argv += ["--propagation", "private", "--", "sh", "-c", "echo; exec sleep infinity"]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # it is inside
        self.prefix = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--")

    def mount(self, *words: str) -> None:
        """Mount something inside."""
        subprocess.run([*self.prefix, "mount", *words], check=True, capture_output=True)

    def read_only(self, directory: Path) -> None:
        """Make a directory read-only inside."""
        self.mount("--bind", str(directory), str(directory))
        self.mount("-o", "remount,bind,ro", str(directory))

    def close(self) -> None:
        """End it."""
        self._holder.kill()
        self._holder.communicate()
