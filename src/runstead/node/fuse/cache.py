"""Contents that were read on this node: one directory, shared by all jobs, no larger than it may be.

    <directory>/files/<2 digits>/<hash>    whole and verified: it got this name when its bytes gave this hash
    <directory>/parts/<pid>/<hash>         being filled; worthless when its daemon is gone

A file that is filled in parts can be read before it is whole. Its chunks are checked against the file's hash when
the last one is there; a file that fails is taken away, and reading it is an error from then on.
"""

import collections
import errno
import os
import resource
import struct
import threading
import time
from collections.abc import Callable, Sequence

from runstead.node.fuse.source import EMPTY, Content, Piece, Source
from runstead.node.fuse.workers import Workers
from runstead.xet.hashes import file_hash, hash_to_text

BLOCK = 1 << 20
_MOST_BLOCKS = 32  # fetched with one request
_STREAMS = 32  # readers of one file that are recognised as sequential
_RECORD = struct.Struct("=QI32s")  # offset and length of a chunk, and its hash
_FETCHERS = 6
_STALL_FACTOR = 3
_MOST_KEPT = 10_000  # files that are ready though nobody reads them
_KEPT_SHARE = 8  # they are no more than such a part of all
_SECONDS_SAME = 600  # how exactly the disk is told when a file was used: for the daemon that comes next


