"""Sandboxes in SQL: when they were last used, and what is known of pooled ones."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert

from runstead.model.sandboxes import PooledSandbox
from runstead.stores.database import Database, Row, Transaction, reject_unstorable
from runstead.stores.interface import SandboxStore
from runstead.stores.rows import instant_from, instant_to, json_to
from runstead.stores.tables import jobs, sandboxes

_WHOLE = ""  # the id in the row of a job itself


class SqlSandboxStore(SandboxStore):
    """Sandboxes in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, sandboxes: Sequence[PooledSandbox]) -> None:
        """Store new pooled sandboxes."""
        rows = [_to(sandbox) for sandbox in sandboxes]
        for row in rows:
            reject_unstorable(row)
        await self._database.write(lambda transaction: transaction.run_many(_INSERT, rows))

    async def of_host(self, job_id: str) -> list[PooledSandbox]:
        """Return the pooled sandboxes of a host."""
        rows = await self._database.read(lambda transaction: transaction.rows(_OF_HOST, {"job_id": job_id}))
        return sorted((_from(row) for row in rows), key=lambda sandbox: (sandbox.created_at, sandbox.id))

    async def remove(self, job_id: str, ids: Collection[str]) -> None:
        """Forget pooled sandboxes."""
        rows = [{"of_job": job_id, "of_id": one} for one in sorted(ids)]
        await self._database.write(lambda transaction: transaction.run_many(_DELETE, rows))

    async def note_activity(self, at: Mapping[tuple[str, str], datetime]) -> None:
        """Remember when sandboxes were last used."""
        whole = [
            {"of_job": job_id, "at": instant_to(instant)}
            for (job_id, sandbox_id), instant in sorted(at.items())
            if sandbox_id == _WHOLE
        ]
        parts = [
            {"of_job": job_id, "of_id": sandbox_id, "at": instant_to(instant)}
            for (job_id, sandbox_id), instant in sorted(at.items())
            if sandbox_id != _WHOLE
        ]

        def work(transaction: Transaction) -> None:
            transaction.run_many(_NOTE_WHOLE, whole)
            transaction.run_many(_NOTE_PART, parts)

        await self._database.write(work)

    async def activity(self, job_ids: Collection[str]) -> dict[str, datetime]:
        """Return when these jobs were last used."""

        def work(transaction: Transaction) -> dict[str, datetime]:
            found: dict[str, datetime] = {}
            for job_id in job_ids:
                row = transaction.row(_ACTIVITY, {"job_id": job_id})
                if row is not None:
                    found[job_id] = instant_from(row[0])
            return found

        return await self._database.read(work)


def _to(sandbox: PooledSandbox) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "uid": sandbox.uid,
        "home": sandbox.home,
        "confinement": sandbox.confinement,
        "created": instant_to(sandbox.created_at),
        "idle": sandbox.idle_seconds,
    }
    return {
        "job_id": sandbox.job_id,
        "id": sandbox.id,
        "active_at": instant_to(sandbox.active_at),
        "facts": json_to(facts),
        "sealed": sandbox.sealed,
    }


def _from(row: Row) -> PooledSandbox:
    job_id, sandbox_id, active_at, stored, sealed = row
    facts = json.loads(stored)
    return PooledSandbox(
        job_id=job_id,
        id=sandbox_id,
        uid=facts["uid"],
        home=facts["home"],
        confinement=facts["confinement"],
        created_at=instant_from(facts["created"]),
        active_at=instant_from(active_at),
        idle_seconds=facts["idle"],
        sealed=bytes(sealed),
    )


_INSERT = insert(sandboxes).values(
    job_id=bindparam("job_id"),
    id=bindparam("id"),
    active_at=bindparam("active_at"),
    facts=bindparam("facts"),
    sealed=bindparam("sealed"),
)
_OF_HOST = select(
    sandboxes.c.job_id, sandboxes.c.id, sandboxes.c.active_at, sandboxes.c.facts, sandboxes.c.sealed
).where(sandboxes.c.job_id == bindparam("job_id"), text("sandboxes.id <> ''"))
_DELETE = delete(sandboxes).where(sandboxes.c.job_id == bindparam("of_job"), sandboxes.c.id == bindparam("of_id"))
# Selected from the jobs, so that nothing is stored of one that was deleted meanwhile.
_SELECTED = insert(sandboxes).from_select(
    ["job_id", "id", "active_at"],
    select(jobs.c.id, text("''"), bindparam("at", type_=sandboxes.c.active_at.type)).where(
        jobs.c.id == bindparam("of_job")
    ),
)
_NOTE_WHOLE = _SELECTED.on_conflict_do_update(
    index_elements=[sandboxes.c.job_id, sandboxes.c.id], set_={"active_at": _SELECTED.excluded.active_at}
)
_NOTE_PART = (
    update(sandboxes)
    .values(active_at=bindparam("at"))
    .where(sandboxes.c.job_id == bindparam("of_job"), sandboxes.c.id == bindparam("of_id"))
)
_ACTIVITY = select(sandboxes.c.active_at).where(sandboxes.c.job_id == bindparam("job_id"), text("sandboxes.id = ''"))
