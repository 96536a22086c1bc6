"""The arguments of every operation: what is checked, and, by their descriptions, what `help` shows."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_WAIT_SECONDS = 600.0
MOST_LINES = 2000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII)
_MOUNT = re.compile(r"hf://(?P<source>.+?):(?P<path>/.+?)(?::(?P<mode>ro|rw))?", re.DOTALL)
_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", "buckets": "bucket"}
_MOUNT_FORM = "hf://[models/|datasets/|spaces/|buckets/]OWNER/NAME[@REVISION][/FOLDER]:/MOUNT/PATH[:ro|:rw]"
_TOKEN_WORDS = ("$HF_TOKEN", "${HF_TOKEN}")
UV_IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"should be a number with a unit, like 90s, 30m, 2h or 1d, not {value[:50]!r}")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _texts(value: object) -> object:
    """Take numbers and booleans for text: what a model writes without quotes."""
    if not isinstance(value, dict):
        return value
    pairs = cast("dict[Any, Any]", value)
    return {key: _text(one) for key, one in pairs.items()}


def _text(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _no_token(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if any(word in text for word in _TOKEN_WORDS):
            raise ValueError(
                f"{name} refers to $HF_TOKEN, and env is shown to everybody who may see the job; "
                f'pass it as secrets: {{"HF_TOKEN": "$HF_TOKEN"}}'
            )
    return value


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Wait = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=MOST_WAIT_SECONDS)]
Texts = Annotated[dict[str, str], BeforeValidator(_texts)]
Lines = Annotated[int, Field(ge=1, le=MOST_LINES)]
JobIds = Annotated[list[str], BeforeValidator(_one_or_more), Field(min_length=1, max_length=50)]


class VolumeMount(BaseModel):
    """A folder of the job that is a bucket or a repository, or a folder of one."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["bucket", "model", "dataset", "space"] = "bucket"
    source: str
    mount_path: str
    path: str | None = None
    revision: str | None = None
    read_only: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = _MOUNT.fullmatch(value)
        if found is None:
            raise ValueError(f"should have the form {_MOUNT_FORM}, not {value[:200]!r}")
        first, _, others = found["source"].partition("/")
        source = others if first in _KINDS else found["source"]
        owner, _, tail = source.partition("/")
        name, _, folder = tail.partition("/")
        name, _, revision = name.partition("@")
        if not owner or not name:
            raise ValueError(f"should name OWNER/NAME as in {_MOUNT_FORM}, not {value[:200]!r}")
        return {
            "type": _KINDS.get(first, "model"),
            "source": f"{owner}/{name}",
            "mount_path": found["path"],
            "path": folder.strip("/") or None,
            "revision": revision or None,
            "read_only": None if found["mode"] is None else found["mode"] == "ro",
        }


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Namespaced(_Arguments):
    """What every operation takes."""

    namespace: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Whose jobs: a user or an organization. Without it, those of your token's user.",
    )


class NoArguments(_Arguments):
    """Nothing."""


class Machine(Namespaced):
    """On what a job runs, and with what."""

    flavor: str = Field(
        default="cpu-basic", description="The hardware. The operation `hardware` lists what there is and costs."
    )
    timeout: Duration = Field(
        default=1800.0,
        description="The job is stopped after this time: 90s, 30m, 2h. Leave a margin: with a job that is stopped "
        "go its results.",
    )
    env: Annotated[Texts, AfterValidator(_no_token)] = Field(
        default={}, description="Variables. Everybody who sees the job sees them."
    )
    secrets: Texts = Field(
        default={},
        description='Variables that nobody sees again. {"HF_TOKEN": "$HF_TOKEN"} hands over your own token without '
        "your writing it.",
    )
    volumes: list[VolumeMount] = Field(
        default=[],
        description=f"Buckets and repositories as folders of the job, each as {_MOUNT_FORM}. Buckets are writable.",
    )
    name: str | None = Field(default=None, description="A name, kept as the label `name`.")
    labels: Texts = Field(default={}, description="Labels to find the job by. Letters, digits, '.', '_' and '-'.")
    attempts: int | None = Field(
        default=None, ge=1, le=100, description="How often it is tried in all if it fails. Without it, once."
    )
    expose: list[int] = Field(default=[], description="Ports of the job that shall be reachable through the server.")


class Attached(_Arguments):
    """How long the answer waits for the job."""

    detach: bool = Field(default=False, description="Answer as soon as the job is accepted.")
    wait_seconds: Wait = Field(
        default=30.0,
        description=f"How long to follow the job otherwise, at most {MOST_WAIT_SECONDS:g}. It goes on after that.",
    )
    tail: Lines = Field(default=50, description="How many lines of the log to show at most.")


