"""Room on the disk that is kept for the time when there is none: to note what was closed, and to upload it."""

import os

_BYTES = 2 << 20


class Reserve:
    """A file that is given up when the disk is full."""

    def __init__(self, path: str) -> None:
        self._path = path

    def take(self) -> None:
        """Make sure of it. Raises OSError where there is not even that much."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _BYTES)
        except OSError:
            os.unlink(self._path)
            raise
        finally:
            os.close(fd)

    def give_up(self) -> bool:
        """Make room; False when that was done before."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True
