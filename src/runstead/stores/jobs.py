"""Jobs in SQL. One class for both databases; what differs is in how statements are run, not in what they say.

A job changes only by statements that name the state they expect, so that of two callers one wins and the other
sees that it lost. `version` counts the changes and numbers the history.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    Select,
    Update,
    bindparam,
    case,
    delete,
    exists,
    literal_column,
    null,
    or_,
    select,
    text,
    union_all,
    update,
)

# Its ON CONFLICT is written alike for SQLite; the SQLite form of it cannot be written for PostgreSQL.
from sqlalchemy.dialects.postgresql import insert

from runstead.model.errors import Conflict
from runstead.model.jobs import (
    UNSET,
    CancelReason,
    FailureClass,
    HistoryEntry,
    Job,
    JobFilter,
    NewJob,
    Phase,
    Reservation,
    Stage,
    Transition,
    Unset,
)
from runstead.model.ports import Ports
from runstead.stores import labels as label_rows
from runstead.stores import ledger
from runstead.stores.database import Database, Row, Transaction, reject_unstorable
from runstead.stores.interface import Admission, JobStore, Waiting
from runstead.stores.pages import NEWEST, SIZE, listing
from runstead.stores.rows import (
    HISTORY_COLUMNS,
    JOB_COLUMNS,
    history_from,
    instant_to,
    job_as_stored,
    job_from,
    job_to,
    json_to,
    label_columns,
    reservation_from,
    reservation_to,
    spec_to,
)
from runstead.stores.tables import (
    FINISHED,
    HOLDING,
    IN_HAND,
    IN_QUEUE,
    KEYED,
    NOBODY,
    TO_BE_CANCELLED,
    job_history,
    job_labels,
    job_secrets,
    jobs,
    leases,
)

_OPEN_STAGES = tuple(stage.value for stage in Stage if not stage.is_terminal)


class SqlJobStore(JobStore):
    """Jobs in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: NewJob) -> Job:
        """Store a job with all that belongs to it."""
        row = checked_row(job)
        try:
            return await self._database.write(lambda transaction: insert_job(transaction, job, row)[0])
        except Conflict as error:
            raise Conflict(f"there is a job of that id already: {job.id}") from error

    async def add_all(self, jobs: Sequence[NewJob]) -> list[Job]:
        """Store several jobs in one transaction."""
        rows = checked_rows(jobs)

        def work(transaction: Transaction) -> list[Job]:
            return [insert_job(transaction, job, row)[0] for job, row in zip(jobs, rows, strict=True)]

        try:
            return await self._database.write(work)
        except Conflict as error:
            raise Conflict(f"there is a job already of one of the ids: {jobs[0].id} and others") from error

    async def get(self, job_id: str) -> Job | None:
        """Return the job, or None."""
        row = await self._database.look(lambda transaction: transaction.row(_BY_ID, {"id": job_id}))
        return None if row is None else job_from(row)

    async def keyed(self, namespace: str, idempotency_key: str) -> Job | None:
        """Return the job that was stored with that key."""
        wanted = {"namespace": namespace, "idempotency_key": idempotency_key}
        row = await self._database.look(lambda transaction: transaction.row(_BY_KEY, wanted))
        return None if row is None else job_from(row)

    async def page(self, namespace: str, wanted: JobFilter, before_seq: int | None, limit: int) -> list[Job]:
        """Return a page of jobs, newest first."""
        found = label_rows.search(namespace, wanted.labels) if wanted.labels else []

        def work(transaction: Transaction) -> list[Job]:
            asked = listing(namespace, wanted, [_rarest_first(transaction, part) for part in found])
            before = NEWEST if before_seq is None else before_seq
            rows = transaction.rows(asked.page, {**asked.parameters, "before": before, "limit": limit})
            return [job_from(row) for row in rows]

        return await self._database.read(work)

    async def count(self, namespace: str, wanted: JobFilter) -> int:
        """Count the jobs a filter lets through; this walks an index over all of them."""
        found = label_rows.search(namespace, wanted.labels) if wanted.labels else []

        def work(transaction: Transaction) -> int:
            asked = listing(namespace, wanted, [_rarest_first(transaction, part) for part in found])
            return int(transaction.rows(asked.count, asked.parameters)[0][0])

        return await self._database.read(work)

    async def sealed_secrets(self, job_id: str) -> bytes | None:
        """Return the sealed secrets."""
        row = await self._database.look(lambda transaction: transaction.row(_SECRETS, {"id": job_id}))
        return None if row is None else bytes(row[0])

    async def set_labels(self, job_id: str, labels: Mapping[str, str]) -> Job | None:
        """Replace all labels."""
        stored = label_columns(labels)

        def work(transaction: Transaction) -> Row | None:
            row = transaction.row(_BY_ID_TO_CHANGE, {"id": job_id})
            if row is None:
                return None
            job = job_from(row)
            _delete_labels(transaction, job)
            transaction.run_many(_INSERT_LABEL, _label_rows(job, labels))
            return transaction.row(_SET_LABELS, {"of_seq": job.seq, "new_labels": stored})

        row = await self._database.write(work)
        return None if row is None else job_from(row)

    async def set_ports(self, job_id: str, ports: Ports) -> Job | None:
        """Replace the exposed ports."""

        def work(transaction: Transaction) -> Row | None:
            row = transaction.row(_BY_ID_TO_CHANGE, {"id": job_id})
            if row is None or job_from(row).stage.is_terminal:
                return row
            job = job_from(row)
            stored = spec_to(replace(job.spec, ports=ports))
            return transaction.row(_SET_SPEC, {"of_seq": job.seq, "new_spec": stored})

        row = await self._database.write(work)
        return None if row is None else job_from(row)

    async def open_with_ports(self) -> list[Job]:
        """Return all jobs that are not over and expose ports."""
        rows = await self._database.read(lambda transaction: transaction.rows(_OPEN_WITH_PORTS))
        return [job for job in map(job_from, rows) if job.spec.ports]

    async def request_cancel(self, job_id: str, at: datetime, reason: CancelReason = CancelReason.ASKED) -> Job | None:
        """Note that the job shall be cancelled."""
        why = None if reason is CancelReason.ASKED else reason.value
        parameters = {"id": job_id, "of_id": job_id, "at": instant_to(at), "reason": why}

        def work(transaction: Transaction) -> Row | None:
            return transaction.row(_REQUEST_CANCEL, parameters) or transaction.row(_BY_ID, parameters)

        row = await self._database.write(work)
        return None if row is None else job_from(row)

    async def history(self, job_id: str) -> list[HistoryEntry]:
        """Return the job's changes, oldest first."""
        rows = await self._database.read(lambda transaction: transaction.rows(_HISTORY, {"id": job_id}))
        return [history_from(job_id, row) for row in rows]

    async def waiting(self, now: datetime, per_flavor: int) -> list[Waiting]:
        """Return the heads of the queue by flavor."""
        parameters: dict[str, Any] = {"now": instant_to(now), "limit": per_flavor}

        def work(transaction: Transaction) -> list[Waiting]:
            flavors = [flavor for (flavor,) in transaction.rows(_QUEUED_FLAVORS)]
            parameters.update({f"flavor_{n}": flavor for n, flavor in enumerate(flavors)})
            heads: dict[str, list[Job]] = {}
            for row in transaction.rows(_queue_heads(len(flavors)), parameters) if flavors else ():
                heads.setdefault(row[-1], []).append(job_from(row))
            return [Waiting(flavor, head) for flavor, head in sorted(heads.items())]

        return await self._database.read(work)

    async def held(self, executor: str) -> list[Reservation]:
        """Return what the jobs on this executor instance hold."""
        rows = await self._database.read(lambda transaction: transaction.rows(_HELD, {"executor": executor}))
        return [reservation_from(row[0]) for row in rows]

    async def admit(
        self, admissions: Sequence[Admission], owner: str, lease_until: datetime, at: datetime
    ) -> list[Job]:
        """Move jobs from WAITING to STARTING and lease them."""
        reject_unstorable({"owner": owner})
        lease: dict[str, Any] = {"owner": owner, "until": instant_to(lease_until), "now": instant_to(at)}

        def work(transaction: Transaction) -> list[Row]:
            _begin_lease(transaction, lease)
            rows: list[Row] = []
            # In one order whoever calls: two callers that lock the same jobs then wait instead of deadlocking.
            for admission in sorted(admissions, key=lambda admission: admission.job_id):
                rows += transaction.rows(_ADMIT, _admission_to(admission, owner))
            transaction.run_many(_INSERT_HISTORY, [_entry(row, lease["now"], row[_ATTEMPT]) for row in rows])
            return rows

        return [job_from(row) for row in await self._database.write(work)] if admissions else []

    async def claim(
        self,
        executors: Collection[str],
        owner: str,
        now: datetime,
        lease_until: datetime,
        limit: int,
    ) -> list[Job]:
        """Lease jobs that nobody holds."""
        reject_unstorable({"owner": owner})
        lease: dict[str, Any] = {"owner": owner, "until": instant_to(lease_until), "now": instant_to(now)}

        def work(transaction: Transaction) -> list[Row]:
            rows = transaction.rows(_FREE_TO_BE_CANCELLED, {**lease, "limit": limit})
            for executor in sorted(set(executors)):
                if len(rows) < limit:
                    wanted = {**lease, "executor": executor, "limit": limit - len(rows)}
                    rows += transaction.rows(_FREE_IN_HAND, wanted)
            if rows:
                transaction.run(_FORGET_GONE, lease)
                _begin_lease(transaction, lease)
                transaction.run_many(_LEASE, [{"of_seq": row[0], "owner": owner} for row in rows])
            return rows

        return [job_from(row) for row in await self._database.write(work)]

    async def renew(self, owner: str, lease_until: datetime) -> None:
        """Extend every lease of `owner`: one row, however many jobs."""
        parameters = {"owner": owner, "until": instant_to(lease_until)}
        await self._database.write(lambda transaction: transaction.run(_RENEW, parameters))

    async def release_leases(self, owners_prefix: str) -> None:
        """Drop the leases of owners whose name begins so."""

        def work(transaction: Transaction) -> None:
            owners = [owner for (owner,) in transaction.rows(_OWNERS) if owner and owner.startswith(owners_prefix)]
            for owner in owners:
                _drop_leases(transaction, owner)
                transaction.run(_FORGET_OWNER, {"owner": owner})

        await self._database.write(work)

    async def leased(self, owner: str) -> list[Job]:
        """Return the jobs in hand that are leased to `owner`."""
        rows = await self._database.read(lambda transaction: transaction.rows(_LEASED, {"owner": owner}))
        return [job_from(row) for row in rows]

    async def apply(self, transition: Transition, owner: str) -> Job | None:
        """Apply a guarded change with its history row."""
        changes = _changes(transition)
        reject_unstorable(changes)
        statement = _apply(tuple(sorted(changes)), tuple(sorted(transition.from_phases)))
        parameters = {f"new_{name}": value for name, value in changes.items()}
        parameters |= {"of_id": transition.job_id, "of_attempt": transition.attempt, "of_owner": owner}
        at = instant_to(transition.at)

        def work(transaction: Transaction) -> Job | None:
            row = transaction.row(statement, parameters)
            if row is None:
                return None
            transaction.run(_INSERT_HISTORY, _entry(row, at, transition.attempt))
            job = job_from(row)
            if row[_LABELS] != "{}" and Phase.RELEASING not in transition.from_phases:
                _move_labels(transaction, row)
            if _ends_attempt(transition):
                job = ledger.settle(transaction, job, row[_RESERVED], transition) or job
            return job

        return await self._database.write(work)

    async def note(self, job_id: str, attempt: int, message: str, owner: str) -> bool:
        """Set the message of a job that starts."""
        reject_unstorable({"message": message})
        parameters = {"of_id": job_id, "of_attempt": attempt, "of_owner": owner, "new_message": message}
        return await self._database.write(lambda transaction: transaction.row(_NOTE, parameters)) is not None

    async def queue(self) -> list[tuple[int, str]]:
        """Return the waiting jobs in order."""
        rows = await self._database.read(lambda transaction: transaction.rows(_QUEUE))
        # Sorted here: asked for an order, SQLite would walk all jobs there ever were, which are in that order.
        return sorted((seq, job_id) for seq, job_id in rows)

    async def delete_finished(self, before: datetime, limit: int) -> list[Job]:
        """Delete jobs that finished before `before`, with all that belongs to them."""
        parameters = {"before": instant_to(before), "limit": limit}

        def work(transaction: Transaction) -> list[Job]:
            deleted = [job_from(row) for row in transaction.rows(_OLD, parameters)]
            for job in deleted:
                _delete_labels(transaction, job)
            transaction.run_many(_DELETE, [{"of_seq": job.seq} for job in deleted])
            return deleted

        return await self._database.write(work)


