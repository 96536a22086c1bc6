"""From a stored job to a launch: its environment, its secrets, its share of the machine, the head of its log."""

from collections.abc import Callable, Mapping

from runstead.executors.interface import Capabilities
from runstead.kit.clock import Clock
from runstead.logs.interface import LogStore
from runstead.model.hardware import Flavor
from runstead.model.jobs import Job
from runstead.model.launches import Launch, Membership
from runstead.model.sandboxes import HIDDEN_VARIABLES, PORT, Mode
from runstead.services.hardware import Hardware
from runstead.services.secrets import SecretBox
from runstead.stores.interface import JobStore

_EARLIEST_ATTEMPT = 1
# Host names inside of a network group begin so. A job is in one group at most, so aliases need not name theirs.
_GROUP, _ALIAS = "group-", "member-"


class Launching:
    """Prepares launches. `endpoint` gives the HF_ENDPOINT for jobs, or None when they get none."""

    def __init__(
        self,
        store: JobStore,
        logs: LogStore,
        hardware: Hardware,
        secrets: SecretBox,
        capabilities: Capabilities,
        clock: Clock,
        endpoint: Callable[[], str | None],
    ) -> None:
        self._store = store
        self._logs = logs
        self._hardware = hardware
        self._secrets = secrets
        self._capabilities = capabilities
        self._clock = clock
        self._endpoint = endpoint

    async def prepare(self, job: Job) -> Launch:
        """Return the launch of the job's current attempt. Raises Invalid when its flavor is gone."""
        flavor = self._hardware.flavor(job.spec.flavor)
        sealed = await self._store.sealed_secrets(job.id) if job.spec.secret_names else None
        secrets = self._secrets.open(job.id, sealed) if sealed else {}
        now = self._clock.now()
        last = await self._logs.end_time(job.id) if job.attempt > _EARLIEST_ATTEMPT else None
        return Launch(
            job_id=job.id,
            attempt=job.attempt,
            namespace=job.namespace,
            image=job.spec.image,
            argv=() if job.spec.sandbox else (*job.spec.command, *job.spec.arguments),
            environment=_environment(job, {**self._builtin(job, flavor), **job.spec.environment, **secrets}),
            cpu_millicores=flavor.cpu_millicores,
            memory_bytes=flavor.memory_bytes,
            disk_bytes=flavor.disk_bytes,
            gpu_ids=job.reservation.gpu_ids if job.reservation else (),
            timeout_seconds=job.spec.timeout_seconds,
            log_path=self._logs.sink(job.id, job.attempt),
            log_not_before=max(now, last) if last else now,
            egress=job.spec.sandbox.egress if job.spec.sandbox else None,
            snapshots=job.spec.sandbox.snapshots if job.spec.sandbox else (),
            preamble=(f"===== Job started at {now:%Y-%m-%d %H:%M:%S} =====", *self._notes(job)),
            group=_membership(job),
            divided=job.spec.sandbox is not None and job.spec.sandbox.mode is Mode.POOL,
        )

    def note(self, job: Job) -> str | None:
        """Return what a user should know about how this job runs, for `status.message`."""
        return "; ".join(self._notes(job)) or None

    def _notes(self, job: Job) -> list[str]:
        notes = [note.format(image=job.spec.image) for note in self._capabilities.notes]
        if job.spec.sandbox is not None:
            notes.append(f"this is a sandbox; the server answers for it on port {PORT}, and its command is not run")
        return [f"runstead: {note}" for note in notes]

    def _builtin(self, job: Job, flavor: Flavor) -> dict[str, str]:
        """Return the variables every job gets (wire-jobs §13); what the user sets wins."""
        variables = {
            "JOB_ID": job.id,
            "ACCELERATOR": flavor.name if flavor.accelerator else "none",
            "CPU_CORES": f"{flavor.cpu_millicores / 1000:g}",
            "MEMORY": _kubernetes_size(flavor.memory_bytes),
        }
        if job.spec.network is not None:
            variables["HF_NETWORK_GROUP_HOSTNAME"] = f"{_GROUP}{job.spec.network.name}"
            variables["HF_NETWORK_GROUP_PREFIX"] = _ALIAS
        endpoint = self._endpoint()
        if endpoint is not None:
            variables["HF_ENDPOINT"] = endpoint
        return variables


def _membership(job: Job) -> Membership | None:
    """Return the network group of a job: of one namespace and resource group (wire-jobs §15)."""
    network = job.spec.network
    if network is None:
        return None
    key = f"{job.namespace_id}/{job.spec.resource_group_id or ''}/{network.name}"
    return Membership(key, (f"{_GROUP}{network.name}", *(f"{_ALIAS}{alias}" for alias in network.aliases)))


def _environment(job: Job, variables: Mapping[str, str]) -> Mapping[str, str]:
    """Return what programs in the job get to see; those in a sandbox never its token."""
    if job.spec.sandbox is None:
        return variables
    return {name: value for name, value in variables.items() if name not in HIDDEN_VARIABLES}


def _kubernetes_size(size_bytes: int) -> str:
    gibibytes = size_bytes / 2**30
    return f"{gibibytes:.0f}Gi" if gibibytes >= 10 else f"{size_bytes // 2**20}Mi"
