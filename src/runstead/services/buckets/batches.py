"""Batches: adds, copies and deletes that become visible together.

Every operation is judged by itself; those that are refused are reported and the others happen, in one transaction.
Of several on one path the last counts. Repeating a batch changes nothing, and to delete what is not there is no
failure: clients repeat a batch whose answer got lost.

Who names a hash must have a right to the content. For an add, it was uploaded with a write token of this bucket.
For a copy, the source must be visible to the caller and have a claim on it, which is to say that the caller could
read it there.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from runstead.events.interface import BUCKETS, EventBus
from runstead.kit.clock import Clock
from runstead.model.accounts import Permission
from runstead.model.buckets import Bucket, NewFile, Writer, is_bucket_name, is_content_type, path_problem
from runstead.model.errors import NotFound, RepoNotFound, TooLarge
from runstead.model.volumes import MountCaller
from runstead.services.buckets.access import Asker, admit
from runstead.services.buckets.buckets import Buckets
from runstead.services.content.content import Content
from runstead.stores.interface import BucketStore
from runstead.xet.hashes import hash_to_text

MOST_OPERATIONS = 10_000


@dataclass(frozen=True, slots=True)
class AddFile:
    """Make the path a file whose content was uploaded."""

    path: str
    file_hash: bytes
    mtime: datetime | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class CopyFile:
    """Make the path a file whose content is in another place."""

    path: str
    file_hash: bytes
    source_type: str
    source_id: str
    mtime: datetime | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """Make the path absent."""

    path: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An operation that is not carried out, and why."""

    path: str
    reason: str


Operation = AddFile | CopyFile | DeleteFile | Refused


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch."""

    processed: int
    refused: tuple[Refused, ...]


class Batches:
    """Carries out batches."""

    def __init__(self, store: BucketStore, buckets: Buckets, content: Content, events: EventBus, clock: Clock) -> None:
        self._store = store
        self._buckets = buckets
        self._content = content
        self._events = events
        self._clock = clock

    async def apply(self, caller: Asker, namespace: str, name: str, operations: Sequence[Operation]) -> BatchResult:
        """Carry out what may be, all at once. Raises as `Buckets.get` does, and TooLarge."""
        bucket = await self._buckets.get(caller, namespace, name, Permission.WRITE)
        if len(operations) > MOST_OPERATIONS:
            raise TooLarge(f"a batch has at most {MOST_OPERATIONS} operations, this one {len(operations)}")
        judged = [_judged(operation) for operation in operations]
        sizes = await self._sizes(caller, bucket, judged)
        now = self._clock.now()
        edits: dict[str, NewFile | None] = {}
        refused: list[Refused] = []
        for operation in judged:
            match operation:
                case Refused():
                    refused.append(operation)
                case DeleteFile():
                    edits[operation.path] = None
                case AddFile() | CopyFile():
                    size = sizes[_source(bucket, operation)].get(operation.file_hash)
                    if size is None:
                        refused.append(Refused(operation.path, _missing(bucket, operation)))
                    else:
                        edits[operation.path] = NewFile(
                            operation.file_hash, size, operation.mtime or now, operation.content_type
                        )
        if edits:
            await self._write(bucket, edits, now, _writer(caller))
        return BatchResult(len(operations), tuple(refused))

    async def _write(
        self, bucket: Bucket, edits: Mapping[str, NewFile | None], now: datetime, writer: Writer | None
    ) -> None:
        try:
            batch = await self._store.apply(bucket.seq, edits, now, writer)
        except NotFound as error:
            raise RepoNotFound(f"{error.message}: {bucket.path}") from error
        if batch.changes:
            self._events.publish(BUCKETS, bucket.id)

    async def _sizes(
        self, caller: Asker, bucket: Bucket, operations: Sequence[Operation]
    ) -> dict[tuple[str, str], Mapping[bytes, int]]:
        """Return the sizes of the files that the batch may name, by where they come from."""
        wanted: dict[tuple[str, str], set[bytes]] = {}
        for operation in operations:
            if isinstance(operation, AddFile | CopyFile):
                wanted.setdefault(_source(bucket, operation), set()).add(operation.file_hash)
        return {source: await self._from(caller, bucket, source, hashes) for source, hashes in wanted.items()}

    async def _from(
        self, caller: Asker, bucket: Bucket, source: tuple[str, str], hashes: Collection[bytes]
    ) -> Mapping[bytes, int]:
        if source == _own(bucket):
            return await self._content.take(bucket.scope, hashes)
        kind, path = source
        namespace, _, name = path.partition("/")
        if kind != "bucket" or not (is_bucket_name(namespace) and is_bucket_name(name)):
            return {}
        try:
            origin = admit(await self._store.find(namespace, name), caller, Permission.READ, path)
        except NotFound:
            return {}
        readable = await self._content.take(origin.scope, hashes)
        return await self._content.share(bucket.scope, readable.keys())


def _writer(caller: Asker) -> Writer | None:
    return Writer(caller.job_id, caller.attempt) if isinstance(caller, MountCaller) else None


def _own(bucket: Bucket) -> tuple[str, str]:
    return "bucket", bucket.path


def _source(bucket: Bucket, operation: AddFile | CopyFile) -> tuple[str, str]:
    return _own(bucket) if isinstance(operation, AddFile) else (operation.source_type, operation.source_id)


def _judged(operation: Operation) -> Operation:
    if isinstance(operation, Refused):
        return operation
    problem = path_problem(operation.path)
    if problem is None and not isinstance(operation, DeleteFile):
        content_type = operation.content_type
        if content_type is not None and not is_content_type(content_type):
            problem = f"not a content type: {content_type[:80]!r}"
    return operation if problem is None else Refused(operation.path, problem)


def _missing(bucket: Bucket, operation: AddFile | CopyFile) -> str:
    text = hash_to_text(operation.file_hash)
    if isinstance(operation, AddFile):
        return f"no content with this hash was uploaded for {bucket.path}: {text}"
    if operation.source_type != "bucket":
        return f"this version of Runstead has no repositories to copy from: {operation.source_type[:20]!r}"
    return f"there is no file with this hash to be copied from {operation.source_id[:200]!r}: {text}"
