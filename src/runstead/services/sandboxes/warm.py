"""Containers that wait for the next sandbox: so many of each image as the configuration says, and there is room for.

A sandbox gets one when it needs what that has: the image, the namespace, and the disk of its flavor. Namespace and
flavor are those of the last sandbox of the image; before there is one, the server's owner and the default flavor. They
take room as sandboxes do, but only what no job holds or waits for: a job that needs it has it at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from runstead.events.interface import JOBS, QUEUE, EventBus
from runstead.executors.interface import Executor
from runstead.kit.clock import Clock
from runstead.kit.wakeup import Wakeup
from runstead.model.errors import RunsteadError
from runstead.model.hardware import Flavor, Resources
from runstead.model.jobs import Job
from runstead.model.launches import Launch
from runstead.services.hardware import DEFAULT_FLAVOR, Hardware
from runstead.stores.interface import JobStore

log = structlog.get_logger()

_LOOK_SECONDS = 30.0
_TRY_AGAIN_SECONDS = 60.0
# After something changed, and between two that are made: a sandbox that just started comes first.
_REST_SECONDS = 0.25
_HEADS_PER_FLAVOR = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """Containers of one image, and the sandboxes that they are for."""

    image: str
    namespace: str
    flavor: Flavor


class Warm:
    """Keeps them."""

    def __init__(
        self,
        wanted: Mapping[str, int],
        executor: Executor,
        instance: str,
        store: JobStore,
        hardware: Hardware,
        events: EventBus,
        clock: Clock,
        first_namespace: Callable[[], Awaitable[str]],
        in_hand: Callable[[], list[Job]],
    ) -> None:
        """`first_namespace` is who gets them before anybody used an image; `in_hand` the jobs of this server."""
        self.wanted = wanted
        self._executor = executor
        self._instance = instance
        self._store = store
        self._hardware = hardware
        self._events = events
        self._clock = clock
        self._first_namespace = first_namespace
        self._in_hand = in_hand
        self._seen: dict[str, Job] = {}  # the last sandbox of each image
        self.there: Mapping[str, int] = {}  # how many wait, by image

    async def run(self) -> None:
        """Keep them until cancelled."""
        with self._events.subscribe(QUEUE) as queued, self._events.subscribe(JOBS) as changed:
            while True:
                try:
                    complete = await self.run_once()
                except RunsteadError as error:
                    log.warning("no container could be prepared", reason=error.message)
                    await self._clock.sleep(_TRY_AGAIN_SECONDS)
                    continue
                if complete:
                    await _either(queued, changed)
                await self._clock.sleep(_REST_SECONDS)

    async def run_once(self) -> bool:
        """Let go of what there is no room for, make one of what is missing; return whether nothing is."""
        self._look()
        kinds = [await self._kind(image) for image in self.wanted]
        fitting = self._fitting(kinds, await self._free())
        launches: list[tuple[Launch, int]] = []
        for kind, count in fitting:
            launch = _launch(kind)
            if count:  # an image that is here is only looked at, and at times looked for anew
                await self._executor.prepare(launch, lambda _line: None)
            launches.append((launch, count))
        counts = await self._executor.keep_prepared([one for one in launches if one[1]])
        have = iter(counts)
        self.there = {kind.image: next(have) if count else 0 for kind, count in fitting}
        return all(self.there[kind.image] >= count for kind, count in fitting)

    def _look(self) -> None:
        for job in self._in_hand():
            if job.spec.sandbox is not None and job.spec.image in self.wanted:
                before = self._seen.get(job.spec.image)
                if before is None or job.seq > before.seq:
                    self._seen[job.spec.image] = job

    async def _kind(self, image: str) -> Kind:
        seen = self._seen.get(image)
        if seen is None:
            return Kind(image, await self._first_namespace(), self._hardware.flavor(DEFAULT_FLAVOR))
        return Kind(image, seen.namespace, self._hardware.flavor(seen.spec.flavor))

    async def _free(self) -> Resources | None:
        """Return what no job holds or waits for; None: there is no bound."""
        capacity = self._hardware.capacity
        if capacity is None:
            return None
        held = await self._store.held(self._instance)
        waiting = [
            self._hardware.flavor(job.spec.flavor).resources
            for heads in await self._store.waiting(self._clock.now(), _HEADS_PER_FLAVOR)
            for job in heads.jobs
        ]
        return Resources(
            capacity.cpu_millicores - sum(one.cpu_millicores for one in [*held, *waiting]),
            capacity.memory_bytes - sum(one.memory_bytes for one in [*held, *waiting]),
            0,
        )

    def _fitting(self, kinds: list[Kind], free: Resources | None) -> list[tuple[Kind, int]]:
        """Return how many of each there is room for, those that are named first before the others."""
        found: list[tuple[Kind, int]] = []
        cpu, memory = (free.cpu_millicores, free.memory_bytes) if free is not None else (0, 0)
        for kind in kinds:
            count = self.wanted[kind.image]
            if free is not None:
                needs = kind.flavor.resources
                count = max(min(count, cpu // max(needs.cpu_millicores, 1), memory // max(needs.memory_bytes, 1)), 0)
                cpu -= count * needs.cpu_millicores
                memory -= count * needs.memory_bytes
            found.append((kind, count))
        return found


async def _either(*wakeups: Wakeup) -> None:
    """Return when one of them wakes, or after a while."""
    waiting = [asyncio.ensure_future(one.wait(_LOOK_SECONDS)) for one in wakeups]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _launch(kind: Kind) -> Launch:
    """Return a launch like those of the sandboxes to come, as far as it counts for `Executor.keep_prepared`."""
    return Launch(
        job_id="0" * 24,
        attempt=1,
        namespace=kind.namespace,
        image=kind.image,
        argv=(),
        environment={},
        cpu_millicores=kind.flavor.cpu_millicores,
        memory_bytes=kind.flavor.memory_bytes,
        disk_bytes=kind.flavor.disk_bytes,
        gpu_ids=(),
        timeout_seconds=1,
        log_path=Path("/dev/null"),
        log_not_before=datetime.fromtimestamp(0, UTC),
        preamble=(),
    )
