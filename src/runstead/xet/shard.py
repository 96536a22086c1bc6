"""Shards: the message by which a client describes files and xorbs (wire-storage §3).

After a header everything is records of 48 bytes: files with their terms, then xorbs with their chunks; an answer
to a deduplication query has lookup tables and a footer besides. Reading checks that the bytes are a shard and
nothing more; whether it tells the truth is `verification`.
"""

from dataclasses import dataclass
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from runstead.xet.errors import InvalidShard
from runstead.xet.hashes import HASH_BYTES, ZERO_HASH, Buffer, hash_from_text, hash_to_text
from runstead.xet.terms import RECORD_BYTES, Terms
from runstead.xet.xorb_layout import MAX_XORB_CHUNKS, XorbFacts

MAX_SHARD_BYTES = 64 * 1024 * 1024
MAX_SHARD_FILES = 200_000
"""Clients send a thousand or so. Read, an entry takes several times the memory it has in a shard."""

_TAG = bytes.fromhex("48465265706f4d6574614461746100556967456a7b815783a5bdd95ccdd14aa9")
_VERSION = 2
_FOOTER_VERSION = 1
_HEADER = Struct("<32sQQ")
_FILE = Struct("<32sII8x")
_XORB = Struct("<32s4xIII")
_FOOTER = Struct("<9Q32sQQ48x4Q")
_END_MARK = b"\xff" * HASH_BYTES
_END_RECORD = _END_MARK + bytes(16)
_HAS_RANGE_HASHES = 0x80000000
_HAS_SHA256 = 0x40000000
_U32_LIMIT = 1 << 32
_U64_LIMIT = 1 << 64
_NAMED = np.dtype([("hash", "V32"), ("rest", "V16")])
_CHUNK = np.dtype([("hash", "V32"), ("start", "<u4"), ("unpacked_bytes", "<u4"), ("flags", "<u4"), ("unused", "<u4")])
_LOOKUP = np.dtype([("key", "<u8"), ("record", "<u4")])
_CHUNK_LOOKUP = np.dtype([("key", "<u8"), ("record", "<u4"), ("chunk", "<u4")])


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file: its hash, its terms, one range hash of 32 bytes per term, and the usual SHA-256 as hex.

    The last two are None where the shard leaves them out.
    """

    file_hash: bytes
    terms: Terms
    range_hashes: bytes | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class XorbBlock:
    """A xorb and its chunks, as records of 48 bytes; `stored_bytes` is 0 where the sender does not know it."""

    xorb_hash: bytes
    unpacked_bytes: int
    stored_bytes: int
    records: bytes

    @property
    def chunk_count(self) -> int:
        """How many chunks are listed."""
        return len(self.records) // RECORD_BYTES

    def chunk_hashes(self) -> bytes:
        """Return the hash of each chunk, 32 bytes each; HMACs where the footer has a key."""
        return np.frombuffer(self.records, _CHUNK)["hash"].tobytes()

    def chunk_starts(self) -> NDArray[np.uint32]:
        """Return where each chunk starts in the content of the xorb, in bytes."""
        return np.frombuffer(self.records, _CHUNK)["start"]

    def chunk_lengths(self) -> NDArray[np.uint32]:
        """Return the uncompressed length of each chunk, in bytes."""
        return np.frombuffer(self.records, _CHUNK)["unpacked_bytes"]


@dataclass(frozen=True, slots=True)
class ShardFooter:
    """The end of a deduplication answer; instants in unix seconds. A key of zeros means plain chunk hashes."""

    hmac_key: bytes = ZERO_HASH
    created_at: int = 0
    key_expires_at: int = 0
    lookups: bool = True
    """Whether there are lookup tables by hash."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Files and xorbs, in the order they are written."""

    files: tuple[FileEntry, ...]
    xorbs: tuple[XorbBlock, ...]
    footer: ShardFooter | None = None


def block_of(facts: XorbFacts, chunk_hashes: bytes) -> XorbBlock:
    """Return how a shard describes a xorb, with its chunk hashes or with HMACs of them."""
    layout = facts.layout
    records = np.zeros(layout.chunk_count, _CHUNK)
    records["hash"] = np.frombuffer(chunk_hashes, "V32")
    records["start"] = layout.unpacked_offsets[:-1]
    records["unpacked_bytes"] = np.diff(layout.unpacked_offsets)
    return XorbBlock(facts.xorb_hash, layout.unpacked_bytes, 0, records.tobytes())


