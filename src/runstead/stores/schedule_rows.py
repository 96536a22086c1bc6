"""Schedules and their events as rows, and rows as frozen values."""

from typing import Any

from sqlalchemy import Column

from runstead.model.schedules import NewSchedule, Schedule, ScheduleEvent, ScheduleEventKind
from runstead.stores.database import Row
from runstead.stores.rows import instant_from, instant_to, json_to, spec_from, spec_to
from runstead.stores.schedule_tables import schedule_events, schedules

# What `schedule_from` takes, in its order.
SCHEDULE_COLUMNS: tuple[Column[Any], ...] = (
    schedules.c.seq,
    schedules.c.id,
    schedules.c.namespace_id,
    schedules.c.namespace,
    schedules.c.namespace_kind,
    schedules.c.created_by_id,
    schedules.c.created_by,
    schedules.c.spec,
    schedules.c.labels,
    schedules.c.expression,
    schedules.c.time_zone,
    schedules.c.concurrency,
    schedules.c.suspended,
    schedules.c.suspend_reason,
    schedules.c.next_run_at,
    schedules.c.last_job_id,
    schedules.c.last_run_at,
    schedules.c.created_at,
    schedules.c.version,
    schedules.c.runs,
    schedules.c.cost_micro_usd,
)

# What a statement returns that changes a schedule: its number of events stands behind it.
WITH_EVENTS = (*SCHEDULE_COLUMNS, schedules.c.events)
EVENTS = len(SCHEDULE_COLUMNS)


def schedule_from(row: Row) -> Schedule:
    """Return the schedule in a row of `SCHEDULE_COLUMNS`; further columns are ignored."""
    return Schedule(
        seq=row[0],
        id=row[1],
        namespace_id=row[2],
        namespace=row[3],
        namespace_kind=row[4],
        created_by_id=row[5],
        created_by=row[6],
        spec=spec_from(row[7], row[8]),
        expression=row[9],
        time_zone=row[10],
        concurrency=bool(row[11]),
        suspended=bool(row[12]),
        suspend_reason=row[13],
        next_run_at=None if row[14] is None else instant_from(row[14]),
        last_job_id=row[15],
        last_run_at=None if row[16] is None else instant_from(row[16]),
        created_at=instant_from(row[17]),
        version=row[18],
        runs=row[19],
        cost_micro_usd=row[20],
    )


def schedule_to(schedule: NewSchedule) -> dict[str, Any]:
    """Return the columns of a schedule about to be stored."""
    return {
        "id": schedule.id,
        "namespace_id": schedule.namespace_id,
        "namespace": schedule.namespace,
        "namespace_kind": schedule.namespace_kind,
        "created_by_id": schedule.created_by_id,
        "created_by": schedule.created_by,
        "spec": spec_to(schedule.spec),
        "labels": json_to(dict(schedule.spec.labels)),
        "expression": schedule.expression,
        "time_zone": schedule.time_zone,
        "concurrency": schedule.concurrency,
        "suspended": schedule.suspended,
        "next_run_at": None if schedule.next_run_at is None else instant_to(schedule.next_run_at),
        "created_at": instant_to(schedule.created_at),
        "version": 1,
        "events": 1,
        "runs": 0,
        "cost_micro_usd": 0,
    }


EVENT_COLUMNS: tuple[Column[Any], ...] = (
    schedule_events.c.at,
    schedule_events.c.kind,
    schedule_events.c.due_at,
    schedule_events.c.job_id,
    schedule_events.c.message,
    schedule_events.c.count,
)


def event_from(row: Row) -> ScheduleEvent:
    """Return the event in a row of `EVENT_COLUMNS`."""
    at, kind, due_at, job_id, message, count = row
    due = None if due_at is None else instant_from(due_at)
    return ScheduleEvent(instant_from(at), ScheduleEventKind(kind), due, job_id, message, count)


def event_to(seq: int, number: int, event: ScheduleEvent) -> dict[str, Any]:
    """Return the columns of an event about to be stored."""
    return {
        "seq": seq,
        "number": number,
        "at": instant_to(event.at),
        "kind": event.kind.value,
        "due_at": None if event.due_at is None else instant_to(event.due_at),
        "job_id": event.job_id,
        "message": event.message,
        "count": event.count,
    }
