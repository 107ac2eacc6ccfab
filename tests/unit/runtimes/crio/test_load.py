"""Files are loaded in CRI-O's order, and CRI-O itself is asked for the result."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import Refused
from agent.host import files
from agent.host.paths import HostRoot
from agent.runtimes.crio import config_request, load

ROOT, DIRECTORY = load.ROOT, load.DIRECTORY


@pytest.fixture
def host(tmp_path: Path) -> HostRoot:
    """A host with an empty drop-in directory."""
    (tmp_path / DIRECTORY[1:]).mkdir(parents=True)
    return HostRoot(str(tmp_path))


def write(host: HostRoot, name: str, text: str = "") -> Path:
    """Write a file of the host."""
    path = Path(host.root + (name if name.startswith("/") else f"{DIRECTORY}/{name}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(host: HostRoot, **overlay: files.FileState | None) -> list[str]:
    """Return the names of what is loaded, the root file left out."""
    given = {f"{DIRECTORY}/{name}": state for name, state in overlay.items()}
    loaded = load.load(host, ROOT, DIRECTORY, given)
    assert loaded[0].name == ROOT
    return [file.name.removeprefix(f"{DIRECTORY}/") for file in loaded[1:]]


def test_every_file_counts(host: HostRoot) -> None:
    """Any name, in the order of bytes, a directory where its own name comes."""
    for name in ("10-a.conf", ".99.tmp", "98.bak", "50/b", "50/a", "50.conf", "A", "é"):
        write(host, name)
    write(host, "/elsewhere/x")
    assert names(host) == [
        ".99.tmp", "10-a.conf", "50/a", "50/b", "50.conf", "98.bak", "A", "é",
    ]  # fmt: skip


def test_missing_files_load_as_an_absent_root_file(tmp_path: Path) -> None:
    """CRI-O starts with what it has built in."""
    loaded = load.load(HostRoot(str(tmp_path)), ROOT, DIRECTORY)
    assert [(file.name, file.state) for file in loaded] == [(ROOT, None)]


def test_edits_add_and_remove_files(host: HostRoot) -> None:
    """Also in a directory that is not there yet."""
    write(host, "10")
    write(host, "20")
    state = files.new_state(b"")
    assert names(host, **{"10": None, "15": state, "sub/30": state}) == ["15", "20", "sub/30"]


def test_link_to_a_file_is_loaded_and_others_are_refused(host: HostRoot) -> None:
    """A link to a file is one of its files; one to a directory keeps CRI-O from starting."""
    target = write(host, "/opt/x.conf", "[crio]\n")
    link = Path(host.root + DIRECTORY) / "10"
    link.symlink_to("/opt/x.conf")
    assert names(host) == ["10"]
    target.unlink()
    with pytest.raises(Refused, match="dangling"):
        names(host)
    link.unlink()
    link.symlink_to("/opt")
    with pytest.raises(Refused, match="it is a directory"):
        names(host)


def test_broken_files_are_refused(host: HostRoot) -> None:
    """Whatever they are called."""
    write(host, "x.bak", "crio = 1")
    with pytest.raises(Refused, match=r"crio\.conf\.d/x\.bak"):
        names(host)


def test_unparsable_root_file_is_refused_and_a_drop_in_marked(host: HostRoot) -> None:
    """A drop-in is marked, for CRI-O to say what is in it; the root file is refused."""
    write(host, "x.bak", "[crio")
    _, file = load.load(host, ROOT, DIRECTORY)
    assert "not valid TOML" in file.unread
    assert file.data == {}
    write(host, ROOT, "[crio")
    with pytest.raises(Refused, match=f"^cannot read {ROOT}: it is not valid TOML"):
        load.load(host, ROOT, DIRECTORY)


def test_files_of_others_are_refused(host: HostRoot) -> None:
    """They say which programs root runs."""
    write(host, "10").chmod(0o666)
    with pytest.raises(Refused, match="chmod go-w"):
        names(host)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """A socket that answers one connection with these bytes."""
    path, parts = str(tmp_path / "s"), list[bytes]()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            try:
                client, _ = listener.accept()
                with client:
                    client.recv(4096)
                    for part in parts:
                        client.sendall(part)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path, parts
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/toml\r\nConnection: close\r\n\r\n"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "data"),
    [
        ([HEAD, b"[crio]\n"], {"crio": {}}),
        ([HEAD, b"[cri", b"o]\n"], {"crio": {}}),
        ([HEAD, b"[crio"], None),
        ([HEAD, b"\xff"], None),
        ([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], None),
        ([b"PRI * HTTP/2.0\r\n"], None),
        ([], None),
        ([HEAD, *[b"#" * (1 << 16)] * 17], None),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"[crio]\n"], None),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"[crio]\n"], {"crio": {}}),
        ([CHUNKED, b"7\r\n[crio]\n\r\n0\r\n\r\n"], {"crio": {}}),
        ([CHUNKED, b"7\r\n[crio]\n\r\n"], None),
    ],
)
def test_senseless_configuration_counts_as_silence(
    served: tuple[str, list[bytes]], answer: list[bytes], data: object
) -> None:
    """What is no configuration is silence."""
    path, parts = served
    parts += answer
    assert config_request.effective_config(path, timeout=5.0) == data


def test_slow_answer_is_given_up(served: tuple[str, list[bytes]]) -> None:
    """However alive it is."""
    path, parts = served
    parts += [HEAD, b"[crio]\n"]
    times = iter([0.0, 6.0, 6.0])
    assert config_request.effective_config(path, timeout=5.0, clock=lambda: next(times)) is None


def test_silent_socket_has_no_configuration(tmp_path: Path) -> None:
    """Nor does a file that is none."""
    assert config_request.effective_config(str(tmp_path / "none")) is None
