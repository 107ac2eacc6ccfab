"""A password in a configuration, in the words of the runtime.

The attack needs no attacker. An admin writes a password where containerd expects a number, or a
table; containerd says "Can't convert hunter2(string) to int", and whoever repeats that writes the
password into logs and into files that everybody can read. What must hold: nothing that the agent
says of another program's message has any piece of a value, and it still says which key it is.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.cdi.specs import read
from agent.errors import Refused
from agent.host.paths import HostRoot
from agent.runtimes import command
from agent.systemd.units import masked_message
from agent.toml import document, write
from agent.toml.masking import Source, masked, masked_with_keys
from tests.security.planted import SEPARATORS, leaked, output, piece
from tests.tools import forked, runtimes
from tests.tools.runtimes import ROOT

_CRI = "io.containerd.grpc.v1.cri"
# Places in which some containerd expects something else than a string, a list or a number.
PLACES: dict[str, tuple[str, ...]] = {
    "int": ("plugins", _CRI, "max_container_log_line_size"),
    "bool": ("plugins", _CRI, "enable_selinux"),
    "string": ("plugins", _CRI, "registry", "configs", "r.example", "auth", "password"),
    "table": ("plugins", _CRI, "registry", "configs", "r.example", "auth"),
    "list": ("plugins", _CRI, "registry", "headers", "Authorization"),
    "map": ("plugins", _CRI, "registry", "mirrors"),
    "root": ("root",),
    "oom": ("oom_score",),
    "grpc": ("grpc", "uid"),
    "env": ("stream_processors", "x", "env"),
    "proxy": ("proxy_plugins", "x", "type"),
    "required": ("required_plugins",),
    "disabled": ("disabled_plugins",),
}
_SEED = st.integers(min_value=0, max_value=1 << 32)


def planted(chance: random.Random) -> tuple[list[str], Any]:
    """A value of some type with secrets in it."""
    pieces = [piece(chance) for _ in range(3)]
    text = pieces[0] + "".join(chance.choice(SEPARATORS) + one for one in pieces[1:])
    kinds: list[Any] = [text, [text], [[text]], {"a": text}, {"a": {"b": [text]}}, [{"a": text}]]
    return pieces, chance.choice(kinds)


@pytest.mark.real
@pytest.mark.parametrize("generation", ["1.6", "1.7", "2.1"])
@given(st.sampled_from(sorted(PLACES)), _SEED)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_message_of_containerd_is_shown_without_values(
    generation: str, place: str, seed: int
) -> None:
    """The containerd's own executable turns the file down, in words without any piece of it."""
    runtime = runtimes.load().find(generation)
    assert runtime is not None, runtimes.load().reason(generation)
    pieces, value = planted(random.Random(seed))  # noqa: S311
    data = document.apply({"version": 2}, [document.Set(PLACES[place], value)])
    text = write.render(data)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.toml")
        path.write_text(text, encoding="utf-8")
        source = Source(str(path), text, data)
        dump = command.config_dump(HostRoot("/"), str(runtime.executable), str(path), (), [source])
    assert leaked(pieces, dump.error) == []
    assert dump.data is not None or len(dump.error) > 20


@pytest.mark.real
@pytest.mark.parametrize("generation", ["1.6", "1.7"])
def test_dump_names_the_key(generation: str) -> None:
    """The value is hidden, and a person finds it all the same."""
    runtime = runtimes.load().find(generation)
    assert runtime is not None, runtimes.load().reason(generation)
    text = f'version = 2\n[plugins."{_CRI}"]\n# a\nmax_container_log_line_size = "zqhunter2"\n'
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.toml")
        path.write_text(text, encoding="utf-8")
        source = Source(str(path), text, document.parse(text.encode(), ""))
        dump = command.config_dump(HostRoot("/"), str(runtime.executable), str(path), (), [source])
    assert dump.error == (
        f"containerd: (4, 1): Can't convert …(string) to int (… is the value of "
        f'plugins."{_CRI}".max_container_log_line_size, line 4 of {path})'
    )


