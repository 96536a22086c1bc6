"""`runstead budget`: how much a namespace may spend in a month."""

from typing import Annotated

import typer

from runstead.cli.options import AsJson, Config, DataDir, settings_at
from runstead.cli.output import print_rows
from runstead.cli.spending import with_usage
from runstead.model.costs import MICRO, Budget, money

app = typer.Typer(
    help="Set, list and remove what namespaces may spend in a month.", no_args_is_help=True, add_completion=False
)
Name = Annotated[str, typer.Argument(metavar="NAMESPACE", help="A user or an organization.", show_default=False)]


@app.command("set")
def set_budget(
    namespace: Name,
    amount: Annotated[str, typer.Argument(help="How much, in the currency of the prices: 250 or 99.50.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Let a namespace spend no more than that in a month (of UTC).

    A job that might cost more than is left, were it to run until its time limit, is refused with 402; those that are
    there go on.
    """
    found = with_usage(settings_at(config, data_dir), lambda usage: usage.set_budget(namespace, amount))
    print(f"{namespace} may spend {money(found.limit_micro_usd)} a month; {money(_left(found))} is left of this one")


@app.command("list")
def list_budgets(as_json: AsJson = False, config: Config = None, data_dir: DataDir = None) -> None:
    """List all budgets: what is spent in this month, and what jobs that are not over may still cost."""
    budgets = with_usage(settings_at(config, data_dir), lambda usage: usage.budgets())
    rows = [
        {
            "namespace": one.namespace,
            "budget": _amount(one.limit_micro_usd, as_json),
            "spent": _amount(one.spent_micro_usd, as_json),
            "reserved": _amount(one.reserved_micro_usd, as_json),
            "left": _amount(_left(one), as_json),
        }
        for one in budgets
    ]
    print_rows(rows, as_json, "There are no budgets: everybody may spend what they like.")


@app.command()
def remove(namespace: Name, config: Config = None, data_dir: DataDir = None) -> None:
    """Let a namespace spend without limit."""
    with_usage(settings_at(config, data_dir), lambda usage: usage.remove_budget(namespace))
    print(f"{namespace} has no budget any more")


def _left(budget: Budget) -> int:
    return max(budget.limit_micro_usd - budget.spent_micro_usd - budget.reserved_micro_usd, 0)


def _amount(micro: int, exact: bool) -> object:
    return micro / MICRO if exact else money(micro)