def checked_row(job: NewJob) -> dict[str, Any]:
    """Return the columns of a job about to be stored. Raises Invalid for what no database can keep."""
    return checked_rows([job])[0]


def checked_rows(jobs: Sequence[NewJob]) -> list[dict[str, Any]]:
    """Return the columns of each job, as `checked_row` does; faster where many are alike."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        alike = rows[-1] if rows and jobs[len(rows) - 1].spec is job.spec else None
        row = job_to(job, alike)
        reject_unstorable(row)
        rows.append(row)
    return rows


def insert_job(transaction: Transaction, job: NewJob, row: Mapping[str, Any]) -> tuple[Job, bool]:
    """Store a job with all that belongs to it, unless there is one of its idempotency key; and say whether it was.

    `row` is what `checked_row` returned. Raises OverBudget.
    """
    if job.idempotency_key is None:
        seq = transaction.rows(_INSERT, row)[0][0]
    else:
        inserted = transaction.row(_INSERT_ONCE, row)
        if inserted is None:
            return job_from(transaction.rows(_BY_KEY, row)[0]), False
        seq = inserted[0]
    ledger.reserve(transaction, job, row["created_at"])
    transaction.run(_INSERT_HISTORY, _first_entry(seq, row))
    digests = label_rows.digests_of(job.namespace, job.spec.labels)
    transaction.run_many(_INSERT_LABEL, [{"digest": d, "stage": row["stage"], "seq": seq} for d in digests])
    if job.sealed_secrets is not None:
        transaction.run(_INSERT_SECRETS, {"seq": seq, "sealed": job.sealed_secrets})
    return job_as_stored(job, seq), True


_POSITION = {column.name: place for place, column in enumerate(JOB_COLUMNS)}
_NAMESPACE, _SEQ, _LABELS = (_POSITION[n] for n in ("namespace", "seq", "labels"))
_STAGE, _PHASE = _POSITION["stage"], _POSITION["phase"]
_MESSAGE, _FAILURE, _ATTEMPT = _POSITION["message"], _POSITION["failure_class"], _POSITION["attempt"]
_VERSION, _RESERVED = len(JOB_COLUMNS), len(JOB_COLUMNS) + 1  # what a changing statement returns behind the job


def _first_entry(seq: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seq": seq,
        "version": 1,
        "at": row["created_at"],
        "attempt": 1,
        "stage": row["stage"],
        "phase": row["phase"],
        "message": row["message"],
        "failure_class": None,
    }


def _entry(row: Row, at: int, attempt: int) -> dict[str, Any]:
    """Return the history entry of a change, from the row as it is after it."""
    return {
        "seq": row[_SEQ],
        "version": row[_VERSION],
        "at": at,
        "attempt": attempt,
        "stage": row[_STAGE],
        "phase": row[_PHASE],
        "message": row[_MESSAGE],
        "failure_class": row[_FAILURE],
    }


def _admission_to(admission: Admission, owner: str) -> dict[str, Any]:
    reservation = admission.reservation
    return {
        "of_id": admission.job_id,
        "of_attempt": admission.attempt,
        "new_reservation": None if reservation is None else reservation_to(reservation),
        "new_executor": admission.executor,
        "new_owner": owner,
    }


def _changes(transition: Transition) -> dict[str, Any]:
    """Return the columns that a transition sets."""
    failure = transition.failure_class
    changes: dict[str, Any] = {
        "phase": transition.phase.value,
        "stage": transition.stage.value,
        "message": transition.message,
        "failure_class": failure.value if isinstance(failure, FailureClass) else failure,
        "exit_code": transition.exit_code,
        "executor": transition.executor,
        "attempt": transition.next_attempt,
        "failure_count": transition.failure_count,
        "started_at": _instant(transition.started_at),
        "finished_at": _instant(transition.finished_at),
        "not_before": _instant(transition.not_before),
    }
    changes = {name: value for name, value in changes.items() if value is not UNSET}
    if transition.handle is not UNSET:
        changes["handle"] = json_to(dict(transition.handle)) if isinstance(transition.handle, Mapping) else None
    if transition.reservation is not UNSET:
        held = transition.reservation
        changes["reservation"] = reservation_to(held) if isinstance(held, Reservation) else None
    if transition.phase in (Phase.WAITING, Phase.DONE):
        changes["lease_owner"] = NOBODY
    return changes


def _ends_attempt(transition: Transition) -> bool:
    """Say whether an attempt is over with this, or a job that had none."""
    if transition.phase is Phase.WAITING:
        return Phase.WAITING not in transition.from_phases
    return transition.phase in (Phase.RELEASING, Phase.DONE) and Phase.RELEASING not in transition.from_phases


def _instant(at: datetime | Unset | None) -> int | Unset | None:
    return instant_to(at) if isinstance(at, datetime) else at


def _rarest_first(transaction: Transaction, part: label_rows.Intersection) -> label_rows.Intersection:
    """Put the digest with the fewest jobs first, which is the one that is walked."""
    if len(part.digests) == 1:
        return part
    size = {digest: transaction.rows(SIZE, {"digest": digest})[0][0] for digest in part.digests}
    return label_rows.Intersection(sorted(part.digests, key=size.__getitem__))


def _label_rows(job: Job, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    digests = label_rows.digests_of(job.namespace, labels)
    return [{"digest": digest, "stage": job.stage.value, "seq": job.seq} for digest in digests]


def _delete_labels(transaction: Transaction, job: Job) -> None:
    rows = _label_rows(job, job.labels)
    transaction.run_many(_DELETE_LABEL, [{f"of_{name}": value for name, value in row.items()} for row in rows])


def _move_labels(transaction: Transaction, row: Row) -> None:
    """Put the label rows of a job under the stage that it now has."""
    digests = label_rows.digests_of(row[_NAMESPACE], json.loads(row[_LABELS]))
    moved = {"of_seq": row[_SEQ], "new_stage": row[_STAGE]}
    transaction.run_many(_MOVE_LABEL, [{**moved, "of_digest": digest} for digest in digests])


def _begin_lease(transaction: Transaction, lease: Mapping[str, Any]) -> None:
    """Make the owner's leases hold. What it leased before and let run out stays free: it may be taken by now."""
    renewed = transaction.run(_PROLONG, lease)
    if not renewed:
        _drop_leases(transaction, lease["owner"])
        transaction.run(_SET_LEASE, lease)


