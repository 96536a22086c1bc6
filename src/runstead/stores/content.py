"""Stored content in SQL: see `ContentStore`."""

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import any_, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from runstead.stores.content_tables import DOOMED, QUARANTINED, STORED, claims, dedup_chunks, files, store_ids, xorbs
from runstead.stores.database import Database, Row, Transaction
from runstead.stores.interface import ContentStore, EligibleChunk, StoredFile, StoredXorb, XorbEntry
from runstead.stores.portable import array, value_list
from runstead.stores.recent_files import RecentFiles
from runstead.stores.rows import instant_to
from runstead.xet.terms import Terms
from runstead.xet.xorb_layout import XorbFacts, unpack_layout

_CONFIRM_AGAIN = timedelta(days=1)
_AT_ONCE = 64
"""Keys asked for in one statement; what is left over is filled up with the last one."""
_SLOTS = tuple(f"key_{number}" for number in range(_AT_ONCE))


class SqlContentStore(ContentStore):
    """Stored content in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent = RecentFiles()

    async def store_id(self, at: datetime) -> str:
        """Return the present name of this store."""
        row = await self._database.read(lambda t: t.row(_STORE_ID))
        return row[1] if row else await self._database.write(lambda t: _first_id(t, at))

    async def renew_store_id(self, current: str, at: datetime, rest_seconds: float) -> str:
        """Give the store a new name, unless it has one already or had this one for too short a time."""

        def work(transaction: Transaction) -> str:
            row = transaction.row(_STORE_ID)
            if row is None:
                return _first_id(transaction, at)
            number, name, since = row
            if name != current or since > instant_to(at) - int(rest_seconds * 1_000_000):
                return name
            transaction.run(_ADD_STORE_ID, {"number": number + 1, "id": _new_id(), "since": instant_to(at)})
            return transaction.rows(_STORE_ID)[0][1]

        return await self._database.write(work)

    async def add_xorb(self, xorb: StoredXorb, at: datetime) -> StoredXorb:
        """Store and confirm a xorb, unless there is one already."""
        facts = xorb.facts
        row = {
            "hash": facts.xorb_hash,
            "state": STORED,
            "confirmed_at": instant_to(at),
            "stored_bytes": facts.layout.stored_bytes,
            "key": xorb.key,
            "layout": facts.layout.pack(),
            "checksums": xorb.checksums,
            "chunk_hashes": facts.chunk_hashes,
        }

        def work(transaction: Transaction) -> StoredXorb:
            if transaction.run(_ADD_XORB, row):
                return xorb
            transaction.run(_CONFIRM, _confirmation(facts.xorb_hash, at))
            return _xorb_from(transaction.rows(_XORB, {"hash": facts.xorb_hash})[0])

        return await self._database.write(work)

    async def xorbs(self, hashes: Collection[bytes]) -> dict[bytes, StoredXorb]:
        """Return those of these xorbs that are stored."""

        def work(transaction: Transaction) -> list[Row]:
            return [row for some in _batches(hashes) for row in transaction.rows(_XORBS, some)]

        return {row[0]: _xorb_from(row) for row in await self._database.read(work)}

    async def confirm_xorbs(self, hashes: Collection[bytes], at: datetime) -> set[bytes]:
        """Confirm those of these xorbs that are stored."""
        fresh, found = _fresh(at), dict[bytes, int]()
        for row in await self._database.read(lambda t: _all(t, _CONFIRMED, hashes)):
            found[row[0]] = row[1]
        stale = sorted(each for each, confirmed_at in found.items() if confirmed_at < fresh)
        if not stale:
            return set(found)

        def work(transaction: Transaction) -> set[bytes]:
            return {each for each in stale if transaction.run(_CONFIRM, _confirmation(each, at))}

        return {each for each, confirmed_at in found.items() if confirmed_at >= fresh} | await self._database.write(
            work
        )

    async def register(
        self, scope: str, files: Sequence[StoredFile], chunks: Sequence[EligibleChunk], at: datetime
    ) -> None:
        """Store files with a claim of the scope, and where chunks are."""
        held_at = instant_to(at)
        file_rows = [
            {
                "hash": file.file_hash,
                "size": file.size,
                "confirmed_at": held_at,
                "sha256": file.sha256,
                "terms": file.terms.records,
            }
            for file in sorted(files, key=lambda file: file.file_hash)
        ]
        claim_rows = [{"scope": scope, "file_hash": row["hash"]} for row in file_rows]
        chunk_rows = [
            {"chunk_hash": chunk.chunk_hash, "xorb_hash": chunk.xorb_hash, "file_hash": chunk.file_hash}
            for chunk in sorted(chunks, key=lambda chunk: chunk.chunk_hash)
        ]

        def work(transaction: Transaction) -> None:
            transaction.run_many(_ADD_FILE, file_rows)
            transaction.run_many(_ADD_CLAIM, claim_rows)
            transaction.run_many(_ADD_CHUNK, chunk_rows)

        await self._database.write(work)
        self._recent.add(scope, ((file.file_hash, file.size) for file in files), at)

    async def file(self, file_hash: bytes, scope: str | None = None) -> StoredFile | None:
        """Return a file."""
        statement = _FILE if scope is None else _FILE_OF
        row = await self._database.read(lambda t: t.row(statement, {"hash": file_hash, "scope": scope}))
        return None if row is None else _file_from(row)

    async def files(self, hashes: Collection[bytes], scope: str | None = None) -> dict[bytes, StoredFile]:
        """Return those of these files that are there."""
        statement, named = (_FILES, {}) if scope is None else (_FILES_OF, {"scope": scope})

        def work(transaction: Transaction) -> list[Row]:
            return [row for some in _batches(hashes) for row in transaction.rows(statement, {**some, **named})]

        return {row[0]: _file_from(row) for row in await self._database.read(work)}

    async def hold_files(self, hashes: Collection[bytes], at: datetime, scope: str | None = None) -> dict[bytes, int]:
        """Hold files and return their sizes."""
        fresh = _fresh(at)
        known = {} if scope is None else self._recent.sizes(scope, hashes, at)
        asked = [each for each in hashes if each not in known]
        if not asked:
            return known
        found = {row[0]: row for row in await self._database.read(lambda t: _held_rows(t, asked, scope))}
        stale = sorted(each for each, row in found.items() if row[2] < fresh)
        if stale:
            kept = await self._database.write(lambda t: {each for each in stale if t.run(_HOLD, _held(each, at))})
            found = {each: row for each, row in found.items() if row[2] >= fresh or each in kept}
        return known | {each: row[1] for each, row in found.items()}

    async def claim_files(self, scope: str, hashes: Collection[bytes], at: datetime) -> dict[bytes, int]:
        """Hold files with a claim of the scope and return their sizes."""

        def work(transaction: Transaction) -> dict[bytes, int]:
            found: dict[bytes, int] = {}
            for each in sorted(set(hashes)):
                if transaction.run(_HOLD, _held(each, at)):
                    transaction.run(_ADD_CLAIM, {"scope": scope, "file_hash": each})
            for row in _all(transaction, _HELD, hashes):
                found[row[0]] = row[1]
            return found

        return await self._database.write(work)

    async def drop_claims(self, scope: str) -> None:
        """Remove all claims of a scope."""
        await self._database.write(lambda t: t.run(_DROP_CLAIMS, {"scope": scope}))
        self._recent.clear()

    async def chunk(self, chunk_hash: bytes) -> EligibleChunk | None:
        """Return where a chunk is."""
        row = await self._database.read(lambda t: t.row(_CHUNK, {"chunk_hash": chunk_hash}))
        return None if row is None else EligibleChunk(*row)

    async def files_after(self, after: bytes, limit: int) -> list[StoredFile]:
        """Return files in the order of their hashes."""
        rows = await self._database.read(lambda t: t.rows(_FILES_AFTER, {"after": after, "limit": limit}))
        return [_file_from(row) for row in rows]

    async def files_held_before(self, hashes: Collection[bytes], before: datetime) -> list[bytes]:
        """Return files that were last held before."""
        rows = await self._database.read(lambda t: _all(t, _HELD, hashes))
        return [row[0] for row in rows if row[2] < instant_to(before)]

    async def drop_files(self, hashes: Collection[bytes], before: datetime) -> list[bytes]:
        """Remove files that were last held before."""

        def work(transaction: Transaction) -> list[bytes]:
            dropped: list[bytes] = []
            for each in sorted(set(hashes)):
                if transaction.run(_DROP_FILE, {"hash": each, "before": instant_to(before)}):
                    transaction.run(_DROP_CLAIMS_ON, {"file_hash": each})
                    dropped.append(each)
            return dropped

        dropped = await self._database.write(work) if hashes else []
        if dropped:
            self._recent.clear()
        return dropped

    async def xorbs_after(self, after: bytes, limit: int) -> list[XorbEntry]:
        """Return xorbs in the order of their hashes."""
        rows = await self._database.read(lambda t: t.rows(_XORBS_AFTER, {"after": after, "limit": limit}))
        return [_entry_from(row) for row in rows]

    async def xorbs_confirmed_before(self, hashes: Collection[bytes], before: datetime) -> list[XorbEntry]:
        """Return xorbs that were last confirmed before."""
        rows = await self._database.read(lambda t: _all(t, _ENTRIES, hashes))
        return [_entry_from(row[:-1]) for row in rows if row[-1] < instant_to(before) or row[-2] == DOOMED]

    async def doom_xorbs(self, hashes: Collection[bytes], before: datetime) -> list[XorbEntry]:
        """Doom xorbs that were last confirmed before."""

        def work(transaction: Transaction) -> list[XorbEntry]:
            for each in sorted(set(hashes)):
                transaction.run(_DOOM, {"hash": each, "before": instant_to(before)})
            return [_entry_from(row) for row in _all(transaction, _DOOMED, hashes)]

        return await self._database.write(work) if hashes else []

    async def drop_doomed(self, keys: Collection[str]) -> None:
        """Remove doomed xorbs and the chunks that are found in them."""

        def work(transaction: Transaction) -> None:
            for key in sorted(keys):
                for (xorb_hash,) in transaction.rows(_DROP_DOOMED, {"key": key}):
                    transaction.run(_DROP_CHUNKS, {"xorb_hash": xorb_hash})

        await self._database.write(work)

    async def quarantine(self, xorb_hash: bytes, key: str) -> None:
        """Take a xorb out of use."""
        await self._database.write(lambda t: t.run(_QUARANTINE, {"hash": xorb_hash, "key": key}))

    async def known_keys(self, keys: Collection[str]) -> set[str]:
        """Return which keys belong to a xorb."""
        return {row[0] for row in await self._database.read(lambda t: _all(t, _KEYS, keys))}


def _first_id(transaction: Transaction, at: datetime) -> str:
    transaction.run(_ADD_STORE_ID, {"number": 1, "id": _new_id(), "since": instant_to(at)})
    return transaction.rows(_STORE_ID)[0][1]


def _new_id() -> str:
    return secrets.token_hex(6)


def _fresh(at: datetime) -> int:
    return instant_to(at - _CONFIRM_AGAIN)


def _confirmation(xorb_hash: bytes, at: datetime) -> dict[str, Any]:
    return {"hash": xorb_hash, "at": instant_to(at)}


_held = _confirmation


def _batches(keys: Collection[Any]) -> Iterator[Mapping[str, Any]]:
    wanted = list(dict.fromkeys(keys))
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        some += some[-1:] * (_AT_ONCE - len(some))
        yield dict(zip(_SLOTS, some, strict=True))


def _all(transaction: Transaction, statement: Any, keys: Collection[Any]) -> list[Row]:
    return [row for some in _batches(keys) for row in transaction.rows(statement, some)]


def _held_rows(transaction: Transaction, hashes: Collection[bytes], scope: str | None) -> list[Row]:
    named = {} if scope is None else {"scope": scope}
    if transaction.takes_lists:
        statement = _HELD_ANY if scope is None else _HELD_ANY_OF
        return transaction.rows(statement, {**named, "hashes": value_list(files.c.hash, list(hashes))})
    statement = _HELD if scope is None else _HELD_OF
    return [row for some in _batches(hashes) for row in transaction.rows(statement, {**some, **named})]


def _xorb_from(row: Row) -> StoredXorb:
    xorb_hash, key, layout, checksums, chunk_hashes = row
    return StoredXorb(XorbFacts(xorb_hash, unpack_layout(layout), chunk_hashes), key, checksums)


def _file_from(row: Row) -> StoredFile:
    file_hash, size, sha256, terms = row
    return StoredFile(file_hash, size, Terms(terms), sha256)


def _entry_from(row: Row) -> XorbEntry:
    xorb_hash, key, stored_bytes, state = row
    return XorbEntry(xorb_hash, key, stored_bytes, state == STORED)


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_IN_SLOTS: list[Any] = [bindparam(slot) for slot in _SLOTS]
_XORB_COLUMNS = (xorbs.c.hash, xorbs.c.key, xorbs.c.layout, xorbs.c.checksums, xorbs.c.chunk_hashes)
_ENTRY_COLUMNS = (xorbs.c.hash, xorbs.c.key, xorbs.c.stored_bytes, xorbs.c.state)
_FILE_COLUMNS = (files.c.hash, files.c.size, files.c.sha256, files.c.terms)

_STORE_ID = select(store_ids.c.number, store_ids.c.id, store_ids.c.since).order_by(store_ids.c.number.desc()).limit(1)
_ADD_STORE_ID = (
    insert(store_ids)
    .values(_binds("number", "id", "since"))
    .on_conflict_do_nothing(index_elements=[store_ids.c.number])
)

_new_xorb = insert(xorbs).values(_binds(*xorbs.c.keys()))
_ADD_XORB = _new_xorb.on_conflict_do_update(
    index_elements=[xorbs.c.hash],
    set_={name: _new_xorb.excluded[name] for name in xorbs.c.keys() if name != "hash"},  # noqa: SIM118
    where=xorbs.c.state != STORED,
)
_XORB = select(*_XORB_COLUMNS).where(xorbs.c.hash == bindparam("hash"), xorbs.c.state == STORED)
_XORBS = select(*_XORB_COLUMNS).where(xorbs.c.hash.in_(_IN_SLOTS), xorbs.c.state == STORED)
_CONFIRMED = select(xorbs.c.hash, xorbs.c.confirmed_at).where(xorbs.c.hash.in_(_IN_SLOTS), xorbs.c.state == STORED)
_CONFIRM = (
    update(xorbs).where(xorbs.c.hash == bindparam("hash"), xorbs.c.state == STORED).values(confirmed_at=bindparam("at"))
)
_XORBS_AFTER = (
    select(*_ENTRY_COLUMNS).where(xorbs.c.hash > bindparam("after")).order_by(xorbs.c.hash).limit(bindparam("limit"))
)
_DOOM = (
    update(xorbs)
    .where(xorbs.c.hash == bindparam("hash"), xorbs.c.confirmed_at < bindparam("before"))
    .values(state=DOOMED)
)
_ENTRIES = select(*_ENTRY_COLUMNS, xorbs.c.confirmed_at).where(xorbs.c.hash.in_(_IN_SLOTS))
_DOOMED = select(*_ENTRY_COLUMNS).where(xorbs.c.hash.in_(_IN_SLOTS), xorbs.c.state == DOOMED)
_DROP_DOOMED = delete(xorbs).where(xorbs.c.key == bindparam("key"), xorbs.c.state == DOOMED).returning(xorbs.c.hash)
_QUARANTINE = (
    update(xorbs)
    .where(xorbs.c.hash == bindparam("hash"), xorbs.c.key == bindparam("key"), xorbs.c.state == STORED)
    .values(state=QUARANTINED)
)
_KEYS = select(xorbs.c.key).where(xorbs.c.key.in_(_IN_SLOTS))

_new_file = insert(files).values(_binds(*files.c.keys()))
_ADD_FILE = _new_file.on_conflict_do_update(
    index_elements=[files.c.hash],
    set_={
        "confirmed_at": _new_file.excluded.confirmed_at,
        "sha256": func.coalesce(files.c.sha256, _new_file.excluded.sha256),
        "terms": _new_file.excluded.terms,
    },
)
_FILE = select(*_FILE_COLUMNS).where(files.c.hash == bindparam("hash"))
_FILE_OF = (
    select(*_FILE_COLUMNS)
    .join(claims, claims.c.file_hash == files.c.hash)
    .where(files.c.hash == bindparam("hash"), claims.c.scope == bindparam("scope"))
)
_FILES_AFTER = (
    select(*_FILE_COLUMNS).where(files.c.hash > bindparam("after")).order_by(files.c.hash).limit(bindparam("limit"))
)
_held_columns = select(files.c.hash, files.c.size, files.c.confirmed_at)
_HELD = _held_columns.where(files.c.hash.in_(_IN_SLOTS))
_HELD_ANY = _held_columns.where(files.c.hash == any_(array(files.c.hash, "hashes")))
# The claim is looked up for each file by itself. As a join, PostgreSQL goes through all claims of the scope for each
# file as long as it has no statistics of these tables, and a thousand files take seconds.
_claimed = select(claims.c.scope).where(claims.c.scope == bindparam("scope"), claims.c.file_hash == files.c.hash)
_has_claim = _claimed.correlate(files).scalar_subquery().is_not(None)
_HELD_OF, _HELD_ANY_OF = _HELD.where(_has_claim), _HELD_ANY.where(_has_claim)
_FILES = select(*_FILE_COLUMNS).where(files.c.hash.in_(_IN_SLOTS))
_FILES_OF = _FILES.where(_has_claim)
_HOLD = update(files).where(files.c.hash == bindparam("hash")).values(confirmed_at=bindparam("at"))
_DROP_FILE = delete(files).where(files.c.hash == bindparam("hash"), files.c.confirmed_at < bindparam("before"))

_ADD_CLAIM = insert(claims).values(_binds("scope", "file_hash")).on_conflict_do_nothing()
_DROP_CLAIMS = delete(claims).where(claims.c.scope == bindparam("scope"))
_DROP_CLAIMS_ON = delete(claims).where(claims.c.file_hash == bindparam("file_hash"))

_new_chunk = insert(dedup_chunks).values(_binds("chunk_hash", "xorb_hash", "file_hash"))
_ADD_CHUNK = _new_chunk.on_conflict_do_update(
    index_elements=[dedup_chunks.c.chunk_hash],
    set_={"xorb_hash": _new_chunk.excluded.xorb_hash, "file_hash": _new_chunk.excluded.file_hash},
)
_CHUNK = select(dedup_chunks.c.chunk_hash, dedup_chunks.c.xorb_hash, dedup_chunks.c.file_hash).where(
    dedup_chunks.c.chunk_hash == bindparam("chunk_hash")
)
_DROP_CHUNKS = delete(dedup_chunks).where(dedup_chunks.c.xorb_hash == bindparam("xorb_hash"))
