"""Schedules in SQL.

Whoever changes a schedule names the version that was seen, so that of two callers one wins and the other sees that it
lost. A run and the move to the next due instant are one transaction.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Update, bindparam, delete, select, text, update

# Its ON CONFLICT is written alike for SQLite; the SQLite form of it cannot be written for PostgreSQL.
from sqlalchemy.dialects.postgresql import insert

from runstead.model.costs import cost_micro_usd
from runstead.model.errors import Conflict
from runstead.model.jobs import Job, NewJob, Stage
from runstead.model.schedules import (
    Fired,
    Firing,
    NewSchedule,
    Outcome,
    Schedule,
    ScheduleEvent,
    ScheduleEventKind,
)
from runstead.stores.database import Database, Transaction, reject_unstorable
from runstead.stores.interface import ScheduleChange, ScheduleStore
from runstead.stores.jobs import checked_row, insert_job
from runstead.stores.portable import one_of, text_list
from runstead.stores.rows import instant_from, instant_to, label_columns, spec_to
from runstead.stores.schedule_rows import (
    EVENT_COLUMNS,
    SCHEDULE_COLUMNS,
    event_from,
    event_to,
    schedule_from,
    schedule_to,
)
from runstead.stores.schedule_tables import RUNS_IN_HAND, TO_RUN, schedule_events, schedule_secrets, schedules
from runstead.stores.tables import jobs

_EVENTS_KEPT = 100


class SqlScheduleStore(ScheduleStore):
    """Schedules in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, schedule: NewSchedule) -> Schedule:
        """Store a schedule with all that belongs to it."""
        row = schedule_to(schedule)
        reject_unstorable(row)
        created = ScheduleEvent(
            schedule.created_at, ScheduleEventKind.CREATED, message=f"{schedule.expression} by {schedule.created_by}"
        )

        def work(transaction: Transaction) -> Schedule:
            seq = transaction.rows(_INSERT, row)[0][0]
            transaction.run(_INSERT_EVENT, event_to(seq, 1, created))
            if schedule.sealed_secrets is not None:
                transaction.run(_INSERT_SECRETS, {"seq": seq, "sealed": schedule.sealed_secrets})
            return schedule_from(transaction.rows(_BY_SEQ, {"seq": seq})[0])

        return await self._database.write(work)

    async def get(self, schedule_id: str) -> Schedule | None:
        """Return the schedule, or None."""
        row = await self._database.read(lambda transaction: transaction.row(_BY_ID, {"id": schedule_id}))
        return None if row is None else schedule_from(row)

    async def all(self, namespace: str, labels: Mapping[str, str]) -> list[Schedule]:
        """Return the schedules of a namespace, newest first."""
        wanted = labels.items()

        def work(transaction: Transaction) -> list[Schedule]:
            found = [schedule_from(row) for row in transaction.rows(_OF_NAMESPACE, {"namespace": namespace})]
            return [one for one in found if wanted <= one.spec.labels.items()] if labels else found

        return await self._database.read(work)

    async def after(self, seq: int, limit: int) -> list[Schedule]:
        """Return schedules of all namespaces."""
        rows = await self._database.read(lambda t: t.rows(_AFTER, {"seq": seq, "limit": limit}))
        return [schedule_from(row) for row in rows]

    async def sealed_secrets(self, schedule_id: str) -> bytes | None:
        """Return the sealed secrets."""
        row = await self._database.read(lambda transaction: transaction.row(_SECRETS, {"id": schedule_id}))
        return None if row is None else bytes(row[0])

    async def change(self, seen: Schedule, change: ScheduleChange) -> Schedule | None:
        """Change a schedule that is as it was seen."""
        columns = _columns(change)
        reject_unstorable(columns)
        event = change.event
        statement = _change(tuple(sorted(columns)))
        parameters = {f"new_{name}": value for name, value in columns.items()} | {
            "of_seq": seen.seq,
            "of_version": seen.version,
            "more_events": 0 if event is None else 1,
        }

        def work(transaction: Transaction) -> Schedule | None:
            row = transaction.row(statement, parameters)
            if row is not None and event is not None:
                _note(transaction, seen.seq, row[_EVENTS], event)
            return None if row is None else schedule_from(row)

        return await self._database.write(work)

    async def delete(self, schedule_id: str) -> bool:
        """Delete a schedule; the database deletes its secrets and events with it."""
        return await self._database.write(lambda transaction: transaction.run(_DELETE, {"of_id": schedule_id})) > 0

    async def events(self, schedule_id: str, limit: int) -> list[ScheduleEvent]:
        """Return the last events."""
        rows = await self._database.read(lambda t: t.rows(_EVENTS_OF, {"id": schedule_id, "limit": limit}))
        return [event_from(row) for row in rows]

    async def due(self, now: datetime, limit: int) -> list[Schedule]:
        """Return schedules whose next run is due."""
        parameters = {"now": instant_to(now), "limit": limit}
        rows = await self._database.read(lambda transaction: transaction.rows(_DUE, parameters))
        return [schedule_from(row) for row in rows]

    async def next_due(self) -> datetime | None:
        """Return when the next run is due."""
        row = await self._database.read(lambda transaction: transaction.row(_NEXT_DUE))
        return None if row is None else instant_from(row[0])

    async def in_other_zones(self, time_zone: str) -> list[Schedule]:
        """Return the schedules whose next run was found in another time zone."""
        rows = await self._database.read(lambda transaction: transaction.rows(_IN_OTHER_ZONES, {"zone": time_zone}))
        return [schedule_from(row) for row in rows]

    async def fire(self, firing: Firing) -> Fired:
        """Store a due run and move the schedule on, or pass the instant over."""
        seen, new = firing.schedule, firing.job
        row = None if new is None else checked_row(new)
        seen_due = None if seen.next_run_at is None else instant_to(seen.next_run_at)
        guard = {"of_seq": seen.seq, "of_version": seen.version, "of_due": seen_due}

        def work(transaction: Transaction) -> Fired:
            found = transaction.row(_TO_FIRE, guard)
            if found is None:
                return Fired(Outcome.LOST)
            schedule = schedule_from(found)
            number = found[_EVENTS]
            if firing.missed is not None:
                number += 1
                missed = ScheduleEvent(firing.at, ScheduleEventKind.MISSED, message=firing.missed)
                _note(transaction, schedule.seq, number, missed)
            job, event = _begun(transaction, schedule, firing, row)
            if event is not None and not _repeated(transaction, schedule.seq, number, event):
                number += 1
                _note(transaction, schedule.seq, number, event)
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

        return await self._database.write(work)

    async def trigger(self, seen: Schedule, job: NewJob, at: datetime) -> Job | None:
        """Store a run that somebody asked for."""
        row = checked_row(job)

        def work(transaction: Transaction) -> Job | None:
            found = transaction.row(_BY_SEQ_TO_CHANGE, {"seq": seen.seq})
            if found is None:
                return None
            schedule = schedule_from(found)
            active = _active_run(transaction, schedule)
            if active is not None:
                raise Conflict(
                    f"a run of this schedule is active, and it allows one at a time: wait for it, or cancel it with "
                    f"`hf jobs cancel {active}`"
                )
            stored, _ = insert_job(transaction, job, row)
            number = found[_EVENTS] + 1
            _note(
                transaction,
                schedule.seq,
                number,
                ScheduleEvent(at, ScheduleEventKind.TRIGGERED, job_id=stored.id, message=None),
            )
            transaction.run(
                _TRIGGERED,
                {
                    "of_seq": schedule.seq,
                    "new_events": number,
                    "new_last": stored.id,
                    "new_last_at": instant_to(at),
                },
            )
            return stored

        return await self._database.write(work)

    async def cost_so_far(self, schedule_ids: Collection[str], now: datetime) -> Mapping[str, int]:
        """Return what the running attempts have cost until now."""
        if not schedule_ids:
            return {}
        parameters = {"ids": text_list(schedule_ids)}
        rows = await self._database.read(lambda transaction: transaction.rows(_RUNNING, parameters))
        costs: dict[str, int] = {}
        for schedule_id, price, began in rows:
            costs[schedule_id] = costs.get(schedule_id, 0) + cost_micro_usd(price, now - instant_from(began))
        return costs


