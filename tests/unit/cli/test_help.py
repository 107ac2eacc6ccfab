"""Help texts fit a terminal of 80 columns, and show what concerns their command."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent import cli
from agent.cli.base import Command
from agent.cli.cdi import cdi
from agent.errors import EXIT_CODES, AgentError
from agent.options.table import OPTIONS, TOPICS

README = Path(__file__).resolve().parents[3] / "README.md"
COMMANDS = [
    *(n for n, one in cli.cli.commands.items() if isinstance(one, Command) and not one.hidden),
    *(f"cdi {name}" for name in cdi.commands),
]


def printed(*words: str, program: click.Command = cli.cli, code: int = 0) -> str:
    """What the program prints in a terminal of 80 columns."""
    name = "toolkit-agent" if program is cli.cli else "nvidia-toolkit"
    done = CliRunner().invoke(program, words, prog_name=name, terminal_width=78)
    assert done.exit_code == code, done.output
    return done.output


def flags(text: str) -> set[str]:
    """The long flags that a help text is about."""
    return set(re.findall(r"^  (?:-\w, )*(--[\w.-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("form", ["--help", "--help-all"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_a_terminal(command: str, form: str) -> None:
    """Nor is the name of a variable broken, and all begin in one column."""
    text = printed(*command.split(), form)
    assert max(map(len, text.splitlines())) <= 80
    for name in (
        name for topic in TOPICS for one in topic.for_command(command) for name in one.env
    ):
        assert form == "--help" or re.search(rf"\${name}\b", text)
    columns = {len(line) - len(line.lstrip()) for line in text.splitlines() if " $" in line[:30]}
    assert columns <= {20, 21, 22}


def test_ten_options_matter() -> None:
    """Those are on the first screen of help, and the rest is a flag away."""
    main = [one for topic in TOPICS for one in topic.options if one.main]
    assert len([one for one in main if one.name != "debug"]) == 10
    short, whole = flags(printed("apply", "--help")), flags(printed("apply", "--help-all"))
    assert {one.all_flags[0] for one in main} <= short
    assert short < whole
    assert "--help-all lists all" in " ".join(printed("apply", "--help").split())


def test_every_option_concerns_a_command() -> None:
    """One that no help text shows is found by nobody."""
    shown = set[str]().union(*(flags(printed(*c.split(), "--help-all")) for c in COMMANDS))
    assert {one.all_flags[0] for one in OPTIONS if one.supported} <= shown
    assert not {one.all_flags[0] for one in OPTIONS if not one.supported} & shown


@pytest.mark.parametrize("command", ["config", "wait", "cdi list", "cdi validate", "cdi generate"])
def test_command_that_changes_no_runtime_shows_nothing_of_restarts(command: str) -> None:
    """It accepts those options all the same, because a pod gives one set to all commands."""
    words = command.split()
    assert not flags(printed(*words, "--help-all")) & {"--restart-mode", "--proof-timeout"}
    found: click.Command = cli.cli
    for word in words:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    context = found.make_context(command, [f"{one.all_flags[0]}=x" for one in OPTIONS])
    assert {one.name for one in OPTIONS} <= context.params.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_n_means_no_daemon_where_there_is_a_daemon(command: str) -> None:
    """Elsewhere a person means something else by it."""
    if command == "run":
        assert "-n, --no-daemon" in printed("run", "--help-all")
    else:
        assert "No such option" in printed(*command.split(), "-n", code=2)


def test_boolean_takes_no_file_for_its_value() -> None:
    """`cdi validate -v FILE` is about the file."""
    command = cdi.commands["validate"]
    params = command.make_context("validate", ["--debug", "x.yaml", "--", "--debug"]).params
    assert (params["debug"], params["files"]) == ("true", ("x.yaml", "--debug"))


def test_value_of_a_short_option_may_follow_an_equals_sign() -> None:
    """As kubectl takes it."""
    params = cli.cli.commands["status"].make_context("status", ["-o=json", "-v=false"]).params
    assert (params["output"], params["debug"]) == ("json", "false")


@pytest.mark.parametrize("command", ["status", "wait"])
def test_timeouts_are_durations(command: str) -> None:
    """Of every command; a number alone is seconds."""
    for text, seconds in (("90", 90), ("0.5", 0.5), ("30s", 30), ("5m", 300)):
        found = cli.cli.commands[command].make_context(command, ["--timeout", text])
        assert found.params["timeout"] == seconds
    shown = " ".join(printed(command, "--help").split())
    assert "--timeout DURATION Give up waiting after this time, such as 30s" in shown


@pytest.mark.parametrize(("words", "first"), [((), "plan"), (("cdi",), "generate")])
def test_without_a_command_the_commands_are_shown(words: tuple[str, ...], first: str) -> None:
    """On one screen, and not as an error."""
    lines = printed(*words, code=2).splitlines()
    assert lines[0].startswith("Usage: ")
    assert lines[3].split()[0] == first
    assert len(lines) < 25
    assert not any("cannot" in line for line in lines)


def error_codes(base: type[AgentError] = AgentError) -> set[int]:
    """The exit codes of all errors."""
    return {base.exit_code}.union(*(error_codes(one) for one in base.__subclasses__()))


@pytest.mark.parametrize("program", [cli.cli, cli.toolkit])
def test_help_has_the_exit_codes(program: click.Command) -> None:
    """All of them, in the words of errors.py."""
    text = printed("--help", program=program).partition("Exit codes:")[2]
    found = " ".join(text.split())
    assert found == " ".join(f"{code} {words}" for code, words in EXIT_CODES.items())


def test_exit_codes_are_the_same_everywhere() -> None:
    """In errors.py, in its picture and in the README."""
    assert error_codes() <= EXIT_CODES.keys()
    section = README.read_text("utf-8").partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d) \| (.*) \|$", section, re.MULTILINE)
    assert {int(code): text.replace("`", "") for code, text in rows} == EXIT_CODES
