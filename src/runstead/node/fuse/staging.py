"""Files that are being written, or were and are not in the bucket yet: plain files in one folder per mount."""

import errno
import os

_COPY_BYTES = 1 << 24


class Staging:
    """The staged files of one mount, each named by a number."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        os.makedirs(directory, 0o700, exist_ok=True)
        numbers = [int(name) for name in os.listdir(directory) if name.isdigit()]
        self._next = max(numbers, default=0) + 1

    def path(self, stage: str) -> str:
        """Return where a staged file is."""
        return os.path.join(self.directory, stage)

    def create(self) -> tuple[str, int]:
        """Return the name of a new, empty staged file, and a file descriptor of it."""
        name = str(self._next)
        self._next += 1
        return name, os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, stage: str) -> int:
        """Open a staged file."""
        return os.open(self.path(stage), os.O_RDWR | os.O_CLOEXEC)

    def delete(self, stage: str) -> None:
        """Remove a staged file; who has it open keeps it."""
        try:
            os.unlink(self.path(stage))
        except FileNotFoundError:
            pass

    def sweep(self, wanted: "set[str]") -> None:
        """Remove what nothing refers to."""
        for name in os.listdir(self.directory):
            if name not in wanted:
                self.delete(name)


def copy(source: int, target: int, size: int) -> None:
    """Copy a whole file into an empty one. Raises OSError when the disk is full."""
    offset = 0
    while offset < size:
        try:
            count = os.copy_file_range(source, target, min(_COPY_BYTES, size - offset), offset, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            data = os.pread(source, 1 << 20, offset)
            count = os.pwrite(target, data, offset) if data else 0
        if count == 0:
            raise OSError(errno.EIO, "the file is shorter than it was")
        offset += count
