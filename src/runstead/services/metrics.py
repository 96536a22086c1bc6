"""What a running job uses, once a second, as rates between two readings of its counters."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from runstead.events.interface import JOBS, EventBus
from runstead.executors.interface import Executor
from runstead.kit.clock import Clock
from runstead.model.hardware import Flavor
from runstead.model.jobs import Job, Phase
from runstead.model.launches import GpuUsage, Handle, Usage
from runstead.services.hardware import Hardware
from runstead.stores.interface import JobStore

_EVERY_SECONDS = 1.0
_FIRST_LOOK_SECONDS = 0.1  # the first figure comes at once, so it spans little


@dataclass(frozen=True, slots=True)
class Metrics:
    """One sample. `cpu_percent` is of what the flavor promises; rates are bytes per second."""

    cpu_percent: float
    cpu_millicores: int
    memory_used_bytes: int
    memory_total_bytes: int
    rx_bytes_per_second: float
    tx_bytes_per_second: float
    gpus: dict[str, GpuUsage]


class JobMetrics:
    """Samples running jobs."""

    def __init__(self, store: JobStore, executor: Executor, hardware: Hardware, events: EventBus, clock: Clock) -> None:
        self._store = store
        self._executor = executor
        self._hardware = hardware
        self._events = events
        self._clock = clock
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams."""
        self._closing.set()

    async def stream(self, job: Job) -> AsyncGenerator[Metrics]:
        """Yield a sample at once and then every second until the job no longer runs."""
        flavor = self._hardware.flavor(job.spec.flavor)
        before = await self._usage(job)
        pause = _FIRST_LOOK_SECONDS
        with self._events.subscribe(JOBS, job.id) as changed:
            while before is not None and not self._closing.is_set():
                if await changed.wait(pause):
                    fresh = await self._store.get(job.id)
                    if fresh is None or fresh.phase is not Phase.RUNNING:
                        return
                    job = fresh
                after = await self._usage(job)
                if after is None:
                    return
                yield _between(before, after, flavor)
                before, pause = after, _EVERY_SECONDS

    async def _usage(self, job: Job) -> Usage | None:
        if job.phase is not Phase.RUNNING or job.handle is None:
            return None
        return await self._executor.usage(Handle(job.handle["executor"], job.handle["version"], job.handle["data"]))


def _between(before: Usage, after: Usage, flavor: Flavor) -> Metrics:
    seconds = max((after.at - before.at).total_seconds(), 0.001)
    cores = max(after.cpu_seconds - before.cpu_seconds, 0) / seconds
    return Metrics(
        cpu_percent=round(100 * cores * 1000 / flavor.cpu_millicores, 2),
        cpu_millicores=flavor.cpu_millicores,
        memory_used_bytes=after.memory_used_bytes,
        memory_total_bytes=flavor.memory_bytes,
        rx_bytes_per_second=max(after.rx_bytes - before.rx_bytes, 0) / seconds,
        tx_bytes_per_second=max(after.tx_bytes - before.tx_bytes, 0) / seconds,
        gpus=dict(after.gpus),
    )
