"""One layer from its source to its directory, while it streams: read and hash, decompress and hash, make files.

Each of the three has a thread: hashing, decompressing and writing leave the interpreter to the others.
"""

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runstead.images.archive import Damaged, TarReader
from runstead.images.compression import decompressed
from runstead.images.unpacking import Limits, TooBig, Unpacked, unpack
from runstead.model.errors import ImageFailure

_PIECES = 8  # in flight between two threads; a piece is at most a megabyte
_STOP_SECONDS = 0.2
_END_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as a manifest and a configuration name it."""

    diff_id: str  # hash of the archive, 64 digits
    digest: str | None  # of what is fetched, as in sha256:...; None where the source has no such hash
    size: int | None  # of what is fetched
    media_type: str = ""


def unpack_layer(
    layer: Layer,
    pieces: Iterator[bytes],
    into: str,
    limits: Limits,
    fetched: Callable[[int], None],
    look: Callable[[Unpacked], None],
) -> Unpacked:
    """Unpack a layer and check every hash. `fetched` is told how much has come. Raises ImageFailure."""
    ended = threading.Event()
    first = _Conveyor(_checked(layer, pieces, fetched), ended)
    archive_hash = hashlib.sha256()
    second = _Conveyor(_hashed(decompressed(iter(first.next, b"")), archive_hash.update), ended)
    try:
        reader = TarReader(second.next)
        done = unpack(reader, into, limits, look)
        reader.rest()
    except Damaged as error:
        raise ImageFailure(f"a layer of the image cannot be unpacked: {error}: {_name(layer)}") from error
    except TooBig as error:
        raise ImageFailure(
            f"the image is refused: {error}; the server's operator may allow it with images.max_image_bytes or "
            f"images.max_image_files: {_name(layer)}"
        ) from error
    except OSError as error:
        raise _of_disk(error, layer) from error
    finally:
        ended.set()
        first.end()
        second.end()
    if archive_hash.hexdigest() != layer.diff_id:
        raise ImageFailure(
            f"a layer of the image is not what its configuration says: the hash of its archive is "
            f"sha256:{archive_hash.hexdigest()} and not sha256:{layer.diff_id}"
        )
    return done


def _checked(layer: Layer, pieces: Iterator[bytes], fetched: Callable[[int], None]) -> Iterator[bytes]:
    """Pass pieces on, and find at the end that they were what was asked for."""
    digest = hashlib.new(layer.digest.partition(":")[0]) if layer.digest else None
    count = 0
    for piece in pieces:
        if digest is not None:
            digest.update(piece)
        count += len(piece)
        fetched(count)
        yield piece
    if digest is not None and layer.digest != f"{digest.name}:{digest.hexdigest()}":
        raise ImageFailure(
            f"what came from the registry is damaged: a layer's hash is {digest.name}:{digest.hexdigest()} and not "
            f"{layer.digest}; try again, and if it stays so tell those who run the registry, or a proxy before it",
            again=True,
        )


def _hashed(pieces: Iterator[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for piece in pieces:
        update(piece)
        yield piece


class _Conveyor:
    """Runs an iterator in a thread of its own, a few pieces ahead."""

    def __init__(self, pieces: Iterator[bytes], ended: threading.Event) -> None:
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_PIECES)
        self._ended = ended
        self._thread = threading.Thread(target=self._run, args=(pieces,), daemon=True)
        self._last: BaseException | None = None
        self._done = False
        self._thread.start()

    def next(self) -> bytes:
        """Return the next piece; empty at the end. Raises what the iterator raised."""
        while not self._done:
            try:
                piece = self._queue.get(timeout=_STOP_SECONDS)
            except queue.Empty:
                if self._ended.is_set():
                    return b""
                continue
            if isinstance(piece, BaseException):
                self._done = True
                self._last = piece
            elif piece:
                return piece
            else:
                self._done = True
        if self._last is not None:
            raise self._last
        return b""

    def end(self) -> None:
        """Wait a moment for the thread to stop, which it does at its next piece; `ended` is set."""
        self._thread.join(_END_SECONDS)

    def _run(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                if piece and not self._put(piece):
                    return
            self._put(b"")
        except BaseException as error:
            self._put(error)

    def _put(self, piece: bytes | BaseException) -> bool:
        while not self._ended.is_set():
            try:
                self._queue.put(piece, timeout=_STOP_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def _of_disk(error: OSError, layer: Layer) -> ImageFailure:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImageFailure(
            "the server's disk is full while the image is unpacked; `runstead image prune` makes room, and "
            f"images.store_bytes bounds what images take: {_name(layer)}",
            again=True,
        )
    if error.errno == errno.EPERM and os.geteuid() != 0:
        return ImageFailure(f"images can be unpacked only by a server that runs as root: {error.strerror}")
    where = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return ImageFailure(
        f"a layer of the image cannot be unpacked: {error.strerror or error}: {where or _name(layer)}",
        again=error.errno in (errno.EIO, errno.ENOMEM, errno.EMFILE),
    )


def _name(layer: Layer) -> str:
    return layer.digest or f"sha256:{layer.diff_id}"
