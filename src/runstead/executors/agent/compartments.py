"""The compartments of one attempt: made and removed by its supervisor (`runstead.node.compartments`)."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from runstead.executors.agent.lanes import LaneCut, connect
from runstead.model.errors import Conflict, EntryNotFound, NotRunning, RunsteadError, Unavailable, Unsupported
from runstead.model.executions import Compartment, CompartmentLimits
from runstead.node import rundir
from runstead.node.compartments.attempt import FACTS, FOLDER, SOCKET

_BATCH = 32
_TRIES = 3
_CONFINEMENT = "its own user id, control groups, and namespaces of processes, mounts, IPC and network; no capabilities"


class Networks(Protocol):
    """Where compartments get a network of their own from."""

    async def claim(self, name: str) -> tuple[str, str]:
        """Return path and address of one; the same one when asked again."""
        ...

    async def confine(self, name: str, entries: Sequence[str]) -> list[list[str]]:
        """Let out of one what is listed and nothing else; return [address, name] of the names. Raises Unavailable."""
        ...

    async def release(self, name: str) -> None:
        """Give one back, to be taken away."""
        ...

    async def reuse(self, name: str) -> None:
        """Give one back, in which nobody could change anything."""
        ...


class Compartments:
    """Those of one attempt."""

    def __init__(self, folder: str, name: str, networks: Networks | None, threads: ThreadPoolExecutor) -> None:
        self.folder = folder  # the attempt's directory
        self._name = name
        self._networks = networks  # None: they have no way out
        self._threads = threads

    def place(self, compartment_id: str) -> str:
        """Return the directory of one. Raises EntryNotFound for what cannot be one."""
        if len(compartment_id) != 16 or not set(compartment_id) <= set("0123456789abcdef"):
            raise EntryNotFound(f"there is no such part of the job: {compartment_id[:40]!r}")
        return f"{self.folder}/{FOLDER}/{compartment_id}"

    def why_gone(self, compartment_id: str) -> RunsteadError:
        """Return what to raise when nobody answers in one."""
        if not rundir.is_alive(self.folder) or Path(self.folder, rundir.EXIT).exists():
            return NotRunning(f"the job does not run any more: {self._name}")
        return EntryNotFound(f"there is no such part of the job, or no longer: {compartment_id}")

    async def make(self, ids: Sequence[str], limits: CompartmentLimits) -> list[Compartment]:
        """See Inside."""
        wanted = list(dict.fromkeys(ids))
        for one in wanted:
            self.place(one)
        if limits.egress is not None and self._networks is None:
            raise Unsupported("what a part of a job may reach cannot be limited: jobs have no network of their own")
        there = set((await self._facts(wanted)).keys())
        missing = [one for one in wanted if one not in there]
        batches = [missing[at : at + _BATCH] for at in range(0, len(missing), _BATCH)]
        making: asyncio.Task[None] | None = None
        try:
            for batch in batches:  # the networks of one are made while the one before is
                networks = await self._claim(batch)
                hosts = await self._confine(batch, limits.egress)
                if making is not None:
                    await making
                making = asyncio.create_task(self._make(batch, networks, limits, hosts))
            if making is not None:
                await making
        except BaseException:
            if making is not None:
                await asyncio.gather(making, return_exceptions=True)
            await asyncio.shield(self.remove(missing))
            raise
        facts = await self._facts(wanted)
        return [_compartment(facts[one]) for one in wanted if one in facts]

    async def _claim(self, ids: list[str]) -> list[tuple[str, str]] | None:
        if self._networks is None:
            return None
        return [await self._networks.claim(self._network_name(one)) for one in ids]

    async def _confine(self, ids: list[str], egress: Sequence[str] | None) -> str | None:
        """Limit what these may reach, before anything is in them; return the lines for their hosts files."""
        if egress is None or self._networks is None:
            return None
        hosts: list[list[str]] = []
        try:
            for one in ids:
                hosts = await self._networks.confine(self._network_name(one), egress)
        except Unavailable as error:
            raise Conflict(error.message) from error
        return "".join(f"{address} {name}\n" for address, name in hosts)

    async def _make(
        self, ids: list[str], networks: list[tuple[str, str]] | None, limits: CompartmentLimits, hosts: str | None
    ) -> None:
        values = {
            "processes": limits.processes,
            "memory_bytes": limits.memory_bytes,
            "cpu_millicores": limits.cpu_millicores,
        }
        await self._ask({"op": "make", "ids": ids, "networks": networks, "limits": values, "hosts": hosts})

    async def all(self) -> list[Compartment]:
        """See Inside."""
        found = sorted((await self._facts(None)).values(), key=lambda facts: (facts["at"], facts["uid"]))
        return [_compartment(facts) for facts in found]

    async def remove(self, ids: Sequence[str]) -> int:
        """See Inside."""
        wanted = [one for one in dict.fromkeys(ids) if len(one) == 16]
        facts = await self._facts(wanted) if self._networks is not None else {}
        removed = int((await self._ask({"op": "remove", "ids": wanted}))["removed"]) if wanted else 0
        if self._networks is not None:
            for one in wanted:
                if one in facts and not facts[one].get("confined"):
                    await self._networks.reuse(self._network_name(one))
                else:  # half made, or with rules of its own: nobody else is to have it
                    await self._networks.release(self._network_name(one))
        return removed

    def _network_name(self, compartment_id: str) -> str:
        return f"{self._name}/{FOLDER}/{compartment_id}"

    async def _facts(self, ids: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        def look() -> dict[str, dict[str, Any]]:
            folder = Path(self.folder, FOLDER)
            try:
                names = [path.name for path in folder.iterdir()] if ids is None else ids
            except FileNotFoundError:
                return {}
            found = {name: rundir.read_json(str(folder / name / FACTS)) for name in names}
            return {name: facts for name, facts in found.items() if facts is not None}

        return await asyncio.get_running_loop().run_in_executor(self._threads, look)

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        for _ in range(_TRIES):
            lane = await connect(
                self.folder, SOCKET, lambda: NotRunning(f"the job does not run any more: {self._name}")
            )
            try:
                return (await lane.ask(message))[0]
            except LaneCut:
                continue
            finally:
                lane.close()
        raise Unavailable(f"the job could not be divided: {self._name}")


def _compartment(facts: dict[str, Any]) -> Compartment:
    return Compartment(id=facts["id"], uid=facts["uid"], home=facts["home"], confinement=_CONFINEMENT)