class Cache:
    """The contents of this node. Safe for threads; another daemon may use the same directory."""

    def __init__(self, directory: str, limit_bytes: int, patience: float, most_kept: int = _MOST_KEPT) -> None:
        self._files = os.path.join(directory, "files")
        self._parts = os.path.join(directory, "parts", str(os.getpid()))
        self._limit = limit_bytes
        self._most_kept = min(most_kept, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._patience = patience
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[bytes, int] = collections.OrderedDict()  # whole files: bytes on disk
        self._open: dict[bytes, CachedFile] = {}  # in use, or partly filled
        self._used = 0
        self._kept = self._kept_bytes = 0
        self.fetchers = Workers("fetch", _FETCHERS)
        self.fetched_bytes = 0

    def open(self) -> None:
        """Make the directory ready and see what is in it."""
        os.makedirs(self._files, 0o700, exist_ok=True)
        os.makedirs(os.path.dirname(self._parts), 0o700, exist_ok=True)
        for pid in os.listdir(os.path.dirname(self._parts)):
            if pid == str(os.getpid()) or not os.path.exists(f"/proc/{pid}"):
                _empty(os.path.join(os.path.dirname(self._parts), pid))
        os.makedirs(self._parts, 0o700, exist_ok=True)
        found: list[tuple[float, bytes, int]] = []
        for folder in os.scandir(self._files):
            for entry in os.scandir(folder.path):
                try:
                    name, stat = bytes.fromhex(entry.name), entry.stat(follow_symlinks=False)
                except (ValueError, OSError):
                    continue
                found.append((stat.st_atime, name, stat.st_blocks * 512))
        for _, name, size in sorted(found):
            self._known[name] = size
            self._used += size

    def take(self, content: Content) -> "CachedFile":
        """Return the file of a content, to be given back with `drop`; it may have nothing in it yet."""
        with self._lock:
            file = self._open.get(content.file_hash)
            if file is None:
                file = self._open_whole(content) or self._open_new(content)
                self._open[content.file_hash] = file
            file.users += 1
            if content.file_hash in self._known:
                self._known.move_to_end(content.file_hash)
            return file

    def drop(self, file: "CachedFile") -> None:
        """Give back what `take` returned."""
        with self._lock:
            file.users -= 1
            if file.users == 0 and not file.filled_bytes and not file.whole and not file.is_busy():
                file.bad = True  # nothing came
            if file.users == 0 and (file.whole or file.bad):
                self._forget(file)
                if file.content.file_hash in self._known:
                    self._known.move_to_end(file.content.file_hash)
        self._shrink(0)

    def keep(self, size: int, mine: int) -> bool:
        """Allow who has so many already to take a file for longer than it is read, if there is room for such.

        Whoever comes first leaves as many to others as he has.
        """
        with self._lock:
            if mine >= self._most_kept - self._kept or self._kept_bytes + size > self._limit // _KEPT_SHARE:
                return False
            self._kept += 1
            self._kept_bytes += size
            return True

    def keep_no_more(self, size: int) -> None:
        """Give back what `keep` allowed."""
        with self._lock:
            self._kept -= 1
            self._kept_bytes -= size

    def adopt(self, path: str, content: Content) -> None:
        """Make a file whose bytes are known to be this content one of the cache; the path is no more afterwards."""
        if content.file_hash == EMPTY:
            os.unlink(path)
            return
        size = os.stat(path).st_blocks * 512
        with self._lock:
            if content.file_hash in self._known or content.file_hash in self._open:
                os.unlink(path)
                return
            self._place(path, content.file_hash)
            self._known[content.file_hash] = size
            self._used += size
        self._shrink(0)

    def count(self, written: int) -> None:
        """Know that a file grew, and make room."""
        self._shrink(written)

    def complete(self, file: "CachedFile") -> None:
        """A file is whole and verified: give it its name."""
        with self._lock:
            if file.content.file_hash not in self._known:
                self._place(file.path, file.content.file_hash)
                self._known[file.content.file_hash] = file.filled_bytes
            file.path = self._path(file.content.file_hash)
            file.whole = True
            if file.users == 0:
                self._forget(file)

    @property
    def limit_bytes(self) -> int:
        """How large it may be."""
        return self._limit

    def has_whole(self, content: Content) -> bool:
        """Whether nothing of this content would have to be fetched."""
        with self._lock:
            file = self._open.get(content.file_hash)
            return content.size == 0 or (file.whole if file else content.file_hash in self._known)

    @property
    def used_bytes(self) -> int:
        """Bytes on disk."""
        return self._used

    def _path(self, name: bytes) -> str:
        digits = name.hex()
        return os.path.join(self._files, digits[:2], digits)

    def _place(self, path: str, name: bytes) -> None:
        target = self._path(name)
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        os.rename(path, target)

    def _open_whole(self, content: Content) -> "CachedFile | None":
        path = self._path(content.file_hash)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._used -= self._known.pop(content.file_hash, 0)
            return None
        found = os.fstat(fd)
        if found.st_size != content.size:  # cut short by a loss of power
            os.close(fd)
            os.unlink(path)
            self._used -= self._known.pop(content.file_hash, 0)
            return None
        if time.time() - found.st_atime > _SECONDS_SAME:
            os.utime(fd)
        return CachedFile(self, content, path, fd, self._patience, whole=True)

    def _open_new(self, content: Content) -> "CachedFile":
        path = os.path.join(self._parts, content.file_hash.hex())
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, content.size)
        return CachedFile(self, content, path, fd, self._patience, whole=content.size == 0)

    def _forget(self, file: "CachedFile") -> None:
        """Close a file that nobody uses; called with the lock."""
        self._open.pop(file.content.file_hash, None)
        os.close(file.fd)
        if file.bad or file.content.size == 0:
            try:
                os.unlink(file.path)
            except FileNotFoundError:
                pass
            self._used -= file.filled_bytes

    def _shrink(self, added: int) -> None:
        """Delete what was not used for the longest time until all that is left fits."""
        with self._lock:
            self._used += added
            if self._used <= self._limit:
                return
            for name in list(self._known):
                if self._used <= self._limit:
                    return
                if name not in self._open:
                    self._used -= self._known.pop(name)
                    _unlink(self._path(name))
            for file in list(self._open.values()):
                if self._used <= self._limit:
                    return
                if file.users == 0 and not file.is_busy():
                    file.bad = True
                    self._forget(file)