def read_shard(data: Buffer) -> Shard:
    """Read a shard with or without a footer.

    Raises InvalidShard if it is longer than 64 MiB, cut short, of an unknown version, has flags that are not
    known, a xorb without chunks or with more than 8192, or bytes that belong to nothing. Lookup tables are passed
    over: only their place is checked.
    """
    if len(data) > MAX_SHARD_BYTES:
        raise InvalidShard(f"a shard has at most {MAX_SHARD_BYTES} bytes, this one {len(data)}")
    reader = _Reader(memoryview(data))
    footer_size = reader.header()
    files = reader.files()
    xorbs_start = reader.offset
    xorbs = reader.xorbs()
    # hf_xet 1.1 announces a footer in what it uploads, and sends none.
    footer = reader.footer(footer_size, xorbs_start) if footer_size and reader.offset < len(data) else None
    if reader.offset != len(reader.data):
        raise InvalidShard(f"shard of {len(reader.data)} bytes has more than it needs, from byte {reader.offset} on")
    return Shard(tuple(files), tuple(xorbs), footer)


def write_shard(shard: Shard) -> bytes:
    """Return the bytes of a shard; a footer and what it counts are made from the files and xorbs.

    Raises InvalidShard for a number that does not fit its field, or lists of different lengths.
    """
    footer_size = _FOOTER.size if shard.footer else 0
    files = b"".join(_file_records(index, entry) for index, entry in enumerate(shard.files)) + _END_RECORD
    xorbs = b"".join(_xorb_records(index, block) for index, block in enumerate(shard.xorbs)) + _END_RECORD
    body = _HEADER.pack(_TAG, _VERSION, footer_size) + files + xorbs
    if shard.footer is None:
        return body
    return body + _tables_and_footer(shard, shard.footer, _HEADER.size + len(files), len(body))


