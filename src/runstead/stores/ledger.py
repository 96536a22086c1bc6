"""What attempts used and jobs cost, kept in the transaction in which a job is stored or an attempt ends.

So no use is lost and none is told twice, whatever is killed when. What has no price changes no sums.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects.postgresql import insert

from runstead.model.costs import Budget, Span, highest_cost_micro_usd, money, month_of, shares
from runstead.model.errors import OverBudget
from runstead.model.jobs import Job, NewJob, Transition
from runstead.stores.database import Transaction
from runstead.stores.rows import instant_from, json_to
from runstead.stores.schedule_tables import budgets, reservations, schedules, spending, usage
from runstead.stores.tables import jobs

_SCHEDULED = "scheduled-job"
_MICROSECOND = timedelta(microseconds=1)


def reserve(transaction: Transaction, job: NewJob, created_at: int) -> None:
    """Set aside what a job about to be stored may cost. Raises OverBudget if that is more than is left."""
    if not job.price_micro_usd:
        return
    spec = job.spec
    highest = highest_cost_micro_usd(job.price_micro_usd, spec.timeout_seconds, spec.attempts)
    found = budget(transaction, job.namespace, month_of(instant_from(created_at)))
    if found is not None and found.spent_micro_usd + found.reserved_micro_usd + highest > found.limit_micro_usd:
        raise OverBudget(_refusal(job, highest, found))
    transaction.run(_RESERVE, {"namespace": job.namespace, "amount": highest})


def settle(transaction: Transaction, job: Job, reserved: int, transition: Transition) -> Job | None:
    """Note what an attempt used that ends with this transition; `job` is as it is after it, `reserved` too.

    Return the job with its cost, or None if nothing of it changed.
    """
    cost = _note_use(transaction, job, transition.attempt, transition.used) if transition.used is not None else 0
    if not job.price_micro_usd:
        return None
    attempts_left = 0 if job.stage.is_terminal else job.spec.attempts - transition.attempt
    still = highest_cost_micro_usd(job.price_micro_usd, job.spec.timeout_seconds, attempts_left)
    if still != reserved:
        transaction.run(_RESERVE, {"namespace": job.namespace, "amount": still - reserved})
    total = job.cost_micro_usd + cost
    transaction.run(_SET_COST, {"of_seq": job.seq, "new_cost": total, "new_reserved": still})
    return replace(job, cost_micro_usd=total)


def budget(transaction: Transaction, namespace: str, month: int) -> Budget | None:
    """Return the namespace's budget, and hold it until the transaction ends; None if there is none."""
    row = transaction.row(_BUDGET, {"namespace": namespace})
    if row is None:
        return None
    spent = transaction.row(_SPENT, {"namespace": namespace, "month": month})
    reserved = transaction.row(_RESERVED, {"namespace": namespace})
    return Budget(namespace, row[0], spent[0] if spent else 0, reserved[0] if reserved else 0)


def _note_use(transaction: Transaction, job: Job, attempt: int, span: Span) -> int:
    """Store the shares of an attempt and add them to the sums; return what it cost."""
    schedule_id = job.initiator.id if job.initiator.type == _SCHEDULED else None
    parts = list(shares(job.price_micro_usd, span))
    total = sum(part.cost_micro_usd for part in parts)
    # Before the sums: the run of a schedule that is stored at the same time takes them in this order too.
    if schedule_id is not None and total:
        transaction.run(_CHARGE_SCHEDULE, {"of_id": schedule_id, "amount": total})
    for share in parts:
        row: dict[str, Any] = {
            "month": share.month,
            "namespace": job.namespace,
            "seq": job.seq,
            "attempt": attempt,
            "job_id": job.id,
            "created_by": job.created_by,
            "schedule_id": schedule_id,
            "flavor": job.spec.flavor,
            "labels": json_to(dict(job.labels)),
            "used": share.used // _MICROSECOND,
            "cost_micro_usd": share.cost_micro_usd,
        }
        transaction.run(_NOTE, row)
        if share.cost_micro_usd:
            transaction.run(_SPEND, {**row, "amount": share.cost_micro_usd})
    return total


def _refusal(job: NewJob, highest: int, found: Budget) -> str:
    spec = job.spec
    tries = f", {spec.attempts} attempts" if spec.attempts > 1 else ""
    return (
        f"{found.namespace!r} may spend {money(found.limit_micro_usd)} in a month: {money(found.spent_micro_usd)} is "
        f"spent, and jobs that are not over may cost {money(found.reserved_micro_usd)} more. This job may cost "
        f"{money(highest)} ({spec.flavor} at {money(job.price_micro_usd)} a minute, a time limit of "
        f"{spec.timeout_seconds} s{tries}), and {money(max(_left(found), 0))} is left: set a shorter --timeout, choose "
        "a cheaper flavor, wait for the next month, or ask who runs this server for a larger budget"
    )


def _left(found: Budget) -> int:
    return found.limit_micro_usd - found.spent_micro_usd - found.reserved_micro_usd


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_BUDGET = select(budgets.c.limit_micro_usd).where(budgets.c.namespace == bindparam("namespace")).with_for_update()
_SPENT = select(spending.c.spent_micro_usd).where(
    spending.c.namespace == bindparam("namespace"), spending.c.month == bindparam("month")
)
_RESERVED = select(reservations.c.reserved_micro_usd).where(reservations.c.namespace == bindparam("namespace"))

_NEW_RESERVATION = insert(reservations).values(namespace=bindparam("namespace"), reserved_micro_usd=bindparam("amount"))
_RESERVE = _NEW_RESERVATION.on_conflict_do_update(
    index_elements=[reservations.c.namespace],
    set_={"reserved_micro_usd": reservations.c.reserved_micro_usd + _NEW_RESERVATION.excluded.reserved_micro_usd},
)
_NOTE = insert(usage).values(_binds(*usage.c.keys()))
_NEW_SPENDING = insert(spending).values(
    namespace=bindparam("namespace"), month=bindparam("month"), spent_micro_usd=bindparam("amount")
)
_SPEND = _NEW_SPENDING.on_conflict_do_update(
    index_elements=[spending.c.namespace, spending.c.month],
    set_={"spent_micro_usd": spending.c.spent_micro_usd + _NEW_SPENDING.excluded.spent_micro_usd},
)
_SET_COST = (
    update(jobs)
    .values(cost_micro_usd=bindparam("new_cost"), reserved_micro_usd=bindparam("new_reserved"))
    .where(jobs.c.seq == bindparam("of_seq"))
)
_CHARGE_SCHEDULE = (
    update(schedules)
    .values(cost_micro_usd=schedules.c.cost_micro_usd + bindparam("amount"))
    .where(schedules.c.id == bindparam("of_id"))
)
