"""The statements that list and count jobs.

A list is a union of ranges, one per stage (and per way its labels are kept): each range is walked from its newest
end in the order of an index, so a page costs the same whatever lies behind it. Statements are built once per
shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, exists, func, select, union_all

from runstead.model.jobs import JobFilter, Stage
from runstead.stores import labels
from runstead.stores.rows import JOB_COLUMNS
from runstead.stores.tables import job_labels, jobs

NEWEST = 2**62  # more than any seq

_EVERY_STAGE = tuple(sorted(stage.value for stage in Stage))


@dataclass(frozen=True, slots=True)
class Listing:
    """What a filter comes down to: ranges of one index, and the parameters of its statements."""

    stages: int  # how many; 0 for a list that is not split by stage
    digests: tuple[int, ...]  # how many digests each part of a search by label has; empty without labels
    parameters: dict[str, Any]

    @property
    def page(self) -> Select[Any]:
        """The statement of a page; it takes `before` and `limit` as well."""
        return _page(self.stages, self.digests)

    @property
    def count(self) -> Select[Any]:
        """The statement that counts."""
        return _count(self.stages, self.digests)


def listing(namespace: str, wanted: JobFilter, parts: Sequence[labels.Intersection]) -> Listing:
    """Return the listing for a filter; `parts` is its search by label, empty without labels."""
    stages = sorted(stage.value for stage in wanted.stages)
    if parts and not stages:
        stages = list(_EVERY_STAGE)
    parameters: dict[str, Any] = {"namespace": namespace}
    parameters.update({f"stage_{n}": stage for n, stage in enumerate(stages)})
    for n, part in enumerate(parts):
        parameters.update({f"digest_{n}_{m}": digest for m, digest in enumerate(part.digests)})
    return Listing(len(stages), tuple(len(part.digests) for part in parts), parameters)


# How many jobs are under a digest, but not past a limit: enough to tell a rare one.
SIZE_LIMIT = 1000
SIZE = select(func.count()).select_from(
    select(job_labels.c.seq).where(job_labels.c.digest == bindparam("digest")).limit(SIZE_LIMIT).subquery()
)


@cache
def _page(stages: int, digests: tuple[int, ...]) -> Select[Any]:
    ranges = [
        select(
            condition.with_only_columns(seq)
            .where(seq < bindparam("before"))
            .order_by(seq.desc())
            .limit(bindparam("limit"))
            .subquery()
            .c.seq
        )
        for condition, seq in _ranges(stages, digests)
    ]
    newest = union_all(*ranges).subquery() if len(ranges) > 1 else ranges[0].subquery()
    return (
        select(*JOB_COLUMNS)
        .where(jobs.c.seq.in_(select(newest.c.seq)), jobs.c.namespace == bindparam("namespace"))
        .order_by(jobs.c.seq.desc())
        .limit(bindparam("limit"))
    )


@cache
def _count(stages: int, digests: tuple[int, ...]) -> Select[Any]:
    counts = [
        select(condition.with_only_columns(func.count().label("found")).scalar_subquery().label("found"))
        for condition, _ in _ranges(stages, digests)
    ]
    if len(counts) == 1:
        return counts[0]
    return select(func.sum(union_all(*counts).subquery().c.found))


def _ranges(stages: int, digests: tuple[int, ...]) -> list[tuple[Select[Any], ColumnElement[int]]]:
    """Return each range as a query without columns, with the column that it is sorted by."""
    if digests:
        return [_labelled(part, size, f"stage_{stage}") for part, size in enumerate(digests) for stage in range(stages)]
    rows = select().select_from(jobs).where(jobs.c.namespace == bindparam("namespace"))
    if not stages:
        return [(rows, jobs.c.seq)]
    return [(rows.where(jobs.c.stage == bindparam(f"stage_{stage}")), jobs.c.seq) for stage in range(stages)]


def _labelled(part: int, size: int, stage: str) -> tuple[Select[Any], ColumnElement[int]]:
    """Return the jobs of a stage under all digests of a part: walk the first, look up the others."""
    walked = job_labels.alias()
    rows = (
        select()
        .select_from(walked)
        .where(walked.c.digest == bindparam(f"digest_{part}_0"), walked.c.stage == bindparam(stage))
    )
    for other in range(1, size):
        looked_up = job_labels.alias()
        rows = rows.where(
            exists().where(
                looked_up.c.digest == bindparam(f"digest_{part}_{other}"),
                looked_up.c.stage == bindparam(stage),
                looked_up.c.seq == walked.c.seq,
            )
        )
    return rows, walked.c.seq
