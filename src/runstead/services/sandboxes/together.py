"""Work that costs nearly as much for one as for many: what is asked for while it goes on is done in one go after it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """Hands items to `work` in batches, one batch at a time, and each caller its own result.

    When a batch of several fails, each of its items is tried alone: whose fault it is then shows.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], most: int) -> None:
        """`work` returns a result for each item, in their order; `most` is how many it is given at once."""
        self._work = work
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Result:
        """Return the result of an item. Raises what `work` raises for it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._go_on())
        return await future

    async def _go_on(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            try:
                await self._do(batch)
            except Exception as error:
                if len(batch) == 1:
                    _fail(batch[0][1], error)
                    continue
                for one in batch:
                    try:
                        await self._do([one])
                    except Exception as reason:
                        _fail(one[1], reason)
        self._task = None

    async def _do(self, batch: Sequence[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        results = await self._work([item for item, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # else nobody waits for it any more
                future.set_result(result)


def _fail(future: "asyncio.Future[Result]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