def _drop_leases(transaction: Transaction, owner: str) -> None:
    transaction.run(_DROP_IN_HAND, {"of_owner": owner})
    transaction.run(_DROP_TO_BE_CANCELLED, {"of_owner": owner})


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


def _texts(words: Iterable[str]) -> str:
    """Return words of ours as an SQL list."""
    return "('" + "', '".join(words) + "')"


# What a changing statement returns.
_CHANGED = (*JOB_COLUMNS, jobs.c.version, jobs.c.reserved_micro_usd)
_NEXT_VERSION = {"version": jobs.c.version + 1}
_OF_SEQ = jobs.c.seq == bindparam("of_seq")
_IN_QUEUE, _IN_HAND, _TO_BE_CANCELLED = text(IN_QUEUE), text(IN_HAND), text(TO_BE_CANCELLED)

_NEW = insert(jobs).values(
    _binds(
        *("id", "namespace_id", "namespace", "namespace_kind", "created_by_id", "created_by"),
        *("spec", "labels", "stage", "phase", "message", "created_at", "attempt", "failure_count", "flavor"),
        *("initiator_type", "initiator_id", "initiator_name", "version", "lease_owner", "idempotency_key"),
        *("price_micro_usd", "reserved_micro_usd"),
    )
)
_INSERT = _NEW.returning(jobs.c.seq)
_INSERT_ONCE = _NEW.on_conflict_do_nothing(
    index_elements=[jobs.c.namespace, jobs.c.idempotency_key], index_where=text(KEYED)
).returning(jobs.c.seq)
_INSERT_HISTORY = insert(job_history).values(_binds(*job_history.c.keys()))
_INSERT_SECRETS = insert(job_secrets).values(_binds("seq", "sealed"))
_INSERT_LABEL = insert(job_labels).values(_binds("digest", "stage", "seq"))

