"""The scripted CRI-O's command line: the real one's commands, and the daemon."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket as sockets
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.doubles.crio import flags
from tests.doubles.crio.generation import Generation, Table, generation_of
from tests.doubles.crio.load import RefusedError, load
from tests.doubles.crio.script import read_script
from tests.doubles.crio.status import template_text
from tests.doubles.crio.validate import validate
from tests.doubles.runtime.script import TRIAL_VARIABLE

_OWN_PLACES = (
    "root", "runroot", "log-dir", "version-file", "version-file-persist", "clean-shutdown-file",
    "container-exits-dir", "container-attach-socket-dir", "namespaces-dir",
    "irqbalance-config-restore-file",
)  # fmt: skip
_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
_BUILD = "GitCommit:      unknown\nGoVersion:      go1.27.1\nPlatform:       linux/amd64\n"


def crio(version: str, arguments: Sequence[str]) -> int:
    """Do what the command `crio` with these arguments does; gives the exit status."""
    parser = argparse.ArgumentParser(prog="crio", allow_abbrev=False)
    flags.add_to(parser)
    parser.add_argument("-l", "--log-level", help="is ignored")
    parser.add_argument("--listen", help="the socket, instead of the configured one")
    for name in _OWN_PLACES:
        parser.add_argument(f"--{name}", help="is ignored; given for a trial start")
    parser.add_argument("-v", "--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    flags.resolve(options, os.environ)
    if options.runroot:
        os.environ[TRIAL_VARIABLE] = "1"
    generation = generation_of(version)
    number = version.removeprefix("v")
    try:
        if options.version:
            print(f"crio version {number}\nVersion:        {number}\n{_BUILD}", end="")
        elif options.command == ["version"]:
            print(f"Version:        {number}\n{_BUILD}", end="")
        elif options.command[:1] == ["config"] and options.command[1:] in ([], ["--default"]):
            print(_config(generation, options, default=len(options.command) > 1), end="")
        elif options.command:
            parser.error(f"not understood: {' '.join(options.command)}")
        else:
            _daemon(generation, number, options)
    except RefusedError as error:
        log("fatal", str(error))
        return 1
    return 0


def log(level: str, text: str) -> None:
    """Say a line in the daemon's format."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{moment}" level={level} msg={json.dumps(text)}'
    print(line, file=sys.stderr, flush=True)


def _read(generation: Generation, options: argparse.Namespace) -> Table:
    document = load(generation, options.config, options.config_dir, by_key=read_script().by_key)
    flags.merge(generation, document, options)
    if options.listen:
        document["api"]["listen"] = options.listen
    return document


def _config(generation: Generation, options: argparse.Namespace, *, default: bool) -> str:
    """Give the configuration on disk; also `--default` reads the files first, and may refuse."""
    document = _read(generation, options)
    if default:
        document = generation.defaults()
    validate(generation, document, log, execution=False)
    return template_text(generation, document, everything=default)


def _daemon(generation: Generation, number: str, options: argparse.Namespace) -> None:
    """Load, listen and answer until SIGTERM; SIGHUP loads again."""
    with contextlib.suppress(OSError):  # a trial start has a /proc of its own
        Path("/proc/self/comm").write_text("crio", encoding="ascii")
    log("info", f"Starting CRI-O, version: {number}")
    document = _read(generation, options)
    validate(generation, document, log, execution=True)
    script, runtime = read_script(), document["runtime"]
    if script.die_when and script.die_when.matches(runtime["runtimes"], runtime["default_runtime"]):
        _die("scripted: dies with this configuration")
    # Waited for, not handled: a handler runs late where another thread gets the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if signal.sigtimedwait(_SIGNALS - {signal.SIGHUP}, script.delay_start_s):
        return
    if script.crash_after_s is not None:
        crash = threading.Timer(script.crash_after_s, _die, ["scripted: crashes now"])
        crash.daemon = True
        crash.start()
    _serve(generation, number, options, document)


def _serve(
    generation: Generation,
    number: str,
    options: argparse.Namespace,
    document: Table,
) -> None:
    # Late, because `crio config` needs no gRPC and is called often.
    from tests.doubles.crio.front import Front
    from tests.doubles.crio.service import Service, page
    from tests.doubles.crio.state import Daemon
    from tests.doubles.runtime.base import start

    socket = Path(document["api"]["listen"])
    _remove_unused(socket)
    daemon, ended = Daemon(generation, document), threading.Event()
    inner = f"crio-{os.getpid()}"
    service = Service(number, daemon, read_script, ended)
    server = start(service, f"unix-abstract:{inner}")
    front = Front(socket, inner, lambda path: page(daemon, read_script, path), ended)
    front.open()
    while signal.sigwait(_SIGNALS) == signal.SIGHUP:
        if read_script().no_reload:
            continue
        log("info", "Reloading configuration")
        try:
            daemon.reload(_read(generation, options), log)
        except RefusedError as error:
            log("error", f"Unable to reload configuration: {error}")
    ended.set()
    front.close()
    server.stop(grace=None).wait()


def _remove_unused(socket: Path) -> None:
    """Remove the socket of a daemon that was killed; refuse beside one that answers."""
    if not socket.exists():
        return
    with sockets.socket(sockets.AF_UNIX) as client:
        try:
            client.connect(str(socket))
        except OSError:
            socket.unlink()
            return
    raise RefusedError(f"validating api config: already existing connection on {socket}")


def _die(why: str) -> NoReturn:
    print(f"crio: {why}", file=sys.stderr, flush=True)
    os._exit(2)
