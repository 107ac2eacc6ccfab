"""What can be seen in a directory at every moment, for a runtime that reads whatever is there.

    with DirectoryWatch(node.drop_ins) as watch:
        node.agent("apply")
    assert watch.strange([node.drop_in.read_bytes()]) == []

The kernel reports every name that comes or goes and every write to a file that has a name there,
so nothing is too quick to be seen; the bytes behind the names are read as often as possible.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Self

_MODIFY, _MOVED_FROM, _MOVED_TO = 0x2, 0x40, 0x80
_CREATE, _DELETE = 0x100, 0x200
_OVERFLOW, _ISDIR = 0x4000, 0x40000000
_HEAD = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Watch one directory from entering to leaving.

    `names` are all that were ever there, `contents` the bytes that were seen behind each, `written`
    the names of files that were written while they had one, `directories` the sub-directories.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: set[str] = set()
        self.directories: set[str] = set()
        self.written: set[str] = set()
        self.contents: dict[str, set[bytes]] = {}
        self._files: dict[str, str] = {}
        self._stop = threading.Event()
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        mask = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, bytes(self.directory), mask) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {self.directory}")
        self._list()
        for name in self.names:
            self._note_file(name)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read_events()
        self._list()
        os.close(self._fd)
        assert self._failed is None, self._failed

    def strange(self, complete: Collection[bytes]) -> list[str]:
        """Say what a runtime could have read there besides these complete files."""
        found = [f"{name}: a directory" for name in sorted(self.directories)]
        found += [f"{name}: written under its name" for name in sorted(self.written)]
        for name, seen in sorted(self.contents.items()):
            found += [f"{name}: {data!r}" for data in sorted(seen) if data not in complete]
        return found

    def _loop(self) -> None:
        while not self._stop.is_set():
            select.select([self._fd], [], [], 0)
            self._read_events()
            self._list()

    def _read_events(self) -> None:
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._fd, 1 << 16)
        at = 0
        while at < len(data):
            _, mask, _, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size + size
            name = os.fsdecode(data[at - size : at].rstrip(b"\0"))
            if mask & _OVERFLOW:
                self._failed = "more happened than could be told"
            elif mask & _ISDIR:
                self.directories.add(name)
            elif mask & _MODIFY:
                self._note_write(name)
            else:
                self.names.add(name)
                self._look(name)
                if mask & (_CREATE | _MOVED_TO):
                    self._note_file(name)

    def _note_file(self, name: str) -> None:
        with suppress(OSError):
            self._files[f"#{Path(self.directory, name).lstat().st_ino}"] = name

    def _note_write(self, name: str) -> None:
        """Through a descriptor that never had a name the kernel calls the file `#` and its number,
        also after it got one; before that nobody can see what is written."""
        name = self._files.get(name, name)
        if name in self.names:
            self.written.add(name)
            self._look(name)

    def _list(self) -> None:
        for entry in os.scandir(self.directory):
            if entry.is_dir(follow_symlinks=False):
                self.directories.add(entry.name)
            else:
                self.names.add(entry.name)
                self._look(entry.name)

    def _look(self, name: str) -> None:
        with suppress(OSError):
            data = Path(self.directory, name).read_bytes()
            self.contents.setdefault(name, set()).add(data)
