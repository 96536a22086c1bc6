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
from runstead.node.compartments.attempt import FOLDER, SOCKET, home_of
from runstead.node.compartments.entry import Entry, is_id, list_in, parse

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
        self.folder = f"{folder}/{FOLDER}"  # the directory of their sockets
        self._attempt = folder
        self._name = name
        self._networks = networks  # None: they have no way out
        self._threads = threads
        self._entries: dict[str, Entry] | None = None  # what is there; None: that has to be looked at
        self._changes = 0

    async def find(self, compartment_id: str) -> Entry | None:
        """Return what is known of one; None if there is none. Raises EntryNotFound for what cannot be one."""
        _check(compartment_id)
        return (await self._there()).get(compartment_id)

    def why_gone(self, compartment_id: str) -> RunsteadError:
        """Return what to raise when nobody answers in one."""
        if not rundir.is_alive(self._attempt) or Path(self._attempt, rundir.EXIT).exists():
            return NotRunning(f"the job does not run any more: {self._name}")
        return EntryNotFound(f"there is no such part of the job, or no longer: {compartment_id}")

    async def make(self, ids: Sequence[str], limits: CompartmentLimits) -> list[Compartment]:
        """See Inside."""
        wanted = list(dict.fromkeys(ids))
        for one in wanted:
            _check(one)
        if limits.egress is not None and self._networks is None:
            raise Unsupported("what a part of a job may reach cannot be limited: jobs have no network of their own")
        there = await self._there()
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
        there = await self._there()
        return [_compartment(there[one]) for one in wanted if one in there]

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
        answer = await self._ask({"op": "make", "ids": ids, "networks": networks, "limits": values, "hosts": hosts})
        made = [entry for name in answer["made"] if (entry := parse(name)) is not None]
        self._changes += 1
        if self._entries is not None:
            self._entries.update({entry.id: entry for entry in made})

    async def all(self) -> list[Compartment]:
        """See Inside."""
        self._forget()  # a server before this one may still be served
        return [_compartment(entry) for entry in (await self._there()).values()]

    async def remove(self, ids: Sequence[str]) -> int:
        """See Inside."""
        wanted = [one for one in dict.fromkeys(ids) if is_id(one)]
        if not wanted:
            return 0
        known = await self._there()
        there = {one: known[one] for one in wanted if one in known}
        removed = int((await self._ask({"op": "remove", "ids": wanted}))["removed"])
        self._changes += 1
        if self._entries is not None:
            for one in wanted:
                self._entries.pop(one, None)
        if self._networks is not None:
            for one in wanted:
                if one in there and not there[one].confined:
                    await self._networks.reuse(self._network_name(one))
                else:  # half made, or with rules of its own: nobody else is to have it
                    await self._networks.release(self._network_name(one))
        return removed

    def _network_name(self, compartment_id: str) -> str:
        return f"{self._name}/{FOLDER}/{compartment_id}"

    def _forget(self) -> None:
        self._changes += 1
        self._entries = None

    async def _there(self) -> dict[str, Entry]:
        """Return what is there. It is not looked at each time, for nobody else makes or removes any."""
        while self._entries is None:
            changes = self._changes
            found = await asyncio.get_running_loop().run_in_executor(self._threads, list_in, self.folder)
            if changes == self._changes:
                self._entries = found
        return self._entries

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            for _ in range(_TRIES):
                lane = await connect(
                    self._attempt, SOCKET, lambda: NotRunning(f"the job does not run any more: {self._name}")
                )
                try:
                    return (await lane.ask(message))[0]
                except LaneCut:
                    continue
                finally:
                    lane.close()
            raise Unavailable(f"the job could not be divided: {self._name}")
        except BaseException:  # who knows what of it was done
            self._forget()
            raise


def _check(compartment_id: str) -> None:
    """Raise EntryNotFound for what cannot be the id of one."""
    if not is_id(compartment_id):
        raise EntryNotFound(f"there is no such part of the job: {compartment_id[:40]!r}")


def _compartment(entry: Entry) -> Compartment:
    return Compartment(id=entry.id, uid=entry.uid, home=home_of(entry.id), confinement=_CONFINEMENT)
