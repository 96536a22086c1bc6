"""Removes images that no job uses, when they were not used for long or there is no room for them."""

import asyncio

import structlog

from runstead.images.collecting import prune
from runstead.images.store import ImageStore
from runstead.kit.clock import Clock

log = structlog.get_logger()

EVERY_SECONDS = 600.0
_DAY_SECONDS = 86_400.0


class ImageSweeper:
    """Keeps the images of this machine within bounds. `unused_days` 0 keeps them for ever, while there is room."""

    def __init__(self, images: ImageStore, clock: Clock, unused_days: float, store_bytes: int) -> None:
        self._images = images
        self._clock = clock
        self._unused_seconds = unused_days * _DAY_SECONDS or None
        self._store_bytes = store_bytes

    async def run(self) -> None:
        """Sweep, then rest."""
        await self.run_once()
        await self._clock.sleep(EVERY_SECONDS)

    async def run_once(self) -> None:
        """Remove what need not be kept."""
        if not self._images.folder.exists():
            return
        removed = await asyncio.to_thread(prune, self._images, self._unused_seconds, self._store_bytes)
        if removed.images or removed.bytes:
            log.info("removed images that nobody used", images=removed.images, bytes=removed.bytes)