# Behind the schedule, what a statement returns that changes one.
_EVENTS = len(SCHEDULE_COLUMNS)
_OPEN_STAGES = "('" + "', '".join(stage.value for stage in Stage if not stage.is_terminal) + "')"


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


def _note(transaction: Transaction, seq: int, number: int, event: ScheduleEvent) -> None:
    """Store an event and forget the one that is too many."""
    row = event_to(seq, number, event)
    transaction.run(_INSERT_EVENT, row)
    transaction.run(_FORGET_EVENTS, {"of_seq": seq, "of_number": number - _EVENTS_KEPT})


def _repeated(transaction: Transaction, seq: int, number: int, event: ScheduleEvent) -> bool:
    """Count the last event once more if this is alike; say whether it was."""
    if event.kind is not ScheduleEventKind.SKIPPED:
        return False
    row = event_to(seq, number, event)
    return transaction.run(_REPEAT, {f"of_{name}": value for name, value in row.items()}) > 0


def _columns(change: ScheduleChange) -> dict[str, Any]:
    """Return the columns that a change sets."""
    columns: dict[str, Any] = {}
    if change.suspended is not None:
        columns |= {"suspended": change.suspended, "suspend_reason": change.suspend_reason}
    if change.expression is not None:
        columns["expression"] = change.expression
    if change.labels is not None:
        columns["labels"] = label_columns(change.labels)
    if change.spec is not None:
        columns["spec"] = spec_to(change.spec)
    if change.created_by is not None:
        columns["created_by_id"], columns["created_by"] = change.created_by
    if change.timing is not None:
        next_run_at, columns["time_zone"] = change.timing
        columns["next_run_at"] = None if next_run_at is None else instant_to(next_run_at)
    return columns


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_WITH_EVENTS = (*SCHEDULE_COLUMNS, schedules.c.events)
_OF_SEQ = schedules.c.seq == bindparam("of_seq")
_NEXT_VERSION = {"version": schedules.c.version + 1}