class Keyed(_Arguments):
    """Protection against doing it twice."""

    idempotency_key: str | None = Field(
        default=None,
        max_length=200,
        pattern=r"^[!-~]([ -~]*[!-~])?$",  # it travels in a header
        description="Any text of yours in ASCII: to submit again with the same one gives the first job and starts "
        "none. Without it, two calls are two jobs.",
    )


class _Image(Machine):
    image: str = Field(default="python:3.12", description="A Docker image, or hf.co/spaces/OWNER/NAME.")
    command: list[str] | str = Field(
        description='A list of words is run as it is: ["python", "-c", "print(1)"]. A text is a shell line: it is run '
        "by `sh -c`."
    )


class WithScript(Machine):
    """A script, and what it runs with."""

    script: str = Field(
        description="Python code, a URL, or a path: of a file beside this tool, else of one inside the job."
    )
    script_args: list[str] = Field(default=[], description="Arguments for the script.")
    dependencies: list[str] = Field(
        default=[],
        validation_alias=AliasChoices("dependencies", "with_deps"),
        description="Packages that the script needs, as for pip. What is not named here (or in the script's own "
        "`# /// script` header) is not installed.",
    )
    python: str | None = Field(default=None, description="The version of Python, like 3.12.")
    image: str = Field(default=UV_IMAGE, description="A Docker image that has uv.")


class _Timed(_Arguments):
    schedule: str = Field(
        description="@hourly, @daily, @weekly, @monthly, @yearly, or a cron expression: minute hour day month weekday."
    )


class _Scheduled(_Timed):
    suspend: bool = Field(default=False, description="Make it without starting it: `scheduled resume` does.")
    concurrency: bool = Field(default=False, description="Start a run also while the last one is not over.")


class Run(_Image, Attached, Keyed):
    """run."""


class Uv(WithScript, Attached, Keyed):
    """uv."""


class ScheduledRun(_Image, _Scheduled):
    """scheduled run."""


class ScheduledUv(WithScript, _Scheduled):
    """scheduled uv."""


class Ps(Namespaced):
    """ps."""

    all: bool = Field(default=False, description="Also those that are over.")
    status: str | None = Field(default=None, description="Only SCHEDULING, RUNNING, COMPLETED, CANCELED or ERROR.")
    labels: Texts = Field(default={}, description="Only those with all of these labels.")
    limit: int = Field(default=20, ge=1, le=200, description="How many at most, newest first.")


class OneJob(Namespaced):
    """What is about one job."""

    job_id: str = Field(description="The job's id, also as OWNER/ID.")


class Logs(OneJob):
    """logs."""

    tail: Lines = Field(default=100, description="How many of the last lines.")
    wait_seconds: Wait = Field(default=0.0, description="First wait so long for the job to end.")


class Inspect(Namespaced):
    """inspect."""

    job_id: JobIds = Field(description="The job's id, or a list of them.")


class Cancel(Namespaced):
    """cancel."""

    job_id: JobIds = Field(description="The job's id, or a list of them.")


class WaitFor(OneJob):
    """wait."""

    wait_seconds: Wait = Field(
        default=50.0,
        validation_alias=AliasChoices("wait_seconds", "timeout"),
        description=f"How long to wait, at most {MOST_WAIT_SECONDS:g}.",
    )
    tail: Lines = Field(default=50, description="How many of the last lines of the log to show.")


class Stats(OneJob):
    """stats."""


class Labelled(_Arguments):
    """Labels to change."""

    labels: Texts = Field(default={}, description="The labels to set.")
    name: str | None = Field(default=None, description="The label `name`.")
    replace: bool = Field(default=False, description="Take away all that are not named. Otherwise they stay.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.labels and self.name is None and not self.replace:
            raise ValueError("name labels to set, a name, or replace: true to take all away")
        return self

    def changed(self, present: Mapping[str, str]) -> dict[str, str]:
        """Return what these labels are to become."""
        named = self.labels | ({"name": self.name} if self.name is not None else {})
        return named if self.replace else {**present, **named}


class Labels(OneJob, Labelled):
    """labels."""


class Rerun(OneJob, Attached):
    """rerun."""


class ScheduledPs(Namespaced):
    """scheduled ps."""

    all: bool = Field(default=False, description="Also those that are suspended.")


class OneSchedule(Namespaced):
    """What is about one schedule."""

    scheduled_job_id: str = Field(
        validation_alias=AliasChoices("scheduled_job_id", "id"), description="The schedule's id, also as OWNER/ID."
    )


class Reschedule(OneSchedule, _Timed):
    """scheduled reschedule."""


class ScheduledLabels(OneSchedule, Labelled):
    """scheduled labels."""