_BY_ID = select(*JOB_COLUMNS).where(jobs.c.id == bindparam("id"))
_BY_ID_TO_CHANGE = _BY_ID.with_for_update()
_BY_KEY = select(*JOB_COLUMNS).where(
    jobs.c.namespace == bindparam("namespace"), jobs.c.idempotency_key == bindparam("idempotency_key")
)
_SECRETS = select(job_secrets.c.sealed).join_from(job_secrets, jobs).where(jobs.c.id == bindparam("id"))
_HISTORY = (
    select(*HISTORY_COLUMNS)
    .join_from(job_history, jobs)
    .where(jobs.c.id == bindparam("id"))
    .order_by(job_history.c.version)
)

_SET_LABELS = update(jobs).values(labels=bindparam("new_labels")).where(_OF_SEQ).returning(*JOB_COLUMNS)
_OPEN_WITH_PORTS = select(*JOB_COLUMNS).where(text(f"stage IN {_texts(_OPEN_STAGES)}"), jobs.c.spec.like('%"ports":%'))
_SET_SPEC = update(jobs).values(spec=bindparam("new_spec")).where(_OF_SEQ).returning(*JOB_COLUMNS)
_OF_LABEL = (job_labels.c.digest == bindparam("of_digest"), job_labels.c.seq == bindparam("of_seq"))
_DELETE_LABEL = delete(job_labels).where(*_OF_LABEL, job_labels.c.stage == bindparam("of_stage"))
# Only from an open stage a job moves to another; which of them it was need not be known.
_MOVE_LABEL = (
    update(job_labels)
    .values(stage=bindparam("new_stage"))
    .where(*_OF_LABEL, text(f"stage IN {_texts(_OPEN_STAGES)}"), job_labels.c.stage != bindparam("new_stage"))
)