_INSERT = (
    insert(schedules)
    .values(
        _binds(
            *("id", "namespace_id", "namespace", "namespace_kind", "created_by_id", "created_by", "spec", "labels"),
            *("expression", "time_zone", "concurrency", "suspended", "next_run_at", "created_at", "version", "events"),
            *("runs", "cost_micro_usd"),
        )
    )
    .returning(schedules.c.seq)
)
_INSERT_SECRETS = insert(schedule_secrets).values(_binds("seq", "sealed"))
_BY_SEQ = select(*_WITH_EVENTS).where(schedules.c.seq == bindparam("seq"))
_BY_SEQ_TO_CHANGE = _BY_SEQ.with_for_update()
_BY_ID = select(*SCHEDULE_COLUMNS).where(schedules.c.id == bindparam("id"))
_OF_NAMESPACE = (
    select(*SCHEDULE_COLUMNS).where(schedules.c.namespace == bindparam("namespace")).order_by(schedules.c.seq.desc())
)
_AFTER = (
    select(*SCHEDULE_COLUMNS)
    .where(schedules.c.seq > bindparam("seq"))
    .order_by(schedules.c.seq)
    .limit(bindparam("limit"))
)
_SECRETS = (
    select(schedule_secrets.c.sealed).join_from(schedule_secrets, schedules).where(schedules.c.id == bindparam("id"))
)
_DELETE = delete(schedules).where(schedules.c.id == bindparam("of_id"))

_DUE = (
    select(*SCHEDULE_COLUMNS)
    .where(text(TO_RUN), schedules.c.next_run_at <= bindparam("now"))
    .order_by(schedules.c.next_run_at)
    .limit(bindparam("limit"))
)
_NEXT_DUE = select(schedules.c.next_run_at).where(text(TO_RUN)).order_by(schedules.c.next_run_at).limit(1)
_IN_OTHER_ZONES = (
    select(*SCHEDULE_COLUMNS).where(text(TO_RUN), schedules.c.time_zone != bindparam("zone")).order_by(schedules.c.seq)
)
_TO_FIRE = (
    select(*_WITH_EVENTS)
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
_RUNNING = select(jobs.c.initiator_id, jobs.c.price_micro_usd, jobs.c.started_at).where(
    text(RUNS_IN_HAND),
    jobs.c.started_at.is_not(None),
    jobs.c.finished_at.is_(None),
    one_of(jobs.c.initiator_id, "ids"),
)

_INSERT_EVENT = insert(schedule_events).values(_binds(*schedule_events.c.keys()))
_FORGET_EVENTS = delete(schedule_events).where(
    schedule_events.c.seq == bindparam("of_seq"), schedule_events.c.number <= bindparam("of_number")
)
_EVENTS_OF = (
    select(*EVENT_COLUMNS)
    .join_from(schedule_events, schedules)
    .where(schedules.c.id == bindparam("id"))
    .order_by(schedule_events.c.number.desc())
    .limit(bindparam("limit"))
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


@cache
def _change(columns: tuple[str, ...]) -> Update:
    """Return the statement that sets these columns of a schedule that is as it was seen."""
    return (
        update(schedules)
        .values(
            {
                **{name: bindparam(f"new_{name}") for name in columns},
                **_NEXT_VERSION,
                "events": schedules.c.events + bindparam("more_events"),
            }
        )
        .where(_OF_SEQ, schedules.c.version == bindparam("of_version"))
        .returning(*_WITH_EVENTS)
    )