# What runtimes say, with places for values; observed on containerd 1.6 to 2.1 and CRI-O.
MESSAGES = {
    "containerd: (3, 1): Can't convert {}(string) to int": "containerd: (3, 1): Can't convert ",
    "Can't convert [{} {}]([]interface {{}}) to a slice": "to a slice",
    'time: invalid duration "{}"': "time: invalid duration ",
    'time: unknown unit "{}" in duration "{}"': "time: unknown unit ",
    'parsing time "{}" as "2006": cannot parse "{}"': " cannot parse ",
    'strconv.Atoi: parsing "{}": invalid syntax': "invalid syntax",
    "open {}: no such file or directory": "no such file or directory",
    'snapshotter "{}" was not found: not found': "was not found: not found",
    'validating runtime config: exec: "{}": executable file not found in $PATH': (
        "executable file not found in $PATH"
    ),
    'parse "http://{}@h": invalid userinfo': "invalid",
    "dial tcp: lookup {}: no such host": "no such host",
    "unknown key env={}, password={}": "unknown key",
    "{}": "",
    "line {} column {}": "",
}


@given(st.sampled_from(sorted(MESSAGES)), _SEED)
@settings(max_examples=200, deadline=None)
def test_value_in_a_message_is_masked_in_every_spelling(message: str, seed: int) -> None:
    """In every place of every message, spelled as it is, as Go quotes it, and as JSON."""
    chance = random.Random(seed)  # noqa: S311
    pieces, value = planted(chance)
    spelled = [str(value), json.dumps(value), repr(value), json.dumps(str(value))]
    text = message.format(*(chance.choice(spelled) for _ in range(2)))
    data = {"plugins": {_CRI: {"x": value}}, "a": value}
    source = Source("/etc/containerd/config.toml", write.render(data), data)
    for found in (
        masked(text), masked_with_keys(text, [source], ["/usr/bin/containerd"]),
        masked_message(text), masked_with_keys(text, [source, source]),
    ):  # fmt: skip
        assert leaked(pieces, found) == []


@pytest.mark.parametrize("message", MESSAGES)
def test_message_stays_readable(message: str) -> None:
    """The runtime's own words, without the value."""
    found = masked(message.format("zqhunter2", "zqhunter2"))
    assert "zqhunter2" not in found
    assert MESSAGES[message] in found


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
@example('"')
@example("'\"`" * 99)
@example("zq" * 5000)
def test_any_text_can_be_masked(text: str) -> None:
    """Whatever another program writes is one short line."""
    found = masked(text, [text[:7]], ["x"])
    assert len(found) <= 301
    assert found.isprintable() or not text[:7].isprintable()


@given(
    st.integers(min_value=10, max_value=10**9), st.sampled_from(["PIN {}", "{}", "a{}b", "x={}"])
)
def test_numbers_are_values(number: int, form: str) -> None:
    """A number can be a secret too; but for lines and columns, it is hidden."""
    assert str(number) not in masked(form.format(number))


@pytest.mark.parametrize(
    "text",
    [
        'a = "ok"\npassword = zqhunter2\n', 'password = "zqhunter2\n', "zqhunter2\n",
        'a = "zqhunter2" zqhunter2', "zqhunter2 = 1\nzqhunter2 = 2\n", 'a = "\\zqhunter2"',
        "[zqhunter2]\na = 1\n[zqhunter2]\n", "a = 1\n[a.zqhunter2]\n", "a = 1979-99-99\n",
    ],
)  # fmt: skip
def test_toml_error_has_a_place_and_no_content(text: str) -> None:
    """Our own parser repeats keys and characters; the error has the line and the column."""
    with pytest.raises(Refused) as caught:
        document.parse(text.encode(), "/etc/containerd/config.toml")
    assert "zq" not in caught.value.message
    assert "hunter" not in caught.value.message
    assert "not valid TOML" in caught.value.message
    assert "(at " in caught.value.message


@pytest.mark.parametrize("text", ["a: *zqhunter2", "%zqhunter2\n--- a", "a: [b"])
def test_yaml_error_has_a_place_and_no_content(text: str) -> None:
    """The same of a CDI spec of somebody else's."""
    with pytest.raises(read.Broken) as caught:
        read.document(text.encode())
    assert "zqhunter2" not in caught.value.text


def test_user_in_a_url_is_masked_in_errors() -> None:
    """Options and keys can hold one; a password can have a slash in it."""
    assert Refused("cannot use http://u:p/w@h:1/x").message == "cannot use http://…@h:1/x"


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_user_in_a_url_is_masked_in_options(form: str) -> None:
    """`config` shows every option: whatever was given, in the environment too."""
    url = "/zq/http://robot:zqhunter2@mirror.example/x"
    result = forked.run(
        forked.AGENT, ["config", "-o", form, f"--toolkit-source-root={url}"],
        {"PATH": os.defpath, "DRIVER_ROOT": url}, ROOT,
    )  # fmt: skip
    assert result.returncode == 0, output(result)
    assert "zqhunter2" not in output(result)
    assert "mirror.example" in output(result)
