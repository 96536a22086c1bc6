"""Reads what `ledger` writes: who used what, and how much of the budgets is left."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Column, Select, bindparam, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from runstead.model.costs import Budget, Span, UsageBy, UsageQuery, UsageSum, shares
from runstead.model.jobs import Job
from runstead.stores.database import Database, Transaction, reject_unstorable
from runstead.stores.interface import UsageStore
from runstead.stores.rows import JOB_COLUMNS, instant_to, job_from
from runstead.stores.schedule_tables import budgets, reservations, spending, usage
from runstead.stores.tables import IN_HAND, jobs

_COLUMNS: dict[UsageBy, Column[Any]] = {
    UsageBy.MONTH: usage.c.month,
    UsageBy.NAMESPACE: usage.c.namespace,
    UsageBy.USER: usage.c.created_by,
    UsageBy.FLAVOR: usage.c.flavor,
    UsageBy.LABEL: usage.c.labels,
    UsageBy.SCHEDULE: usage.c.schedule_id,
    UsageBy.JOB: usage.c.job_id,
}
_SCHEDULED = "scheduled-job"
_NOTHING = ""  # shown for use that has no such label, or no schedule


class SqlUsageStore(UsageStore):
    """Use and budgets in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage(self, wanted: UsageQuery, now: datetime) -> list[UsageSum]:
        """Return sums of what ended, and of what runs still until now."""
        first, last = wanted.months
        parameters = {"first": first, "last": last, "namespace": wanted.namespace}
        statement = _sums(wanted.by, wanted.namespace is not None)

        def work(transaction: Transaction) -> list[UsageSum]:
            sums = _Sums(wanted)
            for *values, attempts, used, cost in transaction.rows(statement, parameters):
                sums.add(tuple(values), int(attempts), 0, int(used), int(cost))
            for row in transaction.rows(_RUNNING):
                job = job_from(row)
                if wanted.namespace in (None, job.namespace):
                    sums.add_running(job, now)
            return sums.all()

        # Of one state of the database, or an attempt that ends meanwhile would be in it twice or not at all.
        return await self._database.read(work, consistent=True)

    async def budgets(self, month: int) -> list[Budget]:
        """Return all budgets."""
        rows = await self._database.read(lambda transaction: transaction.rows(_BUDGETS, {"month": month}))
        return [Budget(name, limit, spent or 0, reserved or 0) for name, limit, spent, reserved in rows]

    async def set_budget(self, namespace: str, limit_micro_usd: int | None, at: datetime) -> bool:
        """Set or take away a budget."""
        row = {"namespace": namespace, "limit_micro_usd": limit_micro_usd, "set_at": instant_to(at)}
        reject_unstorable(row)

        def work(transaction: Transaction) -> bool:
            if limit_micro_usd is None:
                return transaction.run(_REMOVE, {"of_namespace": namespace}) > 0
            transaction.run(_SET, row)
            return True

        return await self._database.write(work)


class _Sums:
    """Adds up use by the values that were asked for."""

    def __init__(self, wanted: UsageQuery) -> None:
        self._wanted = wanted
        self._sums: dict[tuple[str, ...], UsageSum] = {}

    def add(self, values: tuple[Any, ...], attempts: int, running: int, used: int, cost: int) -> None:
        """Add use with these values, labels as they are stored."""
        for key in self._keys(values):
            had = self._sums.get(key, UsageSum(key, 0, 0, timedelta(), 0))
            self._sums[key] = UsageSum(
                key,
                had.attempts + attempts,
                had.running + running,
                had.used + timedelta(microseconds=used),
                had.cost_micro_usd + cost,
            )

    def add_running(self, job: Job, now: datetime) -> None:
        """Add an attempt that runs still."""
        if job.started_at is None or job.stage.is_terminal:
            return
        until = min(now, job.started_at + timedelta(seconds=job.spec.timeout_seconds))
        first, last = self._wanted.months
        for share in shares(job.price_micro_usd, Span(job.started_at, max(until, job.started_at))):
            if first <= share.month <= last:
                found: dict[UsageBy, Any] = {
                    UsageBy.MONTH: share.month,
                    UsageBy.NAMESPACE: job.namespace,
                    UsageBy.USER: job.created_by,
                    UsageBy.FLAVOR: job.spec.flavor,
                    UsageBy.LABEL: json.dumps(dict(job.labels)),
                    UsageBy.SCHEDULE: job.initiator.id if job.initiator.type == _SCHEDULED else None,
                    UsageBy.JOB: job.id,
                }
                values = tuple(found[one] for one in self._wanted.by)
                self.add(values, 1, 1, share.used // timedelta(microseconds=1), share.cost_micro_usd)

    def all(self) -> list[UsageSum]:
        """Return the sums."""
        return list(self._sums.values())

    def _keys(self, values: tuple[Any, ...]) -> Iterator[tuple[str, ...]]:
        shown = [_NOTHING if value is None else str(value) for value in values]
        if UsageBy.LABEL not in self._wanted.by:
            yield tuple(shown)
            return
        place = self._wanted.by.index(UsageBy.LABEL)
        labels: dict[str, str] = json.loads(shown[place])
        if self._wanted.label is not None:
            texts = [labels.get(self._wanted.label, _NOTHING)]
        else:
            texts = [f"{key}={value}" for key, value in labels.items()] or [_NOTHING]
        for label in texts:
            shown[place] = label
            yield tuple(shown)


@cache
def _sums(by: tuple[UsageBy, ...], of_namespace: bool) -> Select[Any]:
    columns = [_COLUMNS[one] for one in by]
    found = select(*columns, func.count(), func.sum(usage.c.used), func.sum(usage.c.cost_micro_usd)).where(
        usage.c.month >= bindparam("first"), usage.c.month <= bindparam("last")
    )
    if of_namespace:
        found = found.where(usage.c.namespace == bindparam("namespace"))
    # Without a column to group by, no use at all would be a row of nothing.
    return found.group_by(*columns) if columns else found.having(func.count() > 0)


_RUNNING = select(*JOB_COLUMNS).where(text(IN_HAND), jobs.c.started_at.is_not(None))
_BUDGETS = (
    select(
        budgets.c.namespace,
        budgets.c.limit_micro_usd,
        spending.c.spent_micro_usd,
        reservations.c.reserved_micro_usd,
    )
    .join_from(
        budgets,
        spending,
        (spending.c.namespace == budgets.c.namespace) & (spending.c.month == bindparam("month")),
        isouter=True,
    )
    .join(reservations, reservations.c.namespace == budgets.c.namespace, isouter=True)
    .order_by(budgets.c.namespace)
)
_NEW = insert(budgets).values(
    {name: bindparam(name) for name in ("namespace", "limit_micro_usd", "set_at")},
)
_SET = _NEW.on_conflict_do_update(
    index_elements=[budgets.c.namespace],
    set_={"limit_micro_usd": _NEW.excluded.limit_micro_usd, "set_at": _NEW.excluded.set_at},
)
_REMOVE = delete(budgets).where(budgets.c.namespace == bindparam("of_namespace"))