_REQUEST_CANCEL = (
    update(jobs)
    .values(cancel_requested_at=bindparam("at"), cancel_reason=bindparam("reason"))
    .where(
        jobs.c.id == bindparam("of_id"),
        jobs.c.cancel_requested_at.is_(None),
        text(f"stage IN {_texts(_OPEN_STAGES)}"),
    )
    .returning(*JOB_COLUMNS)
)

_NOTE = (
    update(jobs)
    .values(message=bindparam("new_message"))
    .where(
        jobs.c.id == bindparam("of_id"),
        jobs.c.attempt == bindparam("of_attempt"),
        text(f"phase = '{Phase.STARTING}'"),
        jobs.c.lease_owner == bindparam("of_owner"),
    )
    .returning(jobs.c.seq)
)

_READY = (
    _IN_QUEUE,
    jobs.c.cancel_requested_at.is_(None),
    or_(jobs.c.not_before.is_(None), jobs.c.not_before <= bindparam("now")),
)
_QUEUE = select(jobs.c.seq, jobs.c.id).where(_IN_QUEUE)
_FLAVOR = select(jobs.c.flavor).where(_IN_QUEUE).order_by(jobs.c.flavor).limit(1)
# From each flavor to the next, not from job to job.
_queued = select(_FLAVOR.scalar_subquery().label("flavor")).cte("queued", recursive=True)
_queued = _queued.union_all(
    select(_FLAVOR.where(jobs.c.flavor > _queued.c.flavor).correlate(_queued).scalar_subquery()).where(
        _queued.c.flavor.is_not(None)
    )
)
_QUEUED_FLAVORS = select(_queued.c.flavor).where(_queued.c.flavor.is_not(None))
_HELD = select(jobs.c.reservation).where(text(HOLDING), jobs.c.executor == bindparam("executor"))
_ADMIT = (
    update(jobs)
    .values(
        phase=literal_column(f"'{Phase.STARTING.value}'"),
        message=null(),
        not_before=null(),
        reservation=bindparam("new_reservation"),
        executor=bindparam("new_executor"),
        lease_owner=bindparam("new_owner"),
        **_NEXT_VERSION,
    )
    .where(
        jobs.c.id == bindparam("of_id"),
        jobs.c.attempt == bindparam("of_attempt"),
        _IN_QUEUE,
        jobs.c.cancel_requested_at.is_(None),
    )
    .returning(*_CHANGED)
)

