"""How runs of schedules begin, in SQL.

The run, the event that tells of it, and the schedule's move to its next due instant are one transaction.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select, text, update

# Its ON CONFLICT is written alike for SQLite; the SQLite form of it cannot be written for PostgreSQL.
from sqlalchemy.dialects.postgresql import insert

from runstead.model.errors import Conflict
from runstead.model.jobs import Job, NewJob, Stage
from runstead.model.schedules import Fired, Firing, Outcome, Schedule, ScheduleEvent, ScheduleEventKind
from runstead.stores.database import Transaction
from runstead.stores.jobs import insert_job
from runstead.stores.rows import instant_to
from runstead.stores.schedule_rows import EVENTS, WITH_EVENTS, event_to, schedule_from
from runstead.stores.schedule_tables import schedule_events, schedules
from runstead.stores.tables import jobs

_EVENTS_KEPT = 100
_OPEN_STAGES = "('" + "', '".join(stage.value for stage in Stage if not stage.is_terminal) + "')"


def fire(transaction: Transaction, firing: Firing, row: Mapping[str, Any] | None) -> Fired:
    """Let a due instant take effect if its schedule is as it was seen; `row` is that of the firing's job."""
    seen = firing.schedule
    seen_due = None if seen.next_run_at is None else instant_to(seen.next_run_at)
    found = transaction.row(_TO_FIRE, {"of_seq": seen.seq, "of_version": seen.version, "of_due": seen_due})
    if found is None:
        return Fired(Outcome.LOST)
    schedule, number = schedule_from(found), found[EVENTS]
    if firing.missed is not None:
        number += 1
        missed = ScheduleEvent(firing.at, ScheduleEventKind.MISSED, message=firing.missed)
        note(transaction, schedule.seq, number, missed)
    job, event = _begun(transaction, schedule, firing, row)
    if event is not None and not _repeated(transaction, schedule.seq, number, event):
        number += 1
        note(transaction, schedule.seq, number, event)
    moved = {
        "of_seq": schedule.seq,
        "new_events": number,
        "new_next": None if firing.next_run_at is None else instant_to(firing.next_run_at),
    }
    if job is None:
        transaction.run(_PASS, moved)
        return Fired(Outcome.SKIPPED)
    transaction.run(_RUN, {**moved, "new_last": job.id, "new_last_at": instant_to(firing.at)})
    return Fired(Outcome.STARTED, job)


def trigger(transaction: Transaction, seen: Schedule, job: NewJob, row: Mapping[str, Any], at: datetime) -> Job | None:
    """Store a run that somebody asked for; None if the schedule is gone. Raises Conflict while another is active."""
    found = transaction.row(_TO_TRIGGER, {"of_seq": seen.seq})
    if found is None:
        return None
    schedule, number = schedule_from(found), found[EVENTS] + 1
    active = _active_run(transaction, schedule)
    if active is not None:
        raise Conflict(
            f"a run of this schedule is active, and it allows one at a time: wait for it, or cancel it with "
            f"`hf jobs cancel {active}`"
        )
    stored, _ = insert_job(transaction, job, row)
    note(transaction, schedule.seq, number, ScheduleEvent(at, ScheduleEventKind.TRIGGERED, job_id=stored.id))
    began = {"of_seq": schedule.seq, "new_events": number, "new_last": stored.id, "new_last_at": instant_to(at)}
    transaction.run(_TRIGGERED, began)
    return stored


def note(transaction: Transaction, seq: int, number: int, event: ScheduleEvent) -> None:
    """Store an event and forget the one that is too many."""
    transaction.run(_INSERT_EVENT, event_to(seq, number, event))
    transaction.run(_FORGET_EVENTS, {"of_seq": seq, "of_number": number - _EVENTS_KEPT})


def _begun(
    transaction: Transaction, schedule: Schedule, firing: Firing, row: Mapping[str, Any] | None
) -> tuple[Job | None, ScheduleEvent | None]:
    """Store the run, unless there is a reason not to; return it and what to note."""
    at, due = firing.at, firing.due_at
    if firing.job is None or row is None:
        event = ScheduleEvent(at, ScheduleEventKind.SKIPPED, due, None, firing.message) if firing.message else None
        return None, event
    active = _active_run(transaction, schedule)
    if active is not None:
        message = "another run was active, and the schedule allows one at a time"
        return None, ScheduleEvent(at, ScheduleEventKind.SKIPPED, due, active, message)
    job, is_new = insert_job(transaction, firing.job, row)
    # Else the instant had its run before the clock was turned back.
    return (job, ScheduleEvent(at, ScheduleEventKind.RUN, due, job.id, firing.message)) if is_new else (None, None)


def _active_run(transaction: Transaction, schedule: Schedule) -> str | None:
    """Return the run that keeps another from beginning."""
    if schedule.concurrency or schedule.last_job_id is None:
        return None
    row = transaction.row(_OPEN, {"id": schedule.last_job_id})
    return None if row is None else row[0]


def _repeated(transaction: Transaction, seq: int, number: int, event: ScheduleEvent) -> bool:
    """Count the last event once more if this is alike; say whether it was."""
    if event.kind is not ScheduleEventKind.SKIPPED:
        return False
    row = event_to(seq, number, event)
    return transaction.run(_REPEAT, {f"of_{name}": value for name, value in row.items()}) > 0


_OF_SEQ = schedules.c.seq == bindparam("of_seq")
_NEXT_VERSION = {"version": schedules.c.version + 1}
_TO_TRIGGER = select(*WITH_EVENTS).where(_OF_SEQ).with_for_update()
_TO_FIRE = (
    select(*WITH_EVENTS)
    .where(
        _OF_SEQ,
        schedules.c.version == bindparam("of_version"),
        schedules.c.next_run_at == bindparam("of_due"),
    )
    .with_for_update()
)
_OPEN = select(jobs.c.id).where(jobs.c.id == bindparam("id"), text(f"stage IN {_OPEN_STAGES}"))
_PASS = (
    update(schedules)
    .values(next_run_at=bindparam("new_next"), events=bindparam("new_events"), **_NEXT_VERSION)
    .where(_OF_SEQ)
)
_BEGAN: dict[str, Any] = {
    "last_job_id": bindparam("new_last"),
    "last_run_at": bindparam("new_last_at"),
    "runs": schedules.c.runs + 1,
}
_RUN = _PASS.values(_BEGAN)
_TRIGGERED = update(schedules).values(events=bindparam("new_events"), **_NEXT_VERSION, **_BEGAN).where(_OF_SEQ)
_INSERT_EVENT = insert(schedule_events).values({column.name: bindparam(column.name) for column in schedule_events.c})
_FORGET_EVENTS = delete(schedule_events).where(
    schedule_events.c.seq == bindparam("of_seq"), schedule_events.c.number <= bindparam("of_number")
)
_REPEAT = (
    update(schedule_events)
    .values(count=schedule_events.c.count + 1, at=bindparam("of_at"), due_at=bindparam("of_due_at"))
    .where(
        schedule_events.c.seq == bindparam("of_seq"),
        schedule_events.c.number == bindparam("of_number"),
        schedule_events.c.kind == bindparam("of_kind"),
        schedule_events.c.job_id.is_not_distinct_from(bindparam("of_job_id")),
        schedule_events.c.message.is_not_distinct_from(bindparam("of_message")),
    )
)
