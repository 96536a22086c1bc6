"""What every BucketStore and BucketLog promises, on SQLite and on PostgreSQL."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Delete, Select, Update

from runstead.model.accounts import Namespace, NamespaceKind, User
from runstead.model.buckets import Bucket, BucketFile, Change, Folder, NewFile, Op, Writer, place_behind
from runstead.model.errors import BackendFailure, Conflict, NotFound
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, JobSpec, NewJob, Phase, Stage, Transition
from runstead.stores import bucket_log as log_statements
from runstead.stores import bucket_places
from runstead.stores import bucket_writing as writing_statements
from runstead.stores import buckets as bucket_statements
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.portable import text_list
from runstead.stores.sqlite import dialect as sqlite_dialect

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ALICE = Namespace("id of alice", "alice", NamespaceKind.USER)
TEAM = Namespace("id of team", "team", NamespaceKind.ORG)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/runstead.db"
    else:
        url = request.getfixturevalue("new_postgres_database")()
    database = await open_database(url, connections=4)
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> SqlBucketStore:
    return SqlBucketStore(database)


@pytest.fixture
def log(database: Database) -> SqlBucketLog:
    return SqlBucketLog(database)


def new_bucket(name: str = "data", namespace: Namespace = ALICE, **fields: Any) -> Bucket:
    given: dict[str, Any] = {
        "seq": 0,
        "id": new_id(NOW),
        "namespace": namespace,
        "name": name,
        "private": False,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Bucket(**(given | fields))


def new_job() -> NewJob:
    spec = JobSpec(command=("true",), flavor="cpu-basic", docker_image="a/b")
    initiator = Initiator("user", "id of alice", "alice")
    return NewJob(new_id(NOW), ALICE.id, ALICE.name, "user", ALICE.id, ALICE.name, spec, initiator, NOW)


def content(text: str = "", size: int | None = None, **fields: Any) -> NewFile:
    given: dict[str, Any] = {
        "file_hash": text.encode()[:32].ljust(32, b"\0"),
        "size": len(text) if size is None else size,
        "mtime": NOW - timedelta(days=1),
    }
    return NewFile(**(given | fields))


def seen(file: BucketFile) -> NewFile:
    return NewFile(file.file_hash, file.size, file.mtime, file.content_type)


async def everything(store: SqlBucketStore, bucket: Bucket) -> dict[str, NewFile]:
    return {file.path: seen(file) for file in await store.tree(bucket.seq, "", "", 10_000)}


# Buckets


async def test_a_bucket_is_found_as_it_was_added(store: SqlBucketStore) -> None:
    added = await store.add(new_bucket(private=True, resource_group_id="group", region="eu"))
    assert added.seq > 0
    assert await store.find("alice", "data") == added
    assert (added.size, added.total_files, added.version, added.deleted_at) == (0, 0, 0, None)
    assert await store.find("alice", "Data") is None
    assert await store.find("bob", "data") is None


async def test_names_are_unique_in_a_namespace(store: SqlBucketStore) -> None:
    await store.add(new_bucket())
    with pytest.raises(Conflict, match="alice/data"):
        await store.add(new_bucket())
    await store.add(new_bucket(namespace=TEAM))


async def test_of_two_who_add_one_bucket_one_wins(store: SqlBucketStore) -> None:
    answers = await asyncio.gather(*(store.add(new_bucket()) for _ in range(4)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in answers) == ["Bucket", "Conflict", "Conflict", "Conflict"]


async def test_lists_go_by_name_and_search_in_any_case(store: SqlBucketStore) -> None:
    for name in ("beta", "Alpha", "alpha_2", "alphax2", "gamma"):
        await store.add(new_bucket(name, private=name == "gamma"))
    await store.add(new_bucket("elsewhere", TEAM))

    async def names(search: str = "", after: str = "", limit: int = 10, with_private: bool = True) -> list[str]:
        return [b.name for b in await store.page("alice", search, after, limit, with_private=with_private)]

    assert await names() == ["Alpha", "alpha_2", "alphax2", "beta", "gamma"]
    assert await names(with_private=False) == ["Alpha", "alpha_2", "alphax2", "beta"]
    assert await names(limit=2) == ["Alpha", "alpha_2"]
    assert await names(after="alpha_2", limit=2) == ["alphax2", "beta"]
    assert await names("ALPHA") == ["Alpha", "alpha_2", "alphax2"]
    assert await names("a_2") == ["alpha_2"]  # no wildcards
    assert await names("%") == []
    assert await names("\\") == []


async def test_settings_and_move(store: SqlBucketStore) -> None:
    bucket = await store.add(new_bucket())
    other = await store.add(new_bucket("other"))
    assert await store.set_private(bucket.id, True)
    assert await store.move(bucket.id, TEAM, "moved")
    assert await store.find("alice", "data") is None
    moved = await store.find("team", "moved")
    assert moved is not None and moved.namespace == TEAM and moved.private and moved.id == bucket.id
    with pytest.raises(Conflict, match="team/moved"):
        await store.move(other.id, TEAM, "moved")
    assert not await store.set_private("0" * 24, True)
    assert not await store.move("0" * 24, TEAM, "x")


async def test_a_deleted_bucket_is_gone_and_can_come_back(store: SqlBucketStore) -> None:
    bucket = await store.add(new_bucket())
    await store.apply(bucket.seq, {"a": content("a")}, NOW)
    assert await store.delete(bucket.id, NOW + SECOND)
    assert not await store.delete(bucket.id, NOW + SECOND)
    assert await store.find("alice", "data") is None
    assert await store.find_file("alice", "data", "a") is None
    assert await store.page("alice", "", "", 10, with_private=True) == []
    assert not await store.set_private(bucket.id, True)
    with pytest.raises(NotFound):
        await store.apply(bucket.seq, {"b": content("b")}, NOW)
    [gone] = await store.deleted("alice", "data")
    assert gone.id == bucket.id and gone.deleted_at == NOW + SECOND

    successor = await store.add(new_bucket())
    with pytest.raises(Conflict):
        await store.undelete(bucket.id)
    await store.delete(successor.id, NOW + 2 * SECOND)
    assert [b.id for b in await store.deleted("alice", "data")] == [successor.id, bucket.id]
    assert await store.undelete(bucket.id)
    assert not await store.undelete(bucket.id)
    back = await store.find("alice", "data")
    assert back is not None and back.id == bucket.id and back.deleted_at is None and back.total_files == 1


async def test_an_account_with_buckets_stays(store: SqlBucketStore, database: Database) -> None:
    accounts = SqlAccountStore(database)
    await accounts.add_user(User(ALICE.id, "alice", "Alice", False, NOW))
    bucket = await store.add(new_bucket())
    with pytest.raises(Conflict, match="buckets"):
        await accounts.remove_user("alice")
    await store.delete(bucket.id, NOW)
    assert await accounts.remove_user("alice")


# Files


async def test_files_are_read_as_they_were_put(store: SqlBucketStore) -> None:
    bucket = await store.add(new_bucket())
    names = [
        "a",
        "a b",
        "a%2Fb",
        "a/b",
        "ä",
        "a\u0308",
        "日本/語",
        "'\";--",
        "tab\tnew\nline",
        "\U0010ffff",
        "\x01",
        "z ",
    ]
    edits = {name: content(name, content_type="text/plain") for name in names}
    batch = await store.apply(bucket.seq, edits, NOW)
    assert batch.version == 1
    assert [(change.path, change.op, change.file) for change in batch.changes] == [
        (name, Op.ADD, file) for name, file in edits.items()
    ]
    files = await store.files(bucket.seq, [*names, "absent"])
    assert {file.path: seen(file) for file in files} == edits
    assert [file.path for file in files] == sorted(names)
    assert {file.uploaded_at for file in files} == {batch.at}
    assert await everything(store, bucket) == edits
    for name in names:
        found = await store.find_file("alice", "data", name)
        assert found is not None and found[1] is not None and seen(found[1]) == edits[name]
    found = await store.find_file("alice", "data", "absent")
    assert found is not None and found[1] is None
    now = await store.find("alice", "data")
    assert now is not None
    assert (now.total_files, now.size) == (len(names), sum(map(len, names)))
    assert (now.version, now.updated_at) == (1, batch.at)


async def test_a_batch_says_what_changed_and_changes_nothing_twice(store: SqlBucketStore) -> None:
    bucket = await store.add(new_bucket())
    first = await store.apply(bucket.seq, {"a": content("1"), "b": content("22"), "c": content("")}, NOW)
    edits = {"a": content("333"), "b": None, "absent": None, "c": content(""), "d": content("4")}
    second = await store.apply(bucket.seq, edits, NOW)
    assert [(c.path, c.op) for c in second.changes] == [("a", Op.UPDATE), ("b", Op.DELETE), ("d", Op.ADD)]
    assert second.version == 2
    assert second.at > first.at  # although the clock stood still
    assert first.at.microsecond % 1000 == second.at.microsecond % 1000 == 0
    again = await store.apply(bucket.seq, edits, NOW + SECOND)
    assert again.changes == () and (again.version, again.at) == (2, second.at)
    [c] = await store.files(bucket.seq, ["c"])
    assert c.uploaded_at == first.at
    touched = await store.apply(bucket.seq, {"c": content("", mtime=NOW)}, NOW)
    assert [(c.path, c.op) for c in touched.changes] == [("c", Op.UPDATE)]
    now = await store.find("alice", "data")
    assert now is not None and (now.total_files, now.size) == (3, 4)


async def test_what_a_job_wrote_is_noted_with_it(database: Database, store: SqlBucketStore, log: SqlBucketLog) -> None:
    jobs, one, other = SqlJobStore(database), await store.add(new_bucket()), await store.add(new_bucket("other"))
    job, stranger = [await jobs.add(new_job()) for _ in range(2)]
    first, second = Writer(job.id, 1), Writer(job.id, 2)
    await store.apply(one.seq, {"old": content("o"), "stays": content("s")}, NOW)
    await store.apply(one.seq, {"a": content("1"), "b": content("1"), "old": content("new"), "stays": None}, NOW, first)
    await store.apply(one.seq, {"a": content("22"), "b": None, "old": content("new")}, NOW, second)
    await store.apply(other.seq, {f"{i:04}": content(str(i)) for i in range(1500)}, NOW, second)
    await store.apply(one.seq, {"a": content("others"), "old": None}, NOW, Writer(stranger.id, 1))
    found = await log.outputs(job.id, (0, ""), 3)
    assert [(o.bucket, o.path, o.size, o.attempt) for o in found] == [
        ("alice/data", "a", 2, 2),
        ("alice/data", "old", 3, 1),
        ("alice/other", "0000", 1, 2),
    ]
    assert found[0].file_hash == content("22").file_hash
    rest = await log.outputs(job.id, (found[-1].bucket_seq, found[-1].path), 2000)
    assert [o.path for o in rest] == [f"{i:04}" for i in range(1, 1500)]
    assert [o.path for o in await log.outputs(stranger.id, (0, ""), 10)] == ["a"]
    canceled = Transition(job.id, 1, frozenset({Phase.WAITING}), Phase.DONE, Stage.CANCELED, NOW, finished_at=NOW)
    assert await jobs.apply(canceled, "nobody")
    assert await jobs.delete_finished(NOW + SECOND, 10)
    assert await log.outputs(job.id, (0, ""), 10) == []


async def test_batches_of_one_bucket_come_one_after_the_other(store: SqlBucketStore, log: SqlBucketLog) -> None:
    bucket = await store.add(new_bucket())
    shared = {"shared": None}

    async def one(number: int) -> int:
        batch = await store.apply(
            bucket.seq, shared | {f"own/{number}": content("1"), "shared": content(str(number))}, NOW
        )
        return batch.version

    assert sorted(await asyncio.gather(*(one(number) for number in range(20)))) == list(range(1, 21))
    now = await store.find("alice", "data")
    assert now is not None and (now.total_files, now.version) == (21, 20)
    files = await everything(store, bucket)
    assert now.size == sum(file.size for file in files.values())
    batches = await log.batches(bucket.seq, 0, 100)
    assert [batch.version for batch in batches] == list(range(1, 21))
    assert [batch.at for batch in batches] == sorted({batch.at for batch in batches})


TREE = [
    "a",
    "a/b",
    "a/b/c",
    "a/c",
    "a-b",
    "a.txt",
    "b/1",
    "b/2",
    "b/deep/er/still",
    "c0",
    "d/x",
    "d0",
    "é/ü",
    "\U0010ffff",
]


async def walk(store: SqlBucketStore, bucket: Bucket, prefix: str, limit: int, level: bool) -> list[str]:
    found: list[str] = []
    start = ""
    while True:
        method = store.level if level else store.tree
        page = await method(bucket.seq, prefix, start, limit)
        found += [entry.path + "/" * isinstance(entry, Folder) for entry in page]
        if len(page) < limit:
            return found
        start = place_behind(page[-1])


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_listings(store: SqlBucketStore, limit: int) -> None:
    bucket = await store.add(new_bucket())
    neighbour = await store.add(new_bucket("neighbour"))
    await store.apply(bucket.seq, {path: content(path) for path in TREE}, NOW)
    await store.apply(neighbour.seq, {"a/foreign": content(), "zz": content()}, NOW)
    assert await walk(store, bucket, "", limit, level=False) == sorted(TREE)
    assert await walk(store, bucket, "a", limit, level=False) == ["a", "a/b", "a/b/c", "a/c"]
    assert await walk(store, bucket, "b/deep", limit, level=False) == ["b/deep/er/still"]
    assert await walk(store, bucket, "absent", limit, level=False) == []
    assert await walk(store, bucket, "", limit, level=True) == [
        *("a", "a-b", "a.txt", "a/", "b/", "c0", "d/", "d0", "é/", "\U0010ffff")
    ]
    assert await walk(store, bucket, "a", limit, level=True) == ["a", "a/b", "a/b/", "a/c"]
    assert await walk(store, bucket, "b", limit, level=True) == ["b/1", "b/2", "b/deep/"]
    assert await walk(store, bucket, "b/deep", limit, level=True) == ["b/deep/er/"]
    assert await walk(store, bucket, "é", limit, level=True) == ["é/ü"]
    assert await walk(store, bucket, "absent", limit, level=True) == []


components = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=3).filter(
    lambda c: c not in (".", "..")
)
paths = st.lists(st.one_of(st.sampled_from("ab0-."), components), min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(everything=st.sets(paths, max_size=25), prefix=paths, limit=st.integers(1, 4))
async def test_levels_are_what_a_look_at_all_paths_would_find(
    database: Database, everything: set[str], prefix: str, limit: int
) -> None:
    store = SqlBucketStore(database)
    bucket = await store.add(new_bucket(new_id(NOW)))
    await store.apply(bucket.seq, {path: content() for path in everything}, NOW)
    for top in ("", prefix):
        inside = sorted(path for path in everything if not top or path == top or path.startswith(top + "/"))
        assert await walk(store, bucket, top, limit, level=False) == inside
        skip = len(top) + 1 if top else 0
        expected: list[str] = []
        for path in inside:
            slash = path.find("/", skip) if path != top else -1
            entry = path if slash < 0 else path[: slash + 1]
            if entry not in expected:
                expected.append(entry)
        assert await walk(store, bucket, top, limit, level=True) == expected


async def test_every_statement_on_files_goes_by_the_key(tmp_path: Path) -> None:
    """What a million files show and ten do not: no step looks at all files of a bucket."""
    path = tmp_path / "runstead.db"
    await (await open_database(f"sqlite:///{path}")).close()
    statements = {
        name: value
        for module in (bucket_statements, writing_statements, log_statements)
        for name, value in vars(module).items()
        if isinstance(value, Select | Update | Delete)
    }
    assert {"_FILES", "_TREE", "_LEVEL", "_NAMED_WITH_FILE", "_PRESENT", "_REMOVE", "_BATCHES"} <= statements.keys()
    with sqlite3.connect(path) as connection:
        for name, statement in statements.items():
            sql = str(statement.compile(dialect=sqlite_dialect()))
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))]
            for step in plan:
                if "bucket_files" in step and name not in ("_HASHES", "_FILES_FROM", "_EMPTY"):
                    assert "bucket=? AND path" in step, (name, plan)
                if "bucket_history" in step and name in ("_KEPT_AT", "_FIRST_KEPT", "_FORGET_KEPT"):
                    assert "bucket=? AND version" in step.replace("(version", "version"), (name, plan)
                if name != "_WITH_OLD_KEPT":  # looks once into the history of each bucket
                    assert not step.startswith("SCAN bucket"), (name, plan)


async def test_a_batch_that_misses_a_row_writes_nothing(
    database: Database, store: SqlBucketStore, log: SqlBucketLog
) -> None:
    """By path nothing can be missed; PostgreSQL is asked for the places that it named a moment ago."""
    if not await database.read(lambda transaction: transaction.takes_lists):
        pytest.skip("this database has no places")
    bucket = await store.add(new_bucket())
    await store.apply(bucket.seq, {"a": content("1"), "b": content("2")}, NOW)
    change = Change("a", Op.DELETE, None)
    [row] = await database.read(
        lambda t: t.rows(bucket_places.PRESENT, {"bucket": bucket.seq, "paths": text_list(["a"])})
    )
    moved = {"a": (*row[:-1], "(4711,1)")}
    with pytest.raises(BackendFailure, match="0 of 1"):
        await database.write(lambda t: bucket_places.write(t, moved, [change], [], 2, 0))
    assert set(await everything(store, bucket)) == {"a", "b"}
    assert await log.kept(bucket.seq, "", ("", 0), 10) == []


# Log


async def test_the_log_replays_what_happened(store: SqlBucketStore, log: SqlBucketLog) -> None:
    bucket = await store.add(new_bucket())
    assert await log.batches(bucket.seq, 0, 10) == []
    assert await log.reach(bucket.seq) == (0, 0)
    made = [
        await store.apply(bucket.seq, {"a": content("1", content_type="x/y"), "ü\n": content("22")}, NOW),
        await store.apply(bucket.seq, {"a": content("333")}, NOW + SECOND),
        await store.apply(bucket.seq, {"a": None}, NOW + 2 * SECOND),
    ]
    assert await log.batches(bucket.seq, 0, 10) == made
    assert await log.batches(bucket.seq, 1, 1) == made[1:2]
    assert await log.batches(bucket.seq, 3, 10) == []
    assert await log.reach(bucket.seq) == (3, 0)
    await store.delete(bucket.id, NOW)
    assert await log.reach(bucket.seq) is None


async def test_the_version_at_an_instant_misses_nothing_later(store: SqlBucketStore, log: SqlBucketLog) -> None:
    bucket = await store.add(new_bucket())
    assert await log.version_at(bucket.seq, NOW - SECOND) == 0
    for number in range(3):
        await store.apply(bucket.seq, {"a": content(str(number))}, NOW + number * SECOND)

    async def at(seconds: float) -> int | None:
        return await log.version_at(bucket.seq, NOW + timedelta(seconds=seconds))

    assert [await at(s) for s in (-1, 0, 0.5, 1, 1.5, 2, 3)] == [0, 0, 1, 1, 2, 2, 3]
    truncated = NOW.replace(microsecond=NOW.microsecond // 1000 * 1000)
    assert await log.version_at(bucket.seq, truncated) == 0  # the batch of that very millisecond comes again

    assert await log.forget_batches(NOW + 0.5 * SECOND, 10) == 1
    assert await log.reach(bucket.seq) == (3, 1)
    assert [await at(s) for s in (-1, 0, 0.5, 1, 1.5, 2, 3)] == [None, None, None, 1, 2, 2, 3]
    assert await log.forget_batches(NOW + 10 * SECOND, 10) == 2
    assert await log.reach(bucket.seq) == (3, 3)
    # What a client does: it asks from `updatedAt` on, which it knows in milliseconds, and must get through.
    assert [await at(s) for s in (1, 1.9, 2, 3)] == [None, None, 3, 3]
    now = await store.find("alice", "data")
    assert now is not None
    shown = now.updated_at.replace(microsecond=now.updated_at.microsecond // 1000 * 1000)
    assert await log.version_at(bucket.seq, shown) == 3


# History


async def test_what_was_replaced_is_kept(store: SqlBucketStore, log: SqlBucketLog) -> None:
    bucket = await store.add(new_bucket())
    first = await store.apply(bucket.seq, {"a": content("1", content_type="x/y"), "d/b": content("2")}, NOW)
    second = await store.apply(bucket.seq, {"a": content("3"), "d/b": None}, NOW + SECOND)
    third = await store.apply(bucket.seq, {"a": None, "d/b": content("4")}, NOW + 2 * SECOND)
    kept = await log.kept(bucket.seq, "", ("", 0), 10)
    assert [(k.file.path, k.version, k.file.uploaded_at, k.replaced_at, seen(k.file)) for k in kept] == [
        ("a", 2, first.at, second.at, content("1", content_type="x/y")),
        ("a", 3, second.at, third.at, content("3")),
        ("d/b", 2, first.at, second.at, content("2")),
    ]
    assert await log.kept(bucket.seq, "", ("a", 2), 1) == kept[1:2]
    assert await log.kept(bucket.seq, "d", ("", 0), 10) == kept[2:]
    assert await log.kept(bucket.seq, "a", ("", 0), 10) == kept[:2]
    assert await log.forget_kept(NOW + 1.5 * SECOND, 1) == 1
    assert await log.forget_kept(NOW + 1.5 * SECOND, 10) == 1
    assert await log.kept(bucket.seq, "", ("", 0), 10) == kept[1:2]
    assert await log.forget_kept(NOW + 1.5 * SECOND, 10) == 0


async def test_the_history_of_every_bucket_is_forgotten_some_day(store: SqlBucketStore, log: SqlBucketLog) -> None:
    buckets = [await store.add(new_bucket(f"b{number}")) for number in range(3)]
    for number, bucket in enumerate(buckets):
        await store.apply(bucket.seq, {f"p{n}": content(str(n)) for n in range(4)}, NOW)
        for version in range(2):
            at = NOW + (10 * number + version + 1) * SECOND
            await store.apply(bucket.seq, {f"p{n}": content(f"{n} {version}") for n in range(4)}, at)

    async def forget(until: datetime) -> int:
        forgotten = 0
        while count := await log.forget_kept(until, 3):
            forgotten += count
        return forgotten

    assert await forget(NOW + 0.5 * SECOND) == 0
    assert await forget(NOW + 11.5 * SECOND) == 8 + 4
    left = [len(await log.kept(bucket.seq, "", ("", 0), 100)) for bucket in buckets]
    assert left == [0, 4, 8]
    assert {kept.version for kept in await log.kept(buckets[1].seq, "", ("", 0), 100)} == {3}
    assert await forget(NOW + 100 * SECOND) == 4 + 8


async def differences(log: SqlBucketLog, bucket: Bucket, prefix: str, at: datetime, limit: int) -> dict[str, Any]:
    start: str | None = ""
    edits: dict[str, NewFile | None] = {}
    while start is not None:
        some, start = await log.differences(bucket.seq, prefix, at, start, limit)
        assert not edits.keys() & some.keys()
        edits |= some
    return edits


edits = st.dictionaries(
    st.sampled_from(["a", "a/b", "a/c", "b", "c/d", "c/e/f"]),
    st.one_of(st.none(), st.sampled_from(["1", "22", "333"])),
    max_size=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=st.lists(edits, min_size=1, max_size=6), limit=st.integers(1, 4), prefix=st.sampled_from(["", "a", "c"]))
async def test_every_past_state_can_be_had_again(
    database: Database, story: list[dict[str, str | None]], limit: int, prefix: str
) -> None:
    store, log = SqlBucketStore(database), SqlBucketLog(database)
    bucket = await store.add(new_bucket(new_id(NOW)))
    states: list[tuple[datetime, dict[str, NewFile]]] = [(NOW - SECOND, {})]
    for number, step in enumerate(story):
        wanted = {path: None if text is None else content(text) for path, text in step.items()}
        batch = await store.apply(bucket.seq, wanted, NOW + number * SECOND)
        states.append((batch.at, await everything(store, bucket)))
    present = states[-1][1]
    for at, state in states:
        back = await differences(log, bucket, prefix, at, limit)
        result = {path: file for path, file in (present | back).items() if file is not None}
        inside = {p for p in {*state, *present} if not prefix or p == prefix or p.startswith(prefix + "/")}
        assert {p: f for p, f in result.items() if p in inside} == {p: f for p, f in state.items() if p in inside}
        assert back.keys() <= inside
        for path, file in back.items():
            assert present.get(path) != file


# What refers to content, and the end of it


async def test_all_hashes_are_told(store: SqlBucketStore, log: SqlBucketLog) -> None:
    buckets = [await store.add(new_bucket(f"b{number}")) for number in range(3)]
    for number, bucket in enumerate(buckets):
        await store.apply(bucket.seq, {f"p{n}": content(f"{number} {n}") for n in range(5)}, NOW)
        await store.apply(bucket.seq, {"p1": content("new"), "p2": None}, NOW)
    await store.delete(buckets[1].id, NOW)  # kept for now

    files: list[bytes] = []
    place: Any = (0, "")
    while place is not None:
        some, place = await log.hashes(place, 4)
        files += some
    kept: list[bytes] = []
    place = (0, 0, "")
    while place is not None:
        some, place = await log.kept_hashes(place, 2)
        kept += some
    assert sorted(files) == sorted(
        content(text).file_hash for n in range(3) for text in (f"{n} 0", "new", f"{n} 3", f"{n} 4")
    )
    assert sorted(kept) == sorted(content(f"{n} {p}").file_hash for n in range(3) for p in (1, 2))


async def test_a_deleted_bucket_is_emptied_in_pieces(store: SqlBucketStore, log: SqlBucketLog) -> None:
    bucket, other = await store.add(new_bucket()), await store.add(new_bucket("other"))
    for each in (bucket, other):
        await store.apply(each.seq, {f"p{n}": content(str(n)) for n in range(5)}, NOW)
        await store.apply(each.seq, {"p1": content("new"), "p2": None}, NOW)
    await store.delete(bucket.id, NOW)
    assert await log.empty_deleted(NOW, 3) is None
    states = []
    while True:
        found = await log.empty_deleted(NOW + SECOND, 3)
        assert found is not None and found[0].id == bucket.id
        states.append(found[1])
        if found[1]:
            break
    assert 3 <= len(states) <= 4
    await log.remove_deleted(other.id)  # not deleted: stays
    await log.remove_deleted(bucket.id)
    assert await log.empty_deleted(NOW + SECOND, 3) is None
    assert await store.deleted("alice", "data") == []
    assert not await store.undelete(bucket.id)
    assert len(await everything(store, other)) == 4
    assert len(await log.kept(other.seq, "", ("", 0), 10)) == 2
