"""Run the runtime's own executable in the host root, to learn how it reads a file.

Invariant: arguments are a list, never a shell command. Each run has a deadline and a limit for its
output. The output of a program can contain credentials of the configuration. So messages never
quote it directly, and the error in a `Dump` has masked words only.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from agent.errors import Refused
from agent.host import budget
from agent.host.paths import HostRoot
from agent.toml import document, masking
from agent.toml.document import Data
from agent.toml.masking import Source

_NO_ENV: Mapping[str, str] = MappingProxyType({})
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENV = {"PATH": PATH, "LC_ALL": "C"}


@dataclass(frozen=True)
class Output:
    """The result of a command: exit status, standard output, and the end of standard error. If the
    command could not be run to its end, `code` is None and `error` is the reason."""

    code: int | None
    out: bytes = b""
    error: str = ""


def run(
    host: HostRoot, argv: Sequence[str], timeout: float = 30.0, *,
    descriptors: Sequence[int] = (), env: Mapping[str, str] = _NO_ENV,
) -> Output:  # fmt: skip
    """Run a program of the host, by its host path, with the host root as its root directory.

    `timeout` is in seconds. The program inherits `descriptors` under the same numbers. `env` is
    added to a fixed environment (PATH and LC_ALL). Never raises.
    """
    command = list(argv) if host.is_host else ["chroot", host.root, *argv]
    path = os.environ.get("PATH", _ENV["PATH"]) if host.is_host else _ENV["PATH"]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_ENV, "PATH": path, **env},
            pass_fds=descriptors,
        )
    except (OSError, ValueError) as error:  # ValueError: an argument has a NUL byte in it
        return Output(None, error=str(getattr(error, "strerror", None) or error).lower())
    end = time.monotonic() + timeout
    with child:
        try:
            out, errors = _read(child, end)
            code = child.wait(max(end - time.monotonic(), 0))
        except (subprocess.TimeoutExpired, TimeoutError):
            return Output(None, error=f"no answer in {timeout:g} s")
        except budget.OverBudget as error:
            return Output(None, error=f"its output cannot be used: {error}")
        finally:
            child.kill()
    return Output(code, out, errors.decode("utf-8", "replace"))


def _read(child: subprocess.Popen[bytes], end: float) -> tuple[bytes, bytes]:
    """The standard output of a child, and the last bytes of its standard error. Raises TimeoutError
    when the monotonic clock reaches `end`; OverBudget for too much output."""
    assert child.stdout is not None
    assert child.stderr is not None
    out, errors = child.stdout.fileno(), child.stderr.fileno()
    parts: dict[int, bytearray] = {out: bytearray(), errors: bytearray()}
    open_ = set(parts)
    while open_:
        left = end - time.monotonic()
        if left <= 0 or not (ready := select.select(open_, (), (), left)[0]):
            raise TimeoutError
        for fd in ready:
            part = os.read(fd, 1 << 16)
            if not part:
                open_.remove(fd)
            parts[fd] += part
            del parts[errors][: -budget.STDERR.size]
            if len(parts[out]) > budget.DUMP.size:
                raise budget.OverBudget(budget.too_large(budget.DUMP))
    return bytes(parts[out]), bytes(parts[errors])


@dataclass(frozen=True)
class Dump:
    """A parsed `config dump`. If there is none, `data` is None and `error` is the reason.
    `rejected` means that the executable ran and rejected the configuration."""

    data: Data | None
    error: str = ""
    rejected: bool = False


def config_dump(
    host: HostRoot, executable: str, config: str | None, descriptors: Sequence[int] = (),
    sources: Sequence[Source] = (), plugins: Sequence[str] = (),
) -> Dump:  # fmt: skip
    """The output of `containerd -c FILE config dump`; without a file, of `config default`.

    `sources` are the files that containerd reads; they mask its errors. With `plugins`, only the
    settings of these plugins are parsed.
    """
    # `-c` has to come before the sub-command.
    words = ["-c", config, "config", "dump"] if config else ["config", "default"]
    return dump(host, [executable, *words], descriptors, sources, plugins)


def dump(
    host: HostRoot, argv: Sequence[str], descriptors: Sequence[int] = (),
    sources: Sequence[Source] = (), plugins: Sequence[str] = (),
) -> Dump:  # fmt: skip
    """The TOML that a program prints. `argv` has the host path of the program first; `sources` and
    `plugins` are as in `config_dump`."""
    executable = argv[0]
    done = run(host, argv, descriptors=descriptors)
    if done.code is None:
        return Dump(None, f"{executable}: {done.error}")
    if done.code != 0:
        # chroot(1) itself ends with 125 to 127: the executable was not run at all.
        *_, last = done.error.strip().splitlines() or [""]
        message = (entry(last) or {}).get("msg", "")
        error = message or last_words(done.error) or f"exit code {done.code}"
        error = masking.masked_with_keys(error, sources, (executable,))
        return Dump(None, error, rejected=done.code not in range(125, 128))
    try:
        out = _excerpt(done.out, plugins) if plugins else done.out
        return Dump(document.parse(out, f"the output of {executable}"))
    except Refused as error:
        return Dump(None, error.message)


def _excerpt(out: bytes, plugins: Sequence[str]) -> bytes:
    """The part of a dump with the keys above all tables and the tables of these plugins. Each
    header and each value in a dump is one line (observed on 1.6.20, 1.7.24 and 2.1.9)."""
    names = "|".join(map(re.escape, plugins))
    header = re.compile(rf"plugins\.[\"']?(?:{names})[\"']?[.\]]".encode())
    kept, keep = [], True
    for line in out.splitlines(keepends=True):
        if (start := line.lstrip()).startswith(b"["):
            keep = header.match(start.lstrip(b"[")) is not None
        if keep:
            kept.append(line)
    return b"".join(kept)


_PAIR = re.compile(r'(?<!\w)(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def entry(line: str) -> dict[str, str] | None:
    """The keys and values of a log entry, in logfmt or JSON. None if the line is no log entry."""
    if line.startswith("{"):
        try:
            values = budget.json_value(line, budget.LINE)
        except ValueError:
            return None
        return {key: str(value) for key, value in values.items()}
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(line[: budget.LINE.size])}
    return pairs if "level" in pairs else None


def last_words(output: str) -> str:
    """The last lines of a program's output that are not log entries, joined by spaces. There can be
    several lines, because a value that the program quotes can have several."""
    words: list[str] = []
    goes_on = False
    for line in filter(None, map(str.strip, output.splitlines())):
        is_words = entry(line) is None
        if is_words:
            words = [*words, line] if goes_on else [line]
        goes_on = is_words
    return " ".join(words)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", lambda match: {"n": " "}.get(match[1], match[1]), value[1:-1])