class _Claim:
    """Blocks that somebody fetches."""

    __slots__ = ("end", "error", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.error: OSError | None = None


class CachedFile:
    """One content: what of it is here, and what is on its way."""

    def __init__(self, cache: Cache, content: Content, path: str, fd: int, patience: float, *, whole: bool) -> None:
        self.content = content
        self.path = path
        self.fd = fd
        self.users = 0
        self.whole = whole
        self.bad = False
        self.filled_bytes = 0
        self._cache = cache
        self._patience = patience
        self._blocks = 0 if whole else -(-content.size // BLOCK)
        self._here = bytearray(self._blocks)
        self._missing = self._blocks
        self._records: dict[int, bytearray] = {}
        self._claims: dict[int, _Claim] = {}
        self._streams: collections.OrderedDict[int, int] = collections.OrderedDict()  # end of a window: its size
        self._changed = threading.Condition()

    def has(self, start: int, end: int) -> bool:
        """Whether these bytes are here."""
        if self.whole:
            return True
        end = min(end, self.content.size)
        return not self.bad and (start >= end or all(self._here[start // BLOCK : -(-end // BLOCK)]))

    def is_busy(self) -> bool:
        """Whether something of it is being fetched."""
        return bool(self._claims)

    def expect(self, start: int, source: Source) -> None:
        """Somebody reads here: fetch ahead, should it be a sequential reader who comes to the end of what is here."""
        if self.whole:
            return
        block = start // BLOCK
        with self._changed:
            for end, size in self._streams.items():
                if end - size // 2 <= block < end:
                    if end < self._blocks and not self._here[end] and end not in self._claims:
                        self._claim(end, min(size * 2, _MOST_BLOCKS), source)
                        del self._streams[end]
                    return

    def fill(self, source: Source, start: int = 0, end: int | None = None) -> None:
        """Wait until these bytes, or all, are here. Raises OSError when they cannot be had."""
        end = self.content.size if end is None else min(end, self.content.size)
        first, behind = start // BLOCK, -(-end // BLOCK)
        with self._changed:
            until = time.monotonic() + _STALL_FACTOR * self._patience
            claim: _Claim | None = None
            while not self.whole:
                if self.bad:
                    raise OSError(errno.EIO, f"what the store sent is not {hash_to_text(self.content.file_hash)}")
                missing = self._here.find(0, first, behind)
                if missing < 0 and self._missing:
                    return
                # When nothing is missing any more, whoever fetched the last block is verifying the file.
                if missing >= 0:
                    if claim is not None and claim.error is not None and claim.start <= missing < claim.end:
                        raise OSError(claim.error.errno, str(claim.error))
                    claim = self._claims.get(missing) or self._claim(missing, self._window(missing, behind), source)
                before = self._missing
                self._changed.wait(max(0.0, until - time.monotonic()))
                if self._missing != before:
                    until = time.monotonic() + _STALL_FACTOR * self._patience
                elif time.monotonic() >= until:
                    raise OSError(errno.EIO, "the store has stalled")

    def _window(self, block: int, behind: int) -> int:
        size = self._streams.pop(block, 0) * 2 or max(1, behind - block)
        return min(size, _MOST_BLOCKS)

    def _claim(self, block: int, size: int, source: Source) -> _Claim:
        """Have the missing blocks from here on fetched; called with the lock."""
        end = block
        while end < min(block + size, self._blocks) and not self._here[end] and end not in self._claims:
            end += 1
        claim = _Claim(block, end)
        for index in range(block, end):
            self._claims[index] = claim
        self._streams[end] = end - block
        while len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)
        self._cache.fetchers.submit(lambda: self._fetch(claim, source))
        return claim

    def _fetch(self, claim: _Claim, source: Source) -> None:
        start, end = claim.start * BLOCK, min(claim.end * BLOCK, self.content.size)
        try:
            source.fetch(self.content, start, end, Filling(self, start, end).take)
        except OSError as error:
            claim.error = error
        except Exception as error:
            claim.error = OSError(errno.EIO, repr(error))
        with self._changed:
            if claim.error is None and not all(self._here[claim.start : claim.end]):
                claim.error = OSError(errno.EIO, "the store sent less than it announced")
        self._settle(claim)

    def reserve(self) -> Callable[[], None] | None:
        """Claim all of a file that nobody fetches yet; return how to let go, be it filled by then or not.

        Who waits for a file that was not filled fetches it himself.
        """
        with self._changed:
            if self.whole or self.bad or self._claims or self.filled_bytes:
                return None
            claim = _Claim(0, self._blocks)
            for index in range(self._blocks):
                self._claims[index] = claim
        return lambda: self._settle(claim)

    @property
    def is_filled(self) -> bool:
        """Whether all of it is here, be it verified or not."""
        return self._missing == 0

    def _settle(self, claim: _Claim) -> None:
        """What was claimed is here, or will not come."""
        if self._missing == 0:
            self._verify()
        with self._changed:
            for index in range(claim.start, claim.end):
                self._claims.pop(index, None)
            self._changed.notify_all()

    def arrived(self, block: int, records: bytearray) -> None:
        """A block is on the disk, with these chunks beginning in it."""
        count = min(BLOCK, self.content.size - block * BLOCK)
        with self._changed:
            if self._here[block]:
                return
            self._here[block] = 1
            self._records[block] = records
            self._missing -= 1
            self.filled_bytes += count
            if self._missing:
                self._changed.notify_all()
        self._cache.fetched_bytes += count
        self._cache.count(count)

    def _verify(self) -> None:
        with self._changed:
            if self.whole or self.bad:
                return
            records = sorted({_RECORD.unpack(r) for block in self._records.values() for r in _split(block)})
        position = 0
        for offset, length, _ in records:
            if offset != position:
                break
            position += length
        name = file_hash(b"".join(r[2] for r in records), [r[1] for r in records])
        good = position == self.content.size and name == self.content.file_hash
        with self._changed:
            if good:
                self._cache.complete(self)
                self._records.clear()
            else:
                self.bad = True


class Filling:
    """Puts the chunks of one fetch into the file and tells of blocks that are full."""

    def __init__(self, file: CachedFile, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._end = end
        self._left = {index: min(BLOCK, end - index * BLOCK) for index in range(start // BLOCK, -(-end // BLOCK))}
        self._records = {index: bytearray() for index in self._left}
        self._seen: set[int] = set()

    def take(self, pieces: Sequence[Piece]) -> None:
        """Put chunks where they belong."""
        run: list[memoryview] = []  # what follows each other is written with one call
        first = behind = 0
        for offset, data, name in pieces:
            if offset in self._seen:
                continue  # fetched again, after an interruption
            self._seen.add(offset)
            length = len(data)
            if self._start <= offset < self._end:
                self._records[offset // BLOCK] += _RECORD.pack(offset, length, name)
            low, high = max(offset, self._start), min(offset + length, self._end)
            if low >= high:
                continue
            if low != behind:
                self._write(run, first, behind)
                run, first = [], low
            run.append(data if high - low == length else data[low - offset : high - offset])
            behind = high
        self._write(run, first, behind)

    def _write(self, run: "list[memoryview]", low: int, high: int) -> None:
        if not run:
            return
        done = os.pwritev(self._file.fd, run, low)
        while done < high - low:  # the disk is nearly full, or not any more
            rest = memoryview(b"".join(run))[done:]
            done += os.pwrite(self._file.fd, rest, low + done)
        while low < high:
            block = low // BLOCK
            stop = min(high, (block + 1) * BLOCK)
            self._left[block] -= stop - low
            if self._left[block] == 0:
                self._file.arrived(block, self._records[block])
            low = stop


def _split(records: bytearray) -> "list[bytearray]":
    return [records[at : at + _RECORD.size] for at in range(0, len(records), _RECORD.size)]


def _empty(folder: str) -> None:
    for name in os.listdir(folder):
        _unlink(os.path.join(folder, name))
    os.rmdir(folder)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
