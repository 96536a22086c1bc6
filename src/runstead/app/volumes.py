"""How volumes come into jobs on this machine."""

from runstead.executors.interface import Capabilities
from runstead.kit.settings import Settings
from runstead.model.errors import Unavailable
from runstead.services.volumes import MountRequests
from runstead.volumes.either import EitherVolumes
from runstead.volumes.filled import FilledVolumes
from runstead.volumes.fuse import FuseVolumes
from runstead.volumes.fuse import problem as mount_problem
from runstead.volumes.interface import VolumeProvider


def build_volumes(settings: Settings, requests: MountRequests, *, private_ids: bool) -> VolumeProvider:
    """Return what serves volumes on this machine. Raises Unavailable when mounts are asked for and not possible."""
    mounted, filled = (
        kind(
            settings.server.data_dir,
            requests.of_attempt,
            private_ids=private_ids,
            cache_bytes=settings.storage.node_cache_bytes,
        )
        for kind in (FuseVolumes, FilledVolumes)
    )
    if unmountable(settings) is None:
        return EitherVolumes(mounted, filled)
    return EitherVolumes(filled, mounted)


def unmountable(settings: Settings) -> str | None:
    """Return why volumes are filled; None when they are mounted. Raises Unavailable when that is not possible."""
    if settings.executor.volumes == "fill":
        return 'executor.volumes = "fill"'
    lacking = mount_problem()
    if lacking is not None and settings.executor.volumes == "mount":
        raise Unavailable(f'executor.volumes = "mount" is not possible here: {lacking}')
    return lacking


def volume_notes(settings: Settings, capabilities: Capabilities) -> list[str]:
    """Return why volumes are not mounted, where nobody asked for that."""
    lacking = unmountable(settings) if capabilities.volumes and settings.executor.volumes == "auto" else None
    return [] if lacking is None else [f"volumes are filled before a job starts, because {lacking}"]
