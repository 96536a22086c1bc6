"""Turns the bytes of a layer as registries keep them into the archive they stand for: gzip, zstd, or plain."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from runstead.images.archive import Damaged

if TYPE_CHECKING:
    import zlib as inflation  # the other is the same but for its speed
else:
    try:
        from isal import isal_zlib as inflation
    except ImportError:  # there is none for this kind of processor
        import zlib as inflation

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))
_AT_ONCE = 1 << 20  # bytes that one step may yield: a small piece can stand for a thousand times as much
_WINDOW_LOG = 27  # 128 MB of memory, as every tool allows


def decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the archive. What it is compressed with is seen from its first bytes. Raises Damaged."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= 4:
            break
    if head.startswith(_GZIP):
        yield from _members(head, pieces, _gunzip)
    elif head.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
        yield from _members(head, pieces, _unzstd)
    else:
        if head:
            yield head
        yield from pieces


class _Gunzip:
    """A gzip member. Like what the module for zstd has."""

    def __init__(self) -> None:
        self._inner = inflation.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _gunzip() -> Any:
    return _Gunzip()


def _unzstd() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def _members(head: bytes, pieces: Iterator[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
    """Yield what a chain of compressed members stands for; some tools make one per file."""
    member = make()
    data = head
    try:
        while True:
            out = member.decompress(data, _AT_ONCE)
            data = b""
            if out:
                yield out
            if member.eof:
                data = member.unused_data
                while not data.strip(b"\0"):  # padding
                    data = next(pieces, b"")
                    if not data:
                        return
                member = make()
            elif member.needs_input and len(out) < _AT_ONCE:
                data = next(pieces, b"")
                if not data:
                    raise Damaged("the compressed layer breaks off")
    except (inflation.error, zstd.ZstdError) as error:
        raise Damaged(f"the layer cannot be decompressed: {error}") from error
