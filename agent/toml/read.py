"""Parses TOML files of the host.

Invariant: a file that no runtime can read is refused. The error names the file, and repeats none of
its values.
"""

from __future__ import annotations

import tomllib

from agent.errors import Refused
from agent.host.budget import OverBudget
from agent.toml import dialect
from agent.toml.dialect import Data, NotText


def parse(data: bytes, name: str) -> Data:
    """The data of a file's bytes. What a runtime accepts besides TOML 1.0 is no error here (see
    `dialect.oddities`). Raises Refused naming the file and the place of the error."""
    return parsed(decoded(data, name), name)


def decoded(data: bytes, name: str) -> str:
    """A file's bytes as text to edit; `encoded` makes the same bytes of it. Raises Refused."""
    try:
        return dialect.decoded(data)
    except NotText as error:
        raise Refused(f"cannot read {name}: {error}") from error


def parsed(text: str, name: str) -> Data:
    """The data of a decoded text. Raises Refused as `parse` does."""
    try:
        return dialect.loads(text)
    except tomllib.TOMLDecodeError as error:
        from agent.toml.masking import masked  # needed only if something failed

        why = masked(str(error))  # it can repeat what stands there
        raise Refused(f"cannot read {name}: it is not valid TOML: {why}; repair it") from error
    except OverBudget as error:
        raise Refused(f"cannot read {name}: {error}; make it smaller") from error


def has_comments(text: str) -> bool:
    """Is there any comment in a text?"""
    from agent.toml import scan

    return bool(scan.comments(text))
