"""Feed every reader of foreign input with damaged inputs, by hand:

    python -m tests.bench.fuzz [--minutes N] [--reader NAME] [--seed WORD] [--keep DIRECTORY]

Inputs are mutations of well-formed examples (`fuzz_readers.py`). A reader may raise its documented
errors and nothing else; one input may take five seconds of CPU time and 100 MiB more memory than
the reader's process has at its start, and must not end the process. Each reader runs in a process
of its own, so that a crash and a loop in C are found too. Prints what each reader did; an input
that fails is saved, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 5.0  # CPU time of one input
MEMORY = 100 << 10  # KiB more than at the start
LARGEST = 6 << 20  # bytes of an input; above all budgets of size but those of state and mounts
_HEAD = struct.Struct("<QQQ")  # runs, failures seen, length of the input

# Words that make trouble for one format or the other.
WORDS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff", b"\r", b"\r\n", b"\n", b'"', b"'", b'"""', b"'''",
    b"\\", b"\\ud800", b"\\u0000", b"\\/", b"{", b"}", b"[", b"]", b"[[", b"]]", b"{}", b"[]", b":",
    b",", b"=", b"#", b".", b"-", b"- ", b"&a ", b"*a", b"<<: *a", b"!!binary ", b"!!int ", b"? ",
    b"%YAML 1.2\n---\n",
    b"---\n", b"...\n", b"null", b"~", b"true", b"NaN", b"nan", b"inf", b"-inf",
    b"Infinity", b"1e999", b"-1", b"0", b"9" * 25, b"9" * 5000, b"0x", b"1:0", b"1979-05-27",
    b"a.b.c", b"..", b"../..", b"/", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\x80" * 9 + b"\x01",
    b"\xff\xff\xff\xff", b"\xff" * 8, b"\x7fELF", b"level=error msg=", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"kind", b"devices", b"version", b"imports", b"plugins",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A reader of foreign input: what it is fed with, and which errors it documents. `shape`
    changes an example as its format asks for; without it only bytes are changed."""

    name: str
    read: Callable[[bytes], object]
    examples: Sequence[bytes]
    allowed: tuple[type[BaseException], ...] = ()
    shape: Callable[[random.Random, bytes], bytes] | None = None


@dataclass
class Result:
    """What became of a reader: how many inputs it got, and the inputs that failed, with why."""

    name: str
    runs: int = 0
    failures: list[tuple[str, bytes]] = field(default_factory=list)


def mutated(rng: random.Random, reader: Reader) -> bytes:
    """One input."""
    data = rng.choice(reader.examples)
    if reader.shape is not None and rng.random() < 0.6:
        data = reader.shape(rng, data)
        if rng.random() < 0.7:
            return data[:LARGEST]
    for _ in range(1 + int(rng.expovariate(0.4))):
        data = _step(rng, data, reader.examples)
    return data[:LARGEST]


def _step(rng: random.Random, data: bytes, examples: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + 1 + int(rng.expovariate(0.05)))
    part = data[at:end]
    match rng.randrange(9):
        case 0:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + part * rng.choice((2, 3, 50)) + data[end:]
        case 3:
            return data[:at] + rng.choice(WORDS) + data[at:]
        case 4:
            return data[:at] + rng.choice(WORDS) + data[end:]
        case 5:
            other = rng.choice(examples)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case 6:
            return data[:at]
        case 7 if data and at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case _ if rng.random() < 0.1:  # much of one thing
            word = rng.choice((*WORDS, part or b"a"))
            count = rng.choice((1000, 20_000, 200_000))
            return data[:at] + word * min(count, (2 << 20) // len(word)) + data[at:]
    return data


class _Shared:
    """What a process that runs a reader shows to its parent: how far it is, and its input."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + LARGEST)

    def begin(self, runs: int, data: bytes) -> None:
        """Before an input is read."""
        self._memory[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, 0, runs, 0, len(data))

    def now(self) -> tuple[int, bytes]:
        """The number of the input, and the input."""
        runs, _, length = _HEAD.unpack_from(self._memory, 0)
        return runs, self._memory[_HEAD.size : _HEAD.size + length]


def run(reader: Reader, seconds: float, seed: str) -> Result:
    """Feed a reader for so long; after a failure it goes on in a new process."""
    result = Result(reader.name)
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(result.failures) < 20:
        shared = _Shared()
        rng = random.Random(f"{seed} {reader.name} {result.runs}")  # noqa: S311 - no secret
        pipe, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(pipe)
            _child(reader, shared, rng, end, writer)
        os.close(writer)
        why = _follow(pid, shared)
        with open(pipe, encoding="utf-8") as said:
            why = said.read() or why
        runs, data = shared.now()
        result.runs += runs
        if why:
            result.failures.append((why, data))
    return result


def _child(reader: Reader, shared: _Shared, rng: random.Random, end: float, writer: int) -> None:
    """Read inputs to the end or to a failure, which is told to the parent."""
    code = 0
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for data in reader.examples:
            with contextlib.suppress(*reader.allowed):
                reader.read(data)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs = 0
        while time.monotonic() < end:
            data = mutated(rng, reader)
            runs += 1
            shared.begin(runs, data)
            with contextlib.suppress(*reader.allowed):
                reader.read(data)
            more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
            if more > MEMORY:
                os.write(writer, f"{more >> 10} MiB more".encode())
                break
    except BaseException:  # noqa: BLE001 - that is what is looked for
        os.write(writer, traceback.format_exc()[-3000:].encode("utf-8", "backslashreplace"))
        code = 1
    finally:
        os._exit(code)


def _follow(pid: int, shared: _Shared) -> str:
    """Wait for a child; gives how it failed where it cannot say so itself."""
    runs, since = 0, 0.0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return f"ended by signal {-code}" if code < 0 else f"ended with {code}" if code else ""
        now, used = shared.now()[0], _cpu(pid)
        if now != runs:
            runs, since = now, used
        elif used - since > SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"more than {SECONDS:g} s"
        time.sleep(0.1)


def _cpu(pid: int) -> float:
    """Seconds that a process has used."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except OSError:
        return 0.0


def report(results: Sequence[Result], keep: Path) -> int:
    """Print what became of the readers, save the inputs that failed; gives the exit code."""
    for result in results:
        print(f"{result.name:20} {result.runs:9} runs, {len(result.failures)} failures")
        for number, (why, data) in enumerate(result.failures):
            keep.mkdir(parents=True, exist_ok=True)
            path = keep / f"{result.name}-{number}"
            path.write_bytes(data)
            print(f"  {path} ({len(data)} bytes):")
            print("".join(f"    {line}\n" for line in why.strip().splitlines()[-8:]), end="")
    return 1 if any(result.failures for result in results) else 0


def main() -> int:
    """The arguments are those of the docstring."""
    from tests.bench.fuzz_readers import READERS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all readers together")
    parser.add_argument("--reader", choices=[reader.name for reader in READERS], action="append")
    parser.add_argument("--seed", default=str(time.time_ns()))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz-failures"))
    given = parser.parse_args()
    wanted = [one for one in READERS if given.reader is None or one.name in given.reader]
    print(f"seed {given.seed}")
    seconds = given.minutes * 60 / len(wanted)
    results = []
    for reader in wanted:
        results.append(run(reader, seconds, given.seed))
        report(results[-1:], given.keep)
        sys.stdout.flush()
    return 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
