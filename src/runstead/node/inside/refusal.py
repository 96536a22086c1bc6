"""What cannot be done inside of an attempt, in words that travel to the server."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The kinds, and what the server makes of them (see `executors/lanes.py`).
INVALID = "invalid"
MISSING = "missing"
CONFLICT = "conflict"
UNAVAILABLE = "unavailable"
UNSUPPORTED = "unsupported"


class Refusal(Exception):
    """Something that is not done, and why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def explain(error: BaseException) -> "dict[str, Any]":
    """Return the answer that tells of an error."""
    if isinstance(error, Refusal):
        return {"error": error.kind, "message": str(error)}
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        place = f": {error.filename}" if isinstance(error.filename, str) else ""
        kind = MISSING if isinstance(error, (FileNotFoundError, NotADirectoryError)) else INVALID
        return {"error": kind, "message": f"{reason.lower()}{place}"}
    return {"error": INVALID, "message": str(error)}
