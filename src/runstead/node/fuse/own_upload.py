"""Uploading with what this package has itself, where the client's library is not installed: slower, same result."""

from collections.abc import Iterator
from urllib.parse import quote

from runstead.node.fuse.web import Refused, Web, persist
from runstead.xet.chunking import chunks
from runstead.xet.hashes import HASH_BYTES, ZERO_HASH, file_hash_of_root, hash_to_text, range_hash
from runstead.xet.merkle import MerkleTree
from runstead.xet.shard import FileEntry, Shard, XorbBlock, block_of, write_shard
from runstead.xet.terms import Term, terms_of
from runstead.xet.xorb_builder import XorbBuilder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ_BYTES = 1 << 20
_XORB_BYTES = 16 << 20  # smaller than allowed: a xorb is held in memory
_PATIENCE = 30.0
_STALL_SECONDS = 60.0


def upload(request: "dict[str, Any]") -> "list[tuple[str, int]]":
    """Put files into the store; return hash and size of each."""
    packing = _Packing(_Store(str(request["cas_url"]), str(request["token"])))
    for path in request["paths"]:
        packing.add(str(path))
    return packing.finish()


class _Store:
    def __init__(self, cas_url: str, token: str) -> None:
        self._cas_url = cas_url
        self._web = Web(_STALL_SECONDS)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}

    def post(self, path: str, body: bytes) -> None:
        url = f"{self._cas_url}/v1/{quote(path)}"
        persist(lambda: self._web.json("POST", url, self._headers, body), _PATIENCE)


class _Packing:
    """Puts the chunks of several files into xorbs, across their borders."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._builder = XorbBuilder()
        self._size = 0
        self._terms: list[tuple[int, int, int, int]] = []  # of the xorb being built: file, first, end, bytes
        self._files: list[tuple[MerkleTree, list[Term], list[bytes]]] = []
        self._blocks: list[XorbBlock] = []
        self._sizes: list[int] = []

    def add(self, path: str) -> None:
        """Read a file."""
        tree, number, size = MerkleTree(), len(self._files), 0
        self._files.append((tree, [], []))
        first, start = self._builder.chunk_count, 0
        for chunk in chunks(_pieces(path)):
            if self._size + len(chunk) > _XORB_BYTES or not self._builder.fits(len(chunk)):
                self._note(number, first, size - start)
                self._send()
                first, start = 0, size
            tree.add(self._builder.add(chunk), [len(chunk)])
            self._size += len(chunk)
            size += len(chunk)
        self._note(number, first, size - start)
        self._sizes.append(size)

    def finish(self) -> "list[tuple[str, int]]":
        """Send what is left and return hash and size of each file."""
        self._send()
        entries: list[FileEntry] = []
        names: list[str] = []
        for tree, terms, ranges in self._files:
            root = tree.root()
            name = ZERO_HASH if root is None else file_hash_of_root(root)
            names.append(hash_to_text(name))
            if root is not None and all(entry.file_hash != name for entry in entries):
                entries.append(FileEntry(name, terms_of(terms), b"".join(ranges)))
        entries.sort(key=lambda entry: hash_to_text(entry.file_hash))
        if entries:
            self._store.post("shards", write_shard(Shard(tuple(entries), tuple(self._blocks))))
        return list(zip(names, self._sizes, strict=True))

    def _note(self, number: int, first: int, size: int) -> None:
        if size:
            self._terms.append((number, first, self._builder.chunk_count, size))

    def _send(self) -> None:
        if not self._builder.chunk_count:
            return
        built = self._builder.finish()
        facts = built.facts
        hashes = facts.chunk_hashes or b""
        try:
            self._store.post(f"xorbs/default/{hash_to_text(facts.xorb_hash)}", built.body)
        except Refused as error:
            raise RuntimeError(f"the store refuses a xorb: {error}") from error
        for number, first, end, size in self._terms:
            _, terms, ranges = self._files[number]
            terms.append(Term(facts.xorb_hash, first, end, size))
            ranges.append(range_hash(hashes[HASH_BYTES * first : HASH_BYTES * end]))
        self._blocks.append(block_of(facts, hashes))
        self._builder, self._size, self._terms = XorbBuilder(), 0, []


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_READ_BYTES):
            yield piece
