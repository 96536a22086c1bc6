"""The three ways a chunk is stored: as it is, as an LZ4 frame, or grouped by byte position and then as an LZ4 frame.

Formats: wire-storage §2. Decompression never makes more bytes than it was told to expect, so a small payload that
would unfold to gigabytes is refused after at most one chunk.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import cast

import numpy as np
from lz4 import frame
from numpy.typing import NDArray

from runstead.xet.errors import InvalidChunk

_compress_frame = cast("Callable[..., bytes]", frame.compress)
_decompress_frame = cast("Callable[..., tuple[bytes, int, bool]]", frame.decompress_chunk)
_BLOCK_64_KIB = cast("int", frame.BLOCKSIZE_MAX64KB)  # pyright: ignore[reportUnknownMemberType]
_BLOCK_256_KIB = cast("int", frame.BLOCKSIZE_MAX256KB)  # pyright: ignore[reportUnknownMemberType]
_new_context = cast("Callable[[], object]", frame.create_decompression_context)

_SMALL_BLOCK_BYTES = 65536
_WORD_BYTES = 4


class Scheme(IntEnum):
    """How a payload is stored; the number is the one in the chunk header."""

    NONE = 0
    LZ4 = 1
    GROUPED_LZ4 = 2


def compress(data: bytes | memoryview, scheme: Scheme) -> bytes:
    """Return the payload of a chunk in this scheme."""
    if scheme is Scheme.NONE:
        return bytes(data)
    if scheme is Scheme.GROUPED_LZ4:
        data = group_bytes(data)
    small = len(data) <= _SMALL_BLOCK_BYTES
    return _compress_frame(
        data,
        block_size=_BLOCK_64_KIB if small else _BLOCK_256_KIB,
        block_linked=False,
        store_size=False,
    )


def compress_smallest(data: bytes | memoryview) -> tuple[Scheme, bytes]:
    """Return the scheme with the smallest payload and that payload; plain wins a draw."""
    best, payload = Scheme.NONE, bytes(data)
    for scheme in (Scheme.LZ4, Scheme.GROUPED_LZ4):
        candidate = compress(data, scheme)
        if len(candidate) < len(payload):
            best, payload = scheme, candidate
    return best, payload


class Decompressor:
    """Unpacks payloads one after another, for one thread at a time.

    The LZ4 state is kept from chunk to chunk: in a worker thread, setting it up anew for each one doubles the time,
    because its buffers are then given back to the system and faulted in again.
    """

    def __init__(self) -> None:
        self._context = _new_context()

    def unpack(
        self, payload: bytes | bytearray | memoryview, scheme: int, length: int
    ) -> bytes | bytearray | memoryview:
        """Return the `length` bytes of a chunk, at least one; scheme none gives back the payload itself.

        Raises InvalidChunk unless the payload holds exactly that many bytes and nothing else; at most `length`
        bytes are ever produced. The next payload can be unpacked after an error.
        """
        if scheme == Scheme.NONE:
            if len(payload) != length:
                raise InvalidChunk(f"stored payload has {len(payload)} bytes, its header says {length}")
            return payload
        if scheme == Scheme.LZ4:
            return self._unpack_frame(payload, length)
        if scheme == Scheme.GROUPED_LZ4:
            return _ungroup(self._unpack_frame(payload, length)).data
        raise InvalidChunk(f"unknown compression scheme {scheme}")

    def _unpack_frame(self, payload: bytes | bytearray | memoryview, length: int) -> bytes:
        try:
            data, used, ended = _decompress_frame(self._context, payload, max_length=length)
        except (RuntimeError, ValueError) as error:
            self._context = _new_context()
            raise InvalidChunk(f"LZ4 frame of {len(payload)} bytes is broken: {error}") from error
        if ended and len(data) == length and used == len(payload):
            return data
        self._context = _new_context()
        if not ended:
            raise InvalidChunk(
                f"LZ4 frame of {len(payload)} bytes is cut short, or unfolds to more than the {length} bytes its "
                f"header says ({len(data)} read)"
            )
        raise InvalidChunk(
            f"LZ4 frame unfolds to {len(data)} bytes from {used} of {len(payload)}, its header says {length}"
        )


def group_bytes(data: bytes | memoryview) -> bytes:
    """Return the bytes at positions 0, 4, 8, … then those at 1, 5, 9, … and so on."""
    source = np.frombuffer(data, np.uint8)
    return b"".join(source[position::_WORD_BYTES].tobytes() for position in range(_WORD_BYTES))


def ungroup_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Undo `group_bytes`."""
    return _ungroup(data).tobytes()


def _ungroup(data: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    source = np.frombuffer(data, np.uint8)
    result = np.empty_like(source)
    start = 0
    for position in range(_WORD_BYTES):
        end = start + (len(source) - position + _WORD_BYTES - 1) // _WORD_BYTES
        result[position::_WORD_BYTES] = source[start:end]
        start = end
    return result
