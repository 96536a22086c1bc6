"""What a volume provider promises: it makes a volume a folder on the node, and its writes safe in the bucket.

The server holds no mount and no file of a volume; providers speak to programs beside the job and may be called by
another server process than the one that prepared. Every method is idempotent, also after a crash at any instant.
Errors: `Invalid`/`NotFound` when the source is not there (the job fails with class volume), `Unavailable` when the
call may succeed later, `BackendFailure` for anything else.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from runstead.model.errors import Unavailable
from runstead.model.volumes import Flushed, Mount, MountRequest


def not_saved(job_id: str, reason: str, kept: str | Path | None) -> Unavailable:
    """Return the error of a flush; `kept` is where on the node that is which is in no bucket, if there is such."""
    if kept is None:
        return Unavailable(f"{reason}; nothing that was closed is missing: it had been saved before")
    what_next = f"`runstead job recover {job_id}` on the server's machine saves the rest"
    return Unavailable(f"{reason}; what is missing is kept in {kept}; {what_next}")


class VolumeProvider(ABC):
    """Serves volumes on the machine where jobs run."""

    @abstractmethod
    async def open(self) -> None:
        """Make ready; called once before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of what this process holds. Mounts of running jobs stay."""

    @abstractmethod
    async def prepare(self, requests: Sequence[MountRequest]) -> list[Mount]:
        """Make the volumes of one attempt appear on the node; called before the attempt is started."""

    @abstractmethod
    async def flush(self, job_id: str, attempt: int, within_seconds: float) -> Flushed:
        """Return when everything the attempt closed is in its buckets.

        Raises Unavailable when that cannot be had in time; what is left is kept on the node, and the message names
        where and what to do (`not_saved`). Called after the attempt has ended; called again it goes on where it
        stopped.
        """

    @abstractmethod
    async def release(self, job_id: str, attempt: int, keep_unflushed: bool) -> None:
        """Remove the attempt's mounts and files; with `keep_unflushed`, all but what is in no bucket yet."""

    @abstractmethod
    async def holds(self, job_id: str, attempt: int) -> bool:
        """Say whether this provider has anything of the attempt here, in use or kept as unsaved."""

    @abstractmethod
    async def owned(self) -> list[tuple[str, int]]:
        """Return (job_id, attempt) of every attempt that still holds something here."""
