"""Volumes in the way that is wanted, and still in another for attempts that began when another was.

A server that is upgraded, or set otherwise, finds jobs whose volumes it prepared in its former way, and files that are
kept as unsaved: they stay what they are until they are given back.
"""

from collections.abc import Sequence

from runstead.model.volumes import Flushed, Mount, MountRequest
from runstead.volumes.interface import VolumeProvider


class EitherVolumes(VolumeProvider):
    """Two providers on one data directory."""

    def __init__(self, wanted: VolumeProvider, other: VolumeProvider) -> None:
        self._wanted = wanted
        self._other = other

    async def open(self) -> None:
        """Make both ready."""
        await self._wanted.open()
        await self._other.open()

    async def close(self) -> None:
        """Let go of both."""
        await self._wanted.close()
        await self._other.close()

    async def prepare(self, requests: Sequence[MountRequest]) -> list[Mount]:
        """See VolumeProvider."""
        provider = await self._of(requests[0].job_id, requests[0].attempt)
        return await provider.prepare(requests)

    async def flush(self, job_id: str, attempt: int, within_seconds: float) -> Flushed:
        """See VolumeProvider."""
        return await (await self._of(job_id, attempt)).flush(job_id, attempt, within_seconds)

    async def release(self, job_id: str, attempt: int, keep_unflushed: bool) -> None:
        """See VolumeProvider."""
        await (await self._of(job_id, attempt)).release(job_id, attempt, keep_unflushed)

    async def owned(self) -> list[tuple[str, int]]:
        """See VolumeProvider."""
        return sorted({*await self._wanted.owned(), *await self._other.owned()})

    async def holds(self, job_id: str, attempt: int) -> bool:
        """See VolumeProvider."""
        return await self._wanted.holds(job_id, attempt) or await self._other.holds(job_id, attempt)

    async def _of(self, job_id: str, attempt: int) -> VolumeProvider:
        return self._other if await self._other.holds(job_id, attempt) else self._wanted
