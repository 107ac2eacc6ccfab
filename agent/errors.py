"""All errors of the program, with their exit codes.

A message starts with "cannot", names the path and the cause, and says what to do.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from agent.redaction import redact_text

EXIT_CODES = {
    0: "done, or nothing to do; or files are written and the restart is left to you "
    "(--restart-mode=none)",
    1: "plan: there are changes, or apply would refuse; status, wait: not ready; doctor: a fault; "
    "verify: a proof failed; cdi validate: a finding; any command: stdout is closed or full",
    2: "an option or an environment variable is not valid",
    3: "refused; nothing was touched; verify: something could not be tried",
    4: "the runtime does not answer on its CRI socket",
    5: "the change failed and was rolled back; the old state is proven",
    6: "the change failed, and so did the rollback",
    7: "another toolkit-agent holds the lock",
}


class AgentError(Exception):
    """The base class of all errors that a person sees. `code` is published in the error file. A
    class without a code or an exit code has that of its base class. `message` is redacted."""

    exit_code: ClassVar[int] = 3
    code: ClassVar[str] = "FAILED"

    def __init_subclass__(cls, code: str | None = None, exit_code: int | None = None) -> None:
        cls.code = cls.code if code is None else code
        cls.exit_code = cls.exit_code if exit_code is None else exit_code

    def __init__(self, message: str, *, code: str | None = None) -> None:
        message = redact_text(message)  # options and keys can hold URLs
        super().__init__(message)
        self.message = message
        self.status_code = code or self.code


class UsageError(AgentError, code="USAGE", exit_code=2):
    """An option or an environment variable is not valid."""


class Refused(AgentError, code="REFUSED", exit_code=3):
    """The command refuses; nothing was changed."""


class CandidateFailed(Refused, code="CANDIDATE_FAILED"):
    """The same change failed before."""


class TrialFailed(Refused, code="TRIAL_FAILED"):
    """The runtime would not start on the new files."""


class FilesDoNotLoad(Refused, code="FILES_DO_NOT_LOAD"):
    """The runtime would not start on its present files."""


class NoDriver(Refused, code="NO_DRIVER"):
    """There is no NVIDIA driver (yet)."""


class DriverDistrusted(NoDriver):
    """There may be a driver, but a user other than root can change its files."""


class NoDevices(Refused, code="NO_DEVICES"):
    """The devices for a CDI spec do not exist (yet)."""


class DevicesLost(NoDevices):
    """The devices should exist, but each of them has a fault."""


class DriverFailed(Refused, code="DRIVER_FAILED"):
    """The driver's library crashed, or does not answer."""


class SpecUnwritable(Refused):
    """The CDI spec that a node needs cannot be written."""


class NoToolkit(Refused, code="NO_TOOLKIT"):
    """The handlers' binary is not on the host (yet)."""


class Unreachable(AgentError, code="RUNTIME_UNREACHABLE", exit_code=4):
    """The runtime does not answer the CRI."""


class RolledBack(AgentError, code="ROLLED_BACK", exit_code=5):
    """A change was made, failed, and was undone."""


class RollbackFailed(AgentError, code="ROLLBACK_FAILED", exit_code=6):
    """A change was made, failed, and could not be undone."""


class Locked(AgentError, code="LOCKED", exit_code=7):
    """Another process holds the lock."""


class RestartBudget(Refused, code="RESTART_BUDGET"):
    """`run` restarted the runtime too often: a restart is needed, and allowed at `until` (seconds
    of the monotonic clock)."""

    def __init__(self, message: str, until: float) -> None:
        super().__init__(message)
        self.until = until


# These are no failures: they end no command, and are only published in the error file.


class PutOff(AgentError, code="RESTART_PUT_OFF", exit_code=0):
    """`run` changed nothing, because the spread delays a necessary restart until `until` (seconds
    of the monotonic clock)."""

    def __init__(self, message: str, until: float) -> None:
        super().__init__(message)
        self.until = until


class Pending(AgentError, code="RESTART_PENDING", exit_code=0):
    """Files are written, and somebody else still has to restart the runtime."""


class StoodAside(AgentError, code="REVERTED", exit_code=0):
    """A revert is complete, so that this `run` leaves the node alone."""


def reason(error: OSError) -> str:
    """The cause of an OSError in words, with a remedy if there is one, without the path."""
    if error.errno is None:
        return str(error)
    hints = {
        errno.EROFS: "make the file system writable or mount the directory read-write",
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space or raise the quota",
        errno.EPERM: "run as root, and look for an immutable file (lsattr)",
        errno.EACCES: "run as root",
        errno.EBUSY: "mount the directory into the container, not the single file",
        errno.ELOOP: "it changed while we looked, and leads through a link now; try again, or "
        "restore the directory",
        errno.EXDEV: "name it without '..'",
    }
    text = os.strerror(error.errno).lower()
    hint = hints.get(error.errno)
    return f"{text}; {hint}" if hint else text
