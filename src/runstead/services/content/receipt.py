"""Taking in the body of a xorb: checked, hashed and written to a staged file while it arrives.

Nothing is read a second time, and no more than a piece is held. Belongs to one thread at a time.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from runstead.kit.writeback import begin_writeback
from runstead.model.errors import Invalid, TooLarge, Unavailable
from runstead.services.content.checksums import Checksummer
from runstead.xet.errors import InvalidXorb
from runstead.xet.hashes import Buffer
from runstead.xet.xorb import XorbVerifier
from runstead.xet.xorb_layout import XorbFacts

_REREAD_BYTES = 1 << 20
_WRITEBACK_BYTES = 8 << 20
"""How much is gathered before the disk begins to work on it; the body is made durable as soon as it is whole."""


@dataclass(frozen=True, slots=True)
class Received:
    """A xorb in a staged file, proven to be what its name says; the file has its chunks and nothing else."""

    facts: XorbFacts
    checksums: bytes
    staged: Path


class Receipt:
    """One body on its way in."""

    def __init__(self, xorb_hash: bytes, staged: Path, limit_bytes: int) -> None:
        """Take at most `limit_bytes` into the staged file, which is removed unless `finish` returns it."""
        self._xorb_hash = xorb_hash
        self._staged = staged
        self._limit_bytes = limit_bytes
        self._verifier = XorbVerifier()
        self._checksummer = Checksummer()
        self._file = os.open(staged, os.O_WRONLY | os.O_CLOEXEC)
        self._open = True
        self._on_its_way = 0

    def feed(self, data: Buffer) -> None:
        """Take the next bytes. Raises Invalid as soon as the body cannot be a xorb or is too long."""
        if self._checksummer.length + len(data) > self._limit_bytes:
            raise TooLarge(f"the body of this xorb is longer than {self._limit_bytes} bytes")
        self._checksummer.feed(data)
        try:
            self._verifier.feed(data)
        except InvalidXorb as error:
            raise Invalid(str(error)) from error
        _write(self._file, data)
        if self._checksummer.length - self._on_its_way >= _WRITEBACK_BYTES:
            begin_writeback(self._file, self._on_its_way, self._checksummer.length - self._on_its_way)
            self._on_its_way = self._checksummer.length

    def finish(self, length: int | None = None, checksum: int | None = None) -> Received:
        """Return what was received. Raises Invalid unless length, CRC-64/NVME and hash are what was announced."""
        if length is not None and self._checksummer.length != length:
            raise Invalid(f"the body has {self._checksummer.length} bytes, {length} were announced")
        if checksum is not None and self._checksummer.whole != checksum:
            raise Invalid(f"the body has the CRC-64/NVME {self._checksummer.whole}, {checksum} was announced")
        try:
            facts = self._verifier.finish(self._xorb_hash)
        except InvalidXorb as error:
            raise Invalid(str(error)) from error
        checksums = self._checksummer.finish()
        if facts.layout.stored_bytes < self._checksummer.length:
            os.ftruncate(self._file, facts.layout.stored_bytes)
            checksums = _checksums_of(self._staged)
        self._close()
        return Received(facts, checksums, self._staged)

    def abandon(self) -> None:
        """Remove what was written, unless `finish` returned."""
        if self._open:
            self._close()
            self._staged.unlink(missing_ok=True)

    def _close(self) -> None:
        self._open = False
        os.close(self._file)


def _write(file: int, data: Buffer) -> None:
    try:
        written = os.write(file, data)
        if written < len(data):
            view = memoryview(data)
            while written < len(view):
                written += os.write(file, view[written:])
    except OSError as error:
        raise Unavailable(f"this server cannot write down what it receives: {error.strerror}", 30) from error


def _checksums_of(path: Path) -> bytes:
    checksummer = Checksummer()
    with path.open("rb") as file:
        while piece := file.read(_REREAD_BYTES):
            checksummer.feed(piece)
    return checksummer.finish()