_FREE = (
    select(*JOB_COLUMNS)
    .where(jobs.c.lease_owner.in_(select(leases.c.owner).where(leases.c.until <= bindparam("now"))))
    .limit(bindparam("limit"))
    .with_for_update(of=jobs, skip_locked=True)
)
_FREE_TO_BE_CANCELLED = _FREE.where(_TO_BE_CANCELLED)
_FREE_IN_HAND = _FREE.where(_IN_HAND, jobs.c.executor == bindparam("executor"))
_LEASE = update(jobs).values(lease_owner=bindparam("owner")).where(_OF_SEQ)
_LEASED = select(*JOB_COLUMNS).where(_IN_HAND, jobs.c.lease_owner == bindparam("owner")).order_by(jobs.c.seq)

_UNTIL: BindParameter[int] = bindparam("until")
_LATER = case((leases.c.until < _UNTIL, _UNTIL), else_=leases.c.until)
_RENEW = update(leases).values(until=_LATER).where(leases.c.owner == bindparam("owner"))
_PROLONG = _RENEW.where(leases.c.until > bindparam("now"))
_NEW_LEASE = insert(leases).values(_binds("owner", "until"))
_SET_LEASE = _NEW_LEASE.on_conflict_do_update(
    index_elements=[leases.c.owner], set_={"until": _NEW_LEASE.excluded.until}
)
_OWNERS = select(leases.c.owner)
_FORGET_OWNER = delete(leases).where(leases.c.owner == bindparam("owner"))
_FORGET_GONE = delete(leases).where(
    leases.c.owner != NOBODY,
    leases.c.until <= bindparam("now"),
    ~exists().where(jobs.c.lease_owner == leases.c.owner, _IN_HAND),
    ~exists().where(jobs.c.lease_owner == leases.c.owner, _TO_BE_CANCELLED),
)
_DROP = update(jobs).values(lease_owner=NOBODY).where(jobs.c.lease_owner == bindparam("of_owner"))
_DROP_IN_HAND, _DROP_TO_BE_CANCELLED = _DROP.where(_IN_HAND), _DROP.where(_TO_BE_CANCELLED)

