"""Every way in which the program ends badly, with its exit code.

    AgentError
    ├── UsageError         2  options or environment that make no sense
    ├── Refused            3  nothing was touched
    │   ├── CandidateFailed   the same change failed before
    │   ├── TrialFailed       the runtime would not start on the new files
    │   ├── RestartBudget     `run` restarted the runtime too often
    │   ├── FilesDoNotLoad    the runtime would not start on the files as they are
    │   ├── NoDriver          there is no NVIDIA driver (yet)
    │   ├── NoDevices         the devices that a CDI spec is about are not there (yet)
    │   │   └── DevicesLost   they should be, and something keeps each of them away
    │   ├── DriverFailed      the driver's own library crashed, or does not answer
    │   └── NoToolkit         the handlers' binary is not on the host (yet)
    ├── Unreachable        4  the runtime does not answer the CRI
    ├── RolledBack         5  a change was made, failed, and was undone
    ├── RollbackFailed     6  a change was made, failed, and could not be undone
    ├── Locked             7  another instance is at work
    ├── Pending            0  written, and waiting for a restart (told in the status directory only)
    ├── StoodAside         0  a revert is complete, and `run` leaves the node alone (likewise)
    └── PutOff             0  nothing was touched: a restart is put off (likewise, and by run only)

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
    """Base of all errors that a person sees; `code` goes into the status file."""

    exit_code: ClassVar[int] = 3
    code: ClassVar[str] = "FAILED"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        message = redact_text(message)  # options and keys can hold URLs
        super().__init__(message)
        self.message = message
        self.status_code = code or self.code


class UsageError(AgentError):
    exit_code = 2
    code = "USAGE"


class Refused(AgentError):
    exit_code = 3
    code = "REFUSED"


class CandidateFailed(Refused):
    code = "CANDIDATE_FAILED"


class TrialFailed(Refused):
    code = "TRIAL_FAILED"


class RestartBudget(Refused):
    """A restart is needed, and allowed at `until` (seconds of the monotonic clock)."""

    code = "RESTART_BUDGET"

    def __init__(self, message: str, until: float) -> None:
        super().__init__(message)
        self.until = until


class FilesDoNotLoad(Refused):
    code = "FILES_DO_NOT_LOAD"


class NoDriver(Refused):
    code = "NO_DRIVER"


class DriverDistrusted(NoDriver):
    """There may be one, but somebody else than root decides what it is."""


class NoDevices(Refused):
    code = "NO_DEVICES"


class DevicesLost(NoDevices):
    """They should be there, and something keeps each of them away."""


class DriverFailed(Refused):
    code = "DRIVER_FAILED"


class NoToolkit(Refused):
    code = "NO_TOOLKIT"


class Unreachable(AgentError):
    exit_code = 4
    code = "RUNTIME_UNREACHABLE"


class RolledBack(AgentError):
    exit_code = 5
    code = "ROLLED_BACK"


class RollbackFailed(AgentError):
    exit_code = 6
    code = "ROLLBACK_FAILED"


class Pending(AgentError):
    """No failure: a restart is somebody else's to do, and is not done yet."""

    exit_code = 0
    code = "RESTART_PENDING"


class PutOff(AgentError):
    """No failure: a restart is needed, and is asked for at `until` (seconds of the monotonic
    clock)."""

    exit_code = 0
    code = "RESTART_PUT_OFF"

    def __init__(self, message: str, until: float) -> None:
        super().__init__(message)
        self.until = until


class StoodAside(AgentError):
    """No failure: a revert is complete, and the `run` beside it leaves the node alone."""

    exit_code = 0
    code = "REVERTED"


class Locked(AgentError):
    exit_code = 7
    code = "LOCKED"


def reason(error: OSError) -> str:
    """The cause of an OSError in words, without the path (messages name it themselves)."""
    if error.errno is None:
        return str(error)
    hints = {
        errno.EROFS: "make the file system writable or mount the directory read-write",
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space or raise the quota",
        errno.EPERM: "run as root, and look for an immutable file (lsattr)",
        errno.EACCES: "run as root",
        errno.EBUSY: "mount the directory into the container, not the single file",
        errno.ELOOP: "it changed while we looked, and leads through a link now; try again, or put "
        "back what was there",
        errno.EXDEV: "name it without '..'",
    }
    text = os.strerror(error.errno).lower()
    hint = hints.get(error.errno)
    return f"{text}; {hint}" if hint else text
