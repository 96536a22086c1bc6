"""What an attempt needs on its machine before it can start: its volumes and its image, brought there together."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from runstead.events.interface import JOBS, LOGS, EventBus
from runstead.executors.interface import Executor
from runstead.kit.clock import Clock
from runstead.logs.interface import LogStore
from runstead.model.errors import ImageFailure, Invalid, NotFound, RunsteadError, Unavailable, Unsupported
from runstead.model.jobs import FailureClass, Job
from runstead.model.launches import Launch
from runstead.model.volumes import Mount
from runstead.services.launching import Launching
from runstead.services.volumes import Volumes
from runstead.stores.interface import JobStore

_LOOK_SECONDS = 0.2
_STATUS_SECONDS = 0.5
_LOG_SECONDS = 5.0
_PROMPT_SECONDS = 0.5  # what took longer than this starts with a fresh launch: its log says when


class CanceledMeanwhile(Exception):
    """The job is to be cancelled; there is no need to go on."""


class StartProblem(Exception):
    """An attempt could not be started: of which class that is, and whether trying again may help.

    `soon`: the cause may pass within seconds.
    """

    def __init__(self, failure: FailureClass, error: RunsteadError, *, again: bool, soon: bool) -> None:
        super().__init__(error.message)
        self.failure = failure
        self.error = error
        self.again = again
        self.soon = soon


def start_problem(error: RunsteadError, lasting: FailureClass, passing: FailureClass) -> StartProblem:
    """Judge an error. `lasting` is the class of what cannot be right next time, `passing` that of all else."""
    match error:
        case ImageFailure():
            return StartProblem(FailureClass.IMAGE, error, again=error.again, soon=False)
        case Unavailable():
            return StartProblem(passing, error, again=True, soon=True)
        case Invalid() | Unsupported() | NotFound():
            return StartProblem(lasting, error, again=False, soon=False)
        case _:
            return StartProblem(passing, error, again=True, soon=False)


class Preparing:
    """Prepares attempts. With `images` the executor runs jobs in the image that they name."""

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        logs: LogStore,
        launching: Launching,
        volumes: Volumes,
        events: EventBus,
        clock: Clock,
        owner: str,
        *,
        images: bool,
    ) -> None:
        self._store = store
        self._executor = executor
        self._logs = logs
        self._launching = launching
        self._volumes = volumes
        self._events = events
        self._clock = clock
        self._owner = owner
        self._images = images

    async def prepare(
        self, job: Job, woken: Callable[[], bool], out_of_turn: Callable[[], AbstractAsyncContextManager[None]]
    ) -> Launch:
        """Return the launch of an attempt for which everything is there.

        It may take long, for as long as nobody cancels the job: `woken` says whether to look. It happens `out_of_turn`.
        Raises StartProblem, CanceledMeanwhile.
        """
        began = asyncio.get_running_loop().time()
        launch = await self._launch(job)
        told = _Told()
        image = asyncio.ensure_future(self._image(launch, told))
        volumes = asyncio.ensure_future(self._mounts(job))
        try:
            await asyncio.sleep(0)  # an image that is here, and no volumes, need no more than this
            if not (image.done() and volumes.done()):
                async with out_of_turn():
                    await self._attend(job, [image, volumes], told, woken)
            image.result()
            mounts = volumes.result()
        finally:
            for one in (image, volumes):
                one.cancel()
            await asyncio.gather(image, volumes, return_exceptions=True)
        if asyncio.get_running_loop().time() - began > _PROMPT_SECONDS:
            launch = await self._launch(job)
        return replace(launch, mounts=mounts)

    async def _launch(self, job: Job) -> Launch:
        try:
            return await self._launching.prepare(job)
        except RunsteadError as error:
            raise start_problem(error, FailureClass.USER, FailureClass.INFRA) from error

    async def _image(self, launch: Launch, told: "_Told") -> None:
        if not self._images:
            return
        try:
            await self._executor.prepare(launch, told.tell)
        except RunsteadError as error:
            raise start_problem(error, FailureClass.USER, FailureClass.INFRA) from error

    async def _mounts(self, job: Job) -> tuple[Mount, ...]:
        try:
            return await self._volumes.prepare(job)
        except RunsteadError as error:
            raise start_problem(error, FailureClass.VOLUME, FailureClass.VOLUME) from error

    async def _attend(
        self, job: Job, parts: list["asyncio.Future[Any]"], told: "_Told", woken: Callable[[], bool]
    ) -> None:
        """Wait for all parts, or the first that fails; tell meanwhile how far they are."""
        pending = set(parts)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for one in done:
                one.result()
            if pending and woken():
                now = await self._store.get(job.id)
                if now is None or now.cancel_requested_at is not None:
                    raise CanceledMeanwhile
            await self._tell(job, told, last=not pending)

    async def _tell(self, job: Job, told: "_Told", *, last: bool) -> None:
        now = asyncio.get_running_loop().time()
        if told.line is None:
            return
        if told.line != told.status and (last or now - told.status_at >= _STATUS_SECONDS):
            told.status, told.status_at = told.line, now
            if await self._store.note(job.id, job.attempt, told.line, self._owner):
                self._events.publish(JOBS, job.id)
        if told.line != told.logged and (last or now - told.logged_at >= _LOG_SECONDS):
            told.logged, told.logged_at = told.line, now
            await self._logs.append(job.id, job.attempt, [f"runstead: {told.line}"], self._clock.now())
            self._events.publish(LOGS, job.id)


class _Told:
    """The last line of progress, and how far it was told on."""

    def __init__(self) -> None:
        self.line: str | None = None
        self.status: str | None = None
        self.status_at = float("-inf")
        self.logged: str | None = None
        self.logged_at = float("-inf")

    def tell(self, line: str) -> None:
        self.line = line