_OLD = (
    select(*JOB_COLUMNS)
    .where(text(FINISHED), jobs.c.finished_at < bindparam("before"))
    .order_by(jobs.c.finished_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_DELETE = delete(jobs).where(_OF_SEQ)


@cache
def _queue_heads(flavors: int) -> Select[Any]:
    """Return the statement for the first waiting jobs of each of so many flavors, with the flavor last."""
    heads = [
        select(
            select(jobs.c.seq)
            .where(*_READY, jobs.c.flavor == bindparam(f"flavor_{n}"))
            .order_by(jobs.c.seq)
            .limit(bindparam("limit"))
            .subquery()
            .c.seq
        )
        for n in range(flavors)
    ]
    found = union_all(*heads).subquery()
    return select(*JOB_COLUMNS, jobs.c.flavor).where(jobs.c.seq.in_(select(found.c.seq))).order_by(jobs.c.seq)


@cache
def _apply(columns: tuple[str, ...], phases: tuple[str, ...]) -> Update:
    """Return the statement that sets these columns of a job in one of these phases."""
    return (
        update(jobs)
        .values({**{name: bindparam(f"new_{name}") for name in columns}, **_NEXT_VERSION})
        .where(
            jobs.c.id == bindparam("of_id"),
            jobs.c.attempt == bindparam("of_attempt"),
            text(f"phase IN {_texts(phases)}"),
            or_(_IN_QUEUE, jobs.c.lease_owner == bindparam("of_owner")),
        )
        .returning(*_CHANGED)
    )
