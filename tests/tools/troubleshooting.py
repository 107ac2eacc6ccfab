"""Write the table of doctor's checks into deploy/README.md.

`python -m tests.tools.troubleshooting` writes it. A test holds the two together.
"""

from __future__ import annotations

from pathlib import Path

from agent.doctor.diagnosis import CHECKS

README = Path(__file__).resolve().parents[2] / "deploy/README.md"
_BEGIN = "<!-- checks: written by tests/tools/troubleshooting.py -->\n"
_END = "<!-- end of checks -->\n"


def table() -> str:
    """The checks as a table in Markdown."""
    rows = [
        "| check | what has to hold | what comes of it if not | what to do |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| `{check.id}` | {check.title} | {check.why} | {check.remedy} |".replace("\n", " ")
        for check in CHECKS
    ]
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """The text of the guide with the table of now."""
    before, _, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{README} has no place for the table of checks")
    return f"{before}{_BEGIN}{table()}{_END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
