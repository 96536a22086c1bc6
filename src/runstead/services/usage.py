"""Who used what, what it cost, and how much namespaces may spend."""

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from runstead.kit.clock import Clock
from runstead.model.costs import MICRO, Budget, UsageQuery, UsageSum, month_of
from runstead.model.errors import Invalid, NotFound
from runstead.stores.interface import AccountStore, UsageStore

_MONTH = re.compile(r"(\d{4})-(\d{2})", re.ASCII)
_FIRST, _LAST = 1, 999_912
_MOST_MICRO = 2**62


class Usage:
    """Reports of use, and budgets."""

    def __init__(self, store: UsageStore, accounts: AccountStore, clock: Clock) -> None:
        self._store = store
        self._accounts = accounts
        self._clock = clock

    async def report(self, wanted: UsageQuery) -> list[UsageSum]:
        """Return what was asked for, the largest cost first, then the longest use."""
        found = await self._store.usage(wanted, self._clock.now())
        return sorted(found, key=lambda one: (-one.cost_micro_usd, -one.used.total_seconds(), one.values))

    def months(self, text: str | None) -> tuple[int, int]:
        """Return the first and the last month that a text means: `2026-11`, `all`, or None for the present one."""
        if text is None:
            month = month_of(self._clock.now())
            return month, month
        if text == "all":
            return _FIRST, _LAST
        match = _MONTH.fullmatch(text)
        if match is None or not 1 <= int(match[2]) <= 12:
            raise Invalid(f"a month is written like {month_text(month_of(datetime.now(UTC)))}, or `all`: {text[:50]!r}")
        month = int(match[1]) * 100 + int(match[2])
        return month, month

    async def budgets(self) -> list[Budget]:
        """Return all budgets by namespace, with what is spent in the present month."""
        return await self._store.budgets(month_of(self._clock.now()))

    async def set_budget(self, namespace: str, amount: str) -> Budget:
        """Set how much a namespace may spend in a month. Raises NotFound, Invalid."""
        if await self._accounts.namespace(namespace) is None:
            raise NotFound(f"there is no user or organization {namespace!r}")
        await self._store.set_budget(namespace, _micro(amount), self._clock.now())
        return next(one for one in await self.budgets() if one.namespace == namespace)

    async def remove_budget(self, namespace: str) -> None:
        """Let a namespace spend without limit. Raises NotFound if it may already."""
        if not await self._store.set_budget(namespace, None, self._clock.now()):
            raise NotFound(f"{namespace!r} has no budget")


def month_text(month: int) -> str:
    """Return a month as people write it: 2026-11."""
    return f"{month // 100:04}-{month % 100:02}"


def _micro(amount: str) -> int:
    try:
        micro = Decimal(amount.removeprefix("$").replace(",", "")) * MICRO
        if not micro.is_finite() or micro < 0 or micro != micro.to_integral_value() or micro > _MOST_MICRO:
            raise InvalidOperation
    except InvalidOperation:
        raise Invalid(f"an amount is a number like 250 or 99.50, not {amount[:50]!r}", "amount") from None
    return int(micro)
