"""What is asked for at the same time is done together, and everybody gets their own."""

import asyncio
from collections.abc import Sequence

import pytest

from runstead.services.sandboxes.together import Together


class Work:
    """Doubles numbers when it is let, and fails for odd ones if there are any."""

    def __init__(self, *, picky: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.may = asyncio.Event()
        self.picky = picky

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.may.wait()
        if self.picky and any(item % 2 for item in items):
            raise ValueError(str(items))
        return [item * 2 for item in items]


async def test_what_comes_meanwhile_is_done_in_one_go() -> None:
    work = Work()
    together = Together(work, 3)
    asked = [asyncio.create_task(together.ask(number)) for number in range(6)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.may.set()
    assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8, 10]
    assert sorted(len(batch) for batch in work.batches)[-1] == 3
    assert sum(len(batch) for batch in work.batches) == 6
    assert await together.ask(7) == 14


async def test_one_that_fails_fails_alone() -> None:
    work = Work(picky=True)
    work.may.set()
    together = Together(work, 10)
    done = await asyncio.gather(*(together.ask(number) for number in range(4)), return_exceptions=True)
    assert [type(one) if isinstance(one, Exception) else one for one in done] == [0, ValueError, 4, ValueError]


async def test_who_goes_away_takes_nobody_along() -> None:
    work = Work()
    together = Together(work, 10)
    first, gone, last = (asyncio.create_task(together.ask(number)) for number in (1, 2, 3))
    await asyncio.sleep(0)
    gone.cancel()
    work.may.set()
    assert await asyncio.gather(first, last) == [2, 6]
    with pytest.raises(asyncio.CancelledError):
        await gone
