"""The archive of `doctor --bundle`: the facts about a node for a bug report.

Invariant: the archive has the redacted JSON documents of the commands, and no content of a file.
Only its owner can read it, and no file is overwritten.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from agent.cli.about import versions
from agent.cli.render import config as render_config
from agent.cli.render import doctor as render_doctor
from agent.cli.render import plan as render_plan
from agent.cli.render import status as render_status
from agent.cli.render.base import document
from agent.doctor.diagnosis import Diagnosis
from agent.errors import Refused, reason
from agent.options.settings import Settings
from agent.reports.node import Report


def write(path: str, settings: Settings, report: Report, diagnosis: Diagnosis) -> None:
    """Write the archive to a new file at `path`. Raises Refused, also if the file exists."""
    texts = _documents(settings, report, diagnosis)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        text = f"{path} exists" if isinstance(error, FileExistsError) else reason(error)
        raise Refused(f"cannot write the bundle: {text}; give the name of a new file") from error
    try:
        with open(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in sorted(texts.items()):
                content = text.encode("utf-8", "surrogateescape")
                entry = tarfile.TarInfo(f"toolkit-agent-doctor/{name}")
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
    except OSError as error:
        with suppress(OSError):
            os.unlink(path)
        raise Refused(
            f"cannot write the bundle to {path}: {reason(error)}; give a file on another disk"
        ) from error


def _documents(settings: Settings, report: Report, diagnosis: Diagnosis) -> Mapping[str, str]:
    """The texts of the archive by file name."""
    documents: dict[str, tuple[str, Mapping[str, Any]]] = {
        "doctor.json": ("Doctor", render_doctor.data(diagnosis)),
        "status.json": ("Status", render_status.data(report)),
        "config.json": ("Config", render_config.data(settings)),
        "version.json": ("Version", versions()),
    }
    if report.proposal is not None:
        documents["plan.json"] = ("Plan", render_plan.data(report.proposal))
    return {name: document(kind, body) + "\n" for name, (kind, body) in documents.items()}
