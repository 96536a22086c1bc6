"""Which ports a job may expose, and which it shares with others."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from runstead.executors.interface import Capabilities
from runstead.model.errors import Conflict, Invalid, TooLarge, Unsupported
from runstead.model.jobs import JobSpec, NewJob
from runstead.model.ports import HIGHEST_PORT, MAX_PORTS, Ports
from runstead.stores.interface import JobStore

Claim = tuple[Ports, str, str, str | None]  # ports, job, namespace, idempotency key


class PortRules:
    """The rules of one executor.

    Where jobs share the machine's network, two of them cannot listen on the same port: the second that wants to
    expose it is refused, also when both are asked for at once. Who has which port is remembered here; the store tells
    after a restart. Several servers with one database do not see what the others take meanwhile.
    """

    def __init__(self, capabilities: Capabilities, store: JobStore) -> None:
        self._capabilities = capabilities
        self._store = store
        self._holders: dict[int, str] | None = None  # port: job
        self._reserving = asyncio.Lock()

    def check(self, ports: Ports) -> Ports:
        """Return the ports in order, each once. Raises Invalid for what is no port, Unsupported."""
        exposed = tuple(dict.fromkeys((*ports.exposed, *ports.public)))
        for port in exposed:
            if not 1 <= port <= HIGHEST_PORT:
                raise Invalid(f"a port is a number from 1 to {HIGHEST_PORT}, not {port}", "expose.ports")
        if len(exposed) > MAX_PORTS:
            raise TooLarge(f"at most {MAX_PORTS} ports, not {len(exposed)}", "expose.ports")
        if exposed and not self._capabilities.ports:
            raise Unsupported(f"expose: {self._capabilities.without_ports}")
        return Ports(exposed, tuple(dict.fromkeys(ports.public)))

    async def accept(self, spec: JobSpec) -> JobSpec:
        """Return the specification with its ports in order. Raises as `check`."""
        if spec.network is not None and not self._capabilities.groups:
            raise Unsupported(f"network: {self._capabilities.without_groups}")
        return replace(spec, ports=self.check(spec.ports))

    @asynccontextmanager
    async def reserved(self, *new: NewJob) -> AsyncGenerator[None]:
        """Hold the ports of jobs while they are stored. Raises Conflict if another job exposes one of them.

        A job that is asked for again, by its idempotency key, is no other job.
        """
        async with self._held([(one.spec.ports, one.id, one.namespace, one.idempotency_key) for one in new]):
            yield

    @asynccontextmanager
    async def changed(self, job_id: str, ports: Ports) -> AsyncGenerator[None]:
        """Hold the ports that a job shall have while they are stored. Raises Conflict as `reserved` does."""
        async with self._held([(ports, job_id, "", None)]):
            yield

    @asynccontextmanager
    async def _held(self, claims: Sequence[Claim]) -> AsyncGenerator[None]:
        if self._capabilities.private_network or not any(ports for ports, *_ in claims):
            yield
            return
        async with self._reserving:
            free = [
                (job_id, ports, await self._free(ports, job_id))
                for ports, job_id, namespace, key in claims
                if key is None or await self._store.keyed(namespace, key) is None
            ]
            _check_apart(claims)
            for job_id, ports, holders in free:
                holders.update(dict.fromkeys(ports.exposed, job_id))
            yield

    async def _free(self, ports: Ports, job_id: str) -> dict[int, str]:
        """Return who has which port. Raises Conflict if another job that is not over exposes one of these."""
        if self._holders is None:
            self._holders = {
                port: job.id for job in await self._store.open_with_ports() for port in job.spec.ports.exposed
            }
        for port in ports.exposed:
            holder = self._holders.get(port)
            if holder is None or holder == job_id:
                continue
            job = await self._store.get(holder)
            if job is not None and not job.stage.is_terminal and port in job.spec.ports.exposed:
                raise Conflict(
                    f"expose.ports: jobs share this machine's network here, and job {holder} exposes port {port} "
                    "already; choose another port, or wait until that job is over"
                )
        return self._holders


def _check_apart(claims: Sequence[Claim]) -> None:
    """Raise Conflict when two jobs that are stored together would expose the same port of the machine."""
    seen: set[int] = set()
    for ports, *_ in claims:
        for port in ports.exposed:
            if port in seen:
                raise Conflict(
                    f"expose.ports: jobs share this machine's network here, so only one of {len(claims)} can expose "
                    f"port {port}; ask for one job"
                )
            seen.add(port)
