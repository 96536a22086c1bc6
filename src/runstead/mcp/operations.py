"""Every operation of `hf_jobs`, one row each."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import BaseModel

from runstead.mcp import arguments, jobs, schedules, submitting
from runstead.mcp.call import Call, Done, Operation

_JOB: Mapping[str, Any] = {"job_id": "JOB_ID"}
_SCHEDULE: Mapping[str, Any] = {"scheduled_job_id": "SCHEDULED_JOB_ID"}

_TABLE: dict[str, tuple[str, type[BaseModel], Callable[[Call, Any], Awaitable[Done]], Mapping[str, Any]]] = {
    "run": (
        "run a command in a Docker image",
        arguments.Run,
        submitting.run,
        {"image": "python:3.12", "command": ["python", "-c", "print('hello')"], "timeout": "10m"},
    ),
    "uv": (
        "run a Python script with the packages it needs",
        arguments.Uv,
        submitting.uv,
        {"script": "import six\nprint(six.__version__)\n", "dependencies": ["six"], "timeout": "10m"},
    ),
    "ps": ("list jobs, newest first", arguments.Ps, jobs.ps, {"all": True, "limit": 10}),
    "logs": ("show the end of a job's log", arguments.Logs, jobs.logs, {**_JOB, "tail": 100}),
    "inspect": ("show all that is known of a job", arguments.Inspect, jobs.inspect_jobs, _JOB),
    "wait": ("wait for the end of a job", arguments.WaitFor, jobs.wait, {**_JOB, "wait_seconds": 50}),
    "cancel": ("end a job", arguments.Cancel, jobs.cancel, _JOB),
    "stats": ("show what a running job uses", arguments.Stats, jobs.stats, _JOB),
    "rerun": ("submit a job again as it was, with its secrets", arguments.Rerun, submitting.rerun, _JOB),
    "labels": ("name a job and label it", arguments.Labels, jobs.labels, {**_JOB, "labels": {"project": "demo"}}),
    "hardware": ("list the flavors and what they cost", arguments.NoArguments, jobs.hardware, {}),
    "scheduled run": (
        "run a command again and again",
        arguments.ScheduledRun,
        schedules.run,
        {"schedule": "@daily", "image": "python:3.12", "command": ["python", "-c", "print('daily')"]},
    ),
    "scheduled uv": (
        "run a Python script again and again",
        arguments.ScheduledUv,
        schedules.uv,
        {"schedule": "0 9 * * 1-5", "script": "import datetime\nprint(datetime.datetime.now())\n"},
    ),
    "scheduled ps": ("list schedules", arguments.ScheduledPs, schedules.ps, {"all": True}),
    "scheduled inspect": ("show all that is known of a schedule", arguments.OneSchedule, schedules.inspect, _SCHEDULE),
    "scheduled trigger": ("start a run of a schedule now", arguments.OneSchedule, schedules.trigger, _SCHEDULE),
    "scheduled suspend": ("stop a schedule for a while", arguments.OneSchedule, schedules.suspend, _SCHEDULE),
    "scheduled resume": ("let a schedule go on", arguments.OneSchedule, schedules.resume, _SCHEDULE),
    "scheduled reschedule": (
        "change when a schedule runs",
        arguments.Reschedule,
        schedules.reschedule,
        {**_SCHEDULE, "schedule": "@hourly"},
    ),
    "scheduled labels": (
        "name a schedule and label it",
        arguments.ScheduledLabels,
        schedules.labels,
        {**_SCHEDULE, "name": "nightly"},
    ),
    "scheduled delete": ("take a schedule away", arguments.OneSchedule, schedules.delete, _SCHEDULE),
}

OPERATIONS: dict[str, Operation] = {name: Operation(*row, name=name) for name, row in _TABLE.items()}
