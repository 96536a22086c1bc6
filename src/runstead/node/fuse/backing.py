"""What is behind a file while it is open: a file of this node, read and written by the kernel itself if it can."""

import os

from runstead.node.fuse.cache import Cache, CachedFile
from runstead.node.fuse.device import Device


class Backing:
    """Shared by all who have one node open: the kernel takes one file, and one way to read it, per node."""

    __slots__ = ("_cache", "_device", "cached", "fd", "number", "users")

    def __init__(self, device: Device, fd: int, cache: Cache, cached: CachedFile | None) -> None:
        self._device = device
        self._cache = cache
        self.fd = fd
        self.cached = cached  # None for a staged file
        self.users = 0
        ready = cached is None or cached.whole
        self.number = device.open_backing(fd) if ready else 0  # 0: the kernel asks us for the bytes

    def on(self, device: Device) -> "Backing":
        """Give the number, which is known from elsewhere, back to this device."""
        self._device = device
        return self

    def close(self) -> None:
        """Let go; called when nobody has the node open any more."""
        if self.number:
            self._device.close_backing(self.number)
        if self.cached is not None:
            self._cache.drop(self.cached)
        else:
            os.close(self.fd)