class _Reader:
    """Goes through a shard from front to back and says where it went wrong."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.offset = 0

    def header(self) -> int:
        tag, version, footer_size = _HEADER.unpack(self.take(_HEADER.size, "header"))
        if tag != _TAG:
            raise InvalidShard(f"not a shard: it begins with {tag.hex()}")
        if version != _VERSION:
            raise InvalidShard(f"shard version {version} is unknown")
        if footer_size not in (0, _FOOTER.size):
            raise InvalidShard(f"a footer has 0 or {_FOOTER.size} bytes, this one {footer_size}")
        return footer_size

    def files(self) -> list[FileEntry]:
        files: list[FileEntry] = []
        while True:
            what = f"file {len(files)}"
            file_hash, flags, count = _FILE.unpack(self.take(_FILE.size, what))
            if file_hash == _END_MARK:
                return files
            if len(files) == MAX_SHARD_FILES:
                raise InvalidShard(f"a shard has at most {MAX_SHARD_FILES} files, this one more")
            if flags & ~(_HAS_RANGE_HASHES | _HAS_SHA256):
                raise InvalidShard(f"{what} at byte {self.offset - _FILE.size}: flags {flags:#x} are unknown")
            terms = Terms(self.take(RECORD_BYTES * count, what))
            range_hashes = self._range_hashes(count, what) if flags & _HAS_RANGE_HASHES else None
            sha256 = hash_to_text(self.take(RECORD_BYTES, what)[:HASH_BYTES]) if flags & _HAS_SHA256 else None
            files.append(FileEntry(file_hash, terms, range_hashes, sha256))

    def xorbs(self) -> list[XorbBlock]:
        xorbs: list[XorbBlock] = []
        while True:
            what = f"xorb {len(xorbs)}"
            xorb_hash, count, unpacked_bytes, stored_bytes = _XORB.unpack(self.take(_XORB.size, what))
            if xorb_hash == _END_MARK:
                return xorbs
            if not 1 <= count <= MAX_XORB_CHUNKS:
                raise InvalidShard(f"{what} has {count} chunks, 1 to {MAX_XORB_CHUNKS} allowed")
            xorbs.append(XorbBlock(xorb_hash, unpacked_bytes, stored_bytes, self.take(RECORD_BYTES * count, what)))

    def footer(self, size: int, xorbs_start: int) -> ShardFooter:
        tables_start, start = self.offset, len(self.data) - size
        if start < tables_start:
            raise InvalidShard(f"shard of {len(self.data)} bytes is cut short in its footer, at byte {tables_start}")
        (
            version,
            files_at,
            xorbs_at,
            *tables,
            hmac_key,
            created_at,
            key_expires_at,
            _,
            _,
            _,
            footer_at,
        ) = _FOOTER.unpack_from(self.data, start)
        for name, found, wanted in (
            ("version", version, _FOOTER_VERSION),
            ("offset of the files", files_at, _HEADER.size),
            ("offset of the xorbs", xorbs_at, xorbs_start),
            ("offset of itself", footer_at, start),
        ):
            if found != wanted:
                raise InvalidShard(f"footer at byte {start}: {name} is {found}, should be {wanted}")
        for kind, at, count, width in zip(
            ("files", "xorbs", "chunks"),
            tables[::2],
            tables[1::2],
            (_LOOKUP.itemsize, _LOOKUP.itemsize, _CHUNK_LOOKUP.itemsize),
            strict=True,
        ):
            if count and not tables_start <= at <= at + width * count <= start:
                raise InvalidShard(
                    f"footer at byte {start}: lookup of {kind} with {count} entries at byte {at} lies outside "
                    f"{tables_start} to {start}"
                )
        self.offset = len(self.data)
        return ShardFooter(hmac_key, created_at, key_expires_at, lookups=any(tables[1::2]))

    def take(self, size: int, what: str) -> bytes:
        end = self.offset + size
        if end > len(self.data):
            raise InvalidShard(
                f"shard of {len(self.data)} bytes is cut short: {what} needs {size} bytes from byte {self.offset} on"
            )
        start, self.offset = self.offset, end
        return bytes(self.data[start:end])

    def _range_hashes(self, count: int, what: str) -> bytes:
        records = self.take(RECORD_BYTES * count, what)
        return records[:HASH_BYTES] if count == 1 else np.frombuffer(records, _NAMED)["hash"].tobytes()


def _file_records(index: int, entry: FileEntry) -> bytes:
    count = len(entry.terms)
    if len(entry.file_hash) != HASH_BYTES:
        raise InvalidShard(f"file {index} cannot be written: its hash is {entry.file_hash.hex()}")
    flags, verification, metadata = 0, b"", b""
    if entry.range_hashes is not None:
        if len(entry.range_hashes) != HASH_BYTES * count:
            raise InvalidShard(
                f"file {index} cannot be written: {len(entry.range_hashes)} bytes of range hashes, {count} terms"
            )
        flags |= _HAS_RANGE_HASHES
        records = np.zeros(count, _NAMED)
        records["hash"] = np.frombuffer(entry.range_hashes, "V32")
        verification = records.tobytes()
    if entry.sha256 is not None:
        flags |= _HAS_SHA256
        metadata = hash_from_text(entry.sha256) + bytes(16)
    return _FILE.pack(entry.file_hash, flags, count) + entry.terms.records + verification + metadata


def _xorb_records(index: int, block: XorbBlock) -> bytes:
    if (
        len(block.xorb_hash) != HASH_BYTES
        or len(block.records) % RECORD_BYTES
        or not 0 <= block.unpacked_bytes < _U32_LIMIT
        or not 0 <= block.stored_bytes < _U32_LIMIT
    ):
        raise InvalidShard(
            f"xorb {index} cannot be written: hash {block.xorb_hash.hex()}, {len(block.records)} bytes of records, "
            f"{block.unpacked_bytes} bytes of content, {block.stored_bytes} stored"
        )
    header = _XORB.pack(block.xorb_hash, block.chunk_count, block.unpacked_bytes, block.stored_bytes)
    return header + block.records


def _tables_and_footer(shard: Shard, footer: ShardFooter, xorbs_start: int, tables_start: int) -> bytes:
    if len(footer.hmac_key) != HASH_BYTES or not all(
        0 <= instant < _U64_LIMIT for instant in (footer.created_at, footer.key_expires_at)
    ):
        raise InvalidShard(f"footer cannot be written: {footer}")
    tables = _lookup_tables(shard) if footer.lookups else [np.empty(0, _LOOKUP)] * 2 + [np.empty(0, _CHUNK_LOOKUP)]
    offsets: list[int] = []
    offset = tables_start
    for table in tables:
        offsets += (offset, len(table))
        offset += table.nbytes
    return b"".join(table.tobytes() for table in tables) + _FOOTER.pack(
        _FOOTER_VERSION,
        _HEADER.size,
        xorbs_start,
        *offsets,
        footer.hmac_key,
        footer.created_at,
        footer.key_expires_at,
        sum(block.stored_bytes for block in shard.xorbs),
        sum(entry.terms.file_bytes for entry in shard.files),
        sum(block.unpacked_bytes for block in shard.xorbs),
        offset,
    )


def _lookup_tables(shard: Shard) -> list[NDArray[np.void]]:
    """Return the tables of files, xorbs and chunks, each sorted by the first eight bytes of the hash."""
    files: list[tuple[int, int]] = []
    xorbs: list[tuple[int, int]] = []
    chunks: list[NDArray[np.void]] = [np.empty(0, _CHUNK_LOOKUP)]
    record = 0
    for entry in shard.files:
        files.append((_key(entry.file_hash), record))
        per_term = 1 if entry.range_hashes is None else 2
        record += 1 + per_term * len(entry.terms) + (entry.sha256 is not None)
    record = 0
    for block in shard.xorbs:
        xorbs.append((_key(block.xorb_hash), record))
        table = np.empty(block.chunk_count, _CHUNK_LOOKUP)
        table["key"] = np.frombuffer(block.records, "<u8")[:: RECORD_BYTES // 8]
        table["record"] = record
        table["chunk"] = np.arange(block.chunk_count)
        chunks.append(table)
        record += 1 + block.chunk_count
    tables = [np.array(files, _LOOKUP), np.array(xorbs, _LOOKUP), np.concatenate(chunks)]
    return [table[np.argsort(table["key"], kind="stable")] for table in tables]


def _key(value: bytes) -> int:
    return int.from_bytes(value[:8], "little")
