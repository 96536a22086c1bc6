"""Runs jobs on an executor of this machine and looks at what became of them: the least that suites need."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from runstead.executors.interface import Executor
from runstead.model.ids import new_id
from runstead.model.launches import AttemptState, ExitRecord, Handle, Launch
from runstead.node.logformat import PREFIX_BYTES

_WAIT_SECONDS = 60.0


@dataclass
class Runner:
    """An executor and a folder for its logs."""

    folder: Path
    executor: Executor
    started: list[Handle] = field(default_factory=list)

    def launch(self, *argv: str, **changes: object) -> Launch:
        job_id = new_id(datetime.now(UTC))
        launch = Launch(
            job_id=job_id,
            attempt=1,
            namespace="alice",
            image="anything",
            argv=argv,
            environment={},
            cpu_millicores=1000,
            memory_bytes=256 << 20,
            disk_bytes=None,
            gpu_ids=(),
            timeout_seconds=60,
            log_path=self.folder / f"{job_id}.log",
            log_not_before=datetime.fromtimestamp(0, UTC),
            preamble=(),
        )
        return replace(launch, **changes)

    async def start(self, launch: Launch) -> Handle:
        handle = await self.executor.start(launch)
        self.started.append(handle)
        return handle

    async def run(self, launch: Launch) -> tuple[ExitRecord, list[str]]:
        handle = await self.start(launch)
        try:
            return await self.ended(handle), self.lines(launch)
        finally:
            await self.executor.remove(handle)

    async def shell(self, script: str, **changes: object) -> tuple[int | None, list[str]]:
        record, lines = await self.run(self.launch("sh", "-c", script, **changes))
        return record.exit_code, lines

    async def python(self, program: str, *arguments: str, **changes: object) -> tuple[ExitRecord, list[str]]:
        return await self.run(self.launch("python3", "-uc", program, *arguments, **changes))

    async def state(self, handle: Handle) -> AttemptState:
        [seen] = await self.executor.poll([handle])
        return seen.state

    async def ended(self, handle: Handle) -> ExitRecord:
        async with asyncio.timeout(_WAIT_SECONDS):
            while True:
                [seen] = await self.executor.poll([handle])
                if seen.state is not AttemptState.RUNNING:
                    assert seen.exit is not None, seen
                    return seen.exit
                await asyncio.sleep(0.01)

    async def line(self, launch: Launch, wanted: str) -> None:
        async with asyncio.timeout(_WAIT_SECONDS):
            while wanted not in self.lines(launch):
                await asyncio.sleep(0.01)

    def lines(self, launch: Launch) -> list[str]:
        with suppress(FileNotFoundError):
            lines = launch.log_path.read_bytes().split(b"\n")[:-1]
            return [line[PREFIX_BYTES:].decode("utf-8", "replace") for line in lines]
        return []

    async def shell_record(self, script: str, **changes: object) -> tuple[ExitRecord, list[str]]:
        return await self.run(self.launch("sh", "-c", script, **changes))
