"""What an examination of the machine may find."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"  # good to know
    MISSING = "missing"  # works, with less
    FAILED = "failed"  # `runstead serve` would not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found, and what to do about it."""

    level: Level
    subject: str
    text: str
    remedy: str | None = None
