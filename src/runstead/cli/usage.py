"""`runstead usage`: who used what, and what it cost."""

import csv
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_rows
from runstead.cli.spending import with_usage
from runstead.model.costs import MICRO, UsageBy, UsageQuery, UsageSum
from runstead.services.usage import Usage, month_text

app = typer.Typer(add_completion=False)

_DEFAULT = (UsageBy.NAMESPACE, UsageBy.FLAVOR)


@app.command()
def usage(
    by: Annotated[
        list[UsageBy] | None,
        typer.Option("--by", help="Tell apart by this; may be repeated. Without it: by namespace and flavor."),
    ] = None,
    month: Annotated[
        str | None, typer.Option("--month", metavar="YYYY-MM|all", help="Of this month, in UTC. [default: the present]")
    ] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Of this user's or organization's jobs.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="KEY", help="By the values of this label; means --by label.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: seconds, and amounts in whole units.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show how long jobs ran and what they cost: attempts that ended, and those that run until now.

    It goes on being right when jobs are deleted. The server may run or not.
    """
    parts = list(dict.fromkeys(by or ()))
    if label is not None and UsageBy.LABEL not in parts:
        parts.append(UsageBy.LABEL)
    chosen = tuple(parts) or _DEFAULT

    async def ask(usage: Usage) -> list[UsageSum]:
        return await usage.report(UsageQuery(chosen, usage.months(month), namespace, label))

    found = with_usage(settings_at(config, data_dir), ask)
    if as_csv:
        _print_csv(chosen, found)
        return
    rows = [_row(chosen, one, exact=as_json) for one in found]
    if len(found) > 1 and not as_json and label is None and UsageBy.LABEL not in chosen:
        rows.append(_row(chosen, _total(chosen, found), exact=False))
    print_rows(rows, as_json, "No job ran in that time.")


def _row(by: Sequence[UsageBy], one: UsageSum, *, exact: bool) -> dict[str, object]:
    row: dict[str, object] = {name.value: _shown(name, value) for name, value in zip(by, one.values, strict=True)}
    row |= {"attempts": one.attempts, "running": one.running}
    if exact:
        return row | {"seconds": one.used.total_seconds(), "cost": one.cost_micro_usd / MICRO}
    return row | {"hours": f"{one.used.total_seconds() / 3600:,.2f}", "cost": f"{one.cost_micro_usd / MICRO:,.4f}"}


def _shown(by: UsageBy, value: str) -> str:
    return month_text(int(value)) if by is UsageBy.MONTH and value.isdecimal() else value


def _total(by: Sequence[UsageBy], found: Sequence[UsageSum]) -> UsageSum:
    values = ("all", *("" for _ in by[1:]))
    used = sum((one.used for one in found[1:]), found[0].used)
    cost = sum(one.cost_micro_usd for one in found)
    return UsageSum(values, sum(one.attempts for one in found), sum(one.running for one in found), used, cost)


def _print_csv(by: Sequence[UsageBy], found: Sequence[UsageSum]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*(name.value for name in by), "attempts", "running", "seconds", "cost"])
    for one in found:
        values = [_shown(name, value) for name, value in zip(by, one.values, strict=True)]
        cost = f"{one.cost_micro_usd // MICRO}.{one.cost_micro_usd % MICRO:06}"
        writer.writerow([*values, one.attempts, one.running, f"{one.used.total_seconds():.3f}", cost])
