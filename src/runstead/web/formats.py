"""How values are written for people."""

from datetime import UTC, datetime
from shlex import join
from urllib.parse import quote

from runstead.model.jobs import FailureClass, Job, JobSpec, Phase, Stage

STAGE_WORDS = {
    Stage.SCHEDULING: "Waiting",
    Stage.RUNNING: "Running",
    Stage.COMPLETED: "Completed",
    Stage.CANCELED: "Canceled",
    Stage.ERROR: "Failed",
    Stage.DELETED: "Deleted",
}
FAILURE_WORDS = {
    FailureClass.USER: "the command failed",
    FailureClass.TIMEOUT: "it ran out of time",
    FailureClass.OOM: "it ran out of memory",
    FailureClass.IMAGE: "its image could not be had",
    FailureClass.VOLUME: "a volume failed",
    FailureClass.INFRA: "the machine or this server failed",
    FailureClass.CANCELED: "it was canceled",
}
_SIZES = ("bytes", "kB", "MB", "GB", "TB", "PB")


def iso(at: datetime) -> str:
    """Return an instant as machines read it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def instant(at: datetime) -> str:
    """Return an instant in full."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    whole = max(int(seconds), 0)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds:.1f} s" if 0.05 <= seconds < 9.95 and seconds != whole else f"{whole} s"


def size(count: int) -> str:
    """Return an amount of bytes."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_SIZES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count:,} {_SIZES[0]}" if unit == 0 else f"{amount:.3g} {_SIZES[unit]}"


def command_line(spec: JobSpec) -> str:
    """Return the command as one would type it."""
    return join((*spec.command, *spec.arguments))


def job_title(job: Job) -> str:
    """Return what people call a job: its name, else what it runs."""
    return job.labels.get("name") or command_line(job.spec)


def stage_word(stage: Stage, phase: Phase | None = None) -> str:
    """Return a stage in a word; the phase tells what starts from what waits."""
    return "Starting" if phase is Phase.STARTING and stage is Stage.SCHEDULING else STAGE_WORDS[stage]


def reason(message: str | None, failure: FailureClass | None) -> str:
    """Return a message without the failure class it begins with, for where that is said beside it."""
    return (message or "").removeprefix(f"{failure}: " if failure is not None else "")


def failure_words(failure: FailureClass) -> str:
    """Say what a failure class means."""
    return FAILURE_WORDS[failure]


def segment(text: str) -> str:
    """Return a text as one segment of a path."""
    return quote(text, safe="")


def path(text: str) -> str:
    """Return a text as several segments of a path."""
    return quote(text, safe="/")
