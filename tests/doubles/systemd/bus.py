"""A bus with one unit of systemd, which answers from a table."""

from __future__ import annotations

from typing import Any, Self


def properties(**changed: Any) -> dict[str, tuple[str, Any]]:
    """As GetAll gives them."""
    found: dict[str, Any] = {
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "InvocationID": b"\0" * 15 + b"\7",
        "Job": (0, "/"),
        "RequiredBy": [],
        "BoundBy": [],
        "ConsistsOf": [],
    }
    return {key: ("v", value) for key, value in (found | changed).items()}


class Bus:
    """One connection after the other. `looks` are what the unit is at each look, the last stays;
    an exception in the place of an answer is raised."""

    def __init__(self, *looks: Any, **answers: Any) -> None:
        self.looks = list(looks or [properties()])
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self) -> Any:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        if member not in ("GetAll", "Get", "LoadUnit"):
            self.calls.append((member, *body))
        answer = self.answers.get(member)
        if member == "GetAll":
            answer = (self.looks.pop(0) if len(self.looks) > 1 else self.looks[0],)
            if isinstance(answer[0], Exception):
                raise answer[0]
        if isinstance(answer, Exception):
            raise answer
        return {"LoadUnit": ("/unit",), "Get": (("s", "exit-code"),)}.get(member, answer)
