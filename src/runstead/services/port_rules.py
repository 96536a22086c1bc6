"""Which ports a job may expose, and which it shares with others."""

from dataclasses import replace

from runstead.executors.interface import Capabilities
from runstead.model.errors import Conflict, Invalid, TooLarge, Unsupported
from runstead.model.jobs import Job, JobSpec
from runstead.model.ports import HIGHEST_PORT, MAX_PORTS, Ports
from runstead.stores.interface import JobStore


class PortRules:
    """The rules of one executor.

    Where jobs share the machine's network, two of them cannot listen on the same port: the second that wants to
    expose it is refused. Who has which port is remembered here; the store tells after a restart.
    """

    def __init__(self, capabilities: Capabilities, store: JobStore) -> None:
        self._capabilities = capabilities
        self._store = store
        self._holders: dict[int, str] | None = None  # port: job

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
        """Return the specification with its ports in order. Raises as `check`, and Conflict for a port in use."""
        if spec.network is not None and not self._capabilities.groups:
            raise Unsupported(f"network: {self._capabilities.without_groups}")
        ports = self.check(spec.ports)
        await self.refuse_taken(ports, None)
        return replace(spec, ports=ports)

    async def refuse_taken(self, ports: Ports, job_id: str | None) -> None:
        """Raise Conflict if another job that is not over exposes one of these ports of the machine."""
        if self._capabilities.private_network or not ports:
            return
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

    def note(self, job: Job) -> None:
        """Remember the ports that a job has now."""
        if self._holders is not None and not self._capabilities.private_network:
            self._holders.update(dict.fromkeys(job.spec.ports.exposed, job.id))
