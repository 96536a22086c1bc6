"""The routes of buckets by plain HTTP: rights, listings, batches, events, reads, and what must be refused."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest

from calls import Answer, Api
from clients import Client, Server, eventually, make_client

EMPTY = "0" * 64
MADE = '{"one": b"1" * 1000, "two": bytes(range(256)) * 2000, "three": b"three"}'
CONTENTS: dict[str, bytes] = eval(MADE)
NUMBERS = count()


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


@pytest.fixture
def nobody(server: Server) -> Api:
    return Api(server, token="")


@pytest.fixture(scope="module")
def stranger(server: Server) -> Api:
    """Somebody else, with an account."""
    server.run("user", "add", "stranger")
    return Api(server, new_token(server, "stranger"))


def new_token(server: Server, user: str, *words: str) -> str:
    found = re.search(r"hf_\w+", server.run("token", "add", user, *words).stdout)
    assert found is not None
    return found.group()


@pytest.fixture(scope="module")
def library(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make_client("2.4.0", server, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def source(library: Client) -> tuple[str, dict[str, str]]:
    """A private bucket of the owner with some contents, and their hashes by name."""
    bucket = f"{library.server.owner}/source"
    files = library.python(
        f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_bucket({bucket!r}, private=True)
api.batch_bucket_files({bucket!r}, add=[(data, name) for name, data in {MADE}.items()])
out([(f.path, f.xet_hash) for f in api.list_bucket_tree({bucket!r})])
"""
    )
    return bucket, dict(files)


@pytest.fixture
def bucket(api: Api) -> str:
    return new_bucket(api)


def new_bucket(api: Api, **body: Any) -> str:
    name = f"{api.server.owner}/b{next(NUMBERS)}"
    answer = api.post(f"/api/buckets/{name}", body)
    assert answer.status == 200, answer
    assert answer.json["url"] == f"{api.server.url}/buckets/{name}"
    return name


def batch(api: Api, bucket: str, *operations: dict[str, Any] | str) -> Answer:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in operations]
    body = "\n".join(lines).encode("utf-8", "surrogatepass")
    return api.post(f"/api/buckets/{bucket}/batch", body, headers={"Content-Type": "application/x-ndjson"})


def add(path: str, file_hash: str = EMPTY, mtime: Any = 1_700_000_000_123, **more: Any) -> dict[str, Any]:
    return {"type": "addFile", "path": path, "xetHash": file_hash, "mtime": mtime, **more}


def copy(path: str, file_hash: str, bucket: str, kind: str = "bucket") -> dict[str, Any]:
    more = {"sourceRepoType": kind, "sourceRepoId": bucket}
    return {"type": "copyFile", "path": path, "xetHash": file_hash, "mtime": 1_700_000_000_000, **more}


def delete(path: str) -> dict[str, Any]:
    return {"type": "deleteFile", "path": path}


def tree(api: Api, bucket: str, prefix: str = "", query: str = "") -> list[dict[str, Any]]:
    """Return all entries, following the links as clients do."""
    url: str | None = f"/api/buckets/{bucket}/tree" + (f"/{quote(prefix, safe='')}" if prefix else "") + query
    entries: list[dict[str, Any]] = []
    while url is not None:
        answer = api.get(url)
        assert answer.status == 200, answer
        entries += answer.json
        found = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
        assert found is None or found.group(1).startswith(api.server.url)
        url = found.group(1).removeprefix(api.server.url) if found else None
    return entries


def paths(api: Api, bucket: str, prefix: str = "", query: str = "") -> list[str]:
    return [entry["path"] for entry in tree(api, bucket, prefix, query)]


def resolve(bucket: str, path: str) -> str:
    return f"/buckets/{bucket}/resolve/{quote(path, safe='')}"


def file(api: Api, bucket: str, path: str) -> dict[str, Any]:
    [found] = api.post(f"/api/buckets/{bucket}/paths-info", {"paths": [path]}).json
    return found


def refused(answer: Answer, status: int, *words: str, code: str | None = None) -> None:
    assert answer.status == status, answer
    for word in words:
        assert word in answer.error, answer
    if code is not None:
        assert answer.headers["x-error-code"] == code


# Rights


def test_a_private_bucket_is_as_one_that_does_not_exist(api: Api, stranger: Api, nobody: Api, bucket: str) -> None:
    batch(api, bucket, add("f"))
    assert api.put(f"/api/buckets/{bucket}/settings", {"private": True}).status == 200
    reads = [
        ("GET", "/api/buckets/{}", None),
        ("GET", "/api/buckets/{}/tree", None),
        ("POST", "/api/buckets/{}/paths-info", {"paths": ["f"]}),
        ("GET", "/api/buckets/{}/xet-read-token", None),
        ("GET", "/api/buckets/{}/events", None),
        ("GET", "/buckets/{}/resolve/f", None),
        ("GET", "/buckets/{}/resolve/absent", None),
        ("HEAD", "/buckets/{}/resolve/f", None),
    ]
    writes = [
        ("DELETE", "/api/buckets/{}", None),
        ("PUT", "/api/buckets/{}/settings", {"private": False}),
        ("GET", "/api/buckets/{}/xet-write-token", None),
        ("POST", "/api/buckets/{}/batch", b""),
    ]
    absent = f"{api.server.owner}/absent"
    for method, path, body in reads + writes:
        for caller, status in ((stranger, 404), (nobody, 401)):
            answers = [caller.call(method, path.format(name), body) for name in (bucket, absent)]
            assert [one.status for one in answers] == [status, status], (method, path)
            if method == "HEAD" or (caller is nobody and method in ("DELETE", "PUT")):
                continue
            assert [one.headers["x-error-code"] for one in answers] == ["RepoNotFound"] * 2, (method, path)
            assert answers[0].error.replace(bucket, "x") == answers[1].error.replace(absent, "x")
    assert api.get(f"/api/buckets/{bucket}").status == 200


def test_everybody_reads_a_public_bucket_and_its_people_write(
    api: Api, stranger: Api, nobody: Api, bucket: str, server: Server
) -> None:
    batch(api, bucket, add("f"))
    for caller in (stranger, nobody):
        assert caller.get(f"/api/buckets/{bucket}").json["id"] == bucket
        assert paths(caller, bucket) == ["f"]
        assert caller.get(f"/api/buckets/{bucket}/xet-read-token").status == 200
        assert caller.get(resolve(bucket, "f")).status == 200
    for method, path, body in [
        ("DELETE", "", None),
        ("PUT", "/settings", {"private": True}),
        ("GET", "/xet-write-token", None),
        ("POST", "/batch", b""),
    ]:
        refused(stranger.call(method, f"/api/buckets/{bucket}{path}", body), 403, "stranger")
        refused(nobody.call(method, f"/api/buckets/{bucket}{path}", body), 401, "token")
    reader = Api(server, new_token(server, server.owner, "--role", "read"))
    assert paths(reader, bucket) == ["f"]
    refused(reader.get(f"/api/buckets/{bucket}/xet-write-token"), 403)
    refused(batch(reader, bucket, delete("f")), 403)
    refused(reader.post(f"/api/buckets/{server.owner}/mine"), 400)
    refused(reader.post(f"/api/buckets/{server.owner}/mine", {}), 403)
    refused(Api(server, "hf_wrong_wrong_wrong").get(f"/api/buckets/{bucket}"), 401, "Invalid credentials")


def test_members_of_an_organization_share_its_buckets(server: Server, stranger: Api) -> None:
    server.run("org", "add", "crew")
    owner = Api(server)
    refused(owner.post("/api/buckets/crew/shared", {}), 403)
    server.run("org", "add-member", "crew", server.owner, "--role", "write")
    assert owner.post("/api/buckets/crew/shared", {"visibility": "private"}).status == 200
    refused(stranger.get("/api/buckets/crew"), 404, code="RepoNotFound")
    server.run("org", "add-member", "crew", "stranger", "--role", "read")
    assert [one["id"] for one in stranger.get("/api/buckets/crew").json] == ["crew/shared"]
    assert stranger.get("/api/buckets/crew/shared").json["private"] is True
    refused(batch(stranger, "crew/shared", add("x")), 403)
    scoped = Api(server, new_token(server, server.owner, "--role", "fineGrained", "--scope", "crew:read"))
    assert scoped.get("/api/buckets/crew/shared").status == 200
    refused(batch(scoped, "crew/shared", add("x")), 403)
    moved = owner.post(
        "/api/repos/move", {"fromRepo": "crew/shared", "toRepo": f"{server.owner}/brought", "type": "bucket"}
    )
    assert moved.status == 200
    refused(stranger.get(f"/api/buckets/{server.owner}/brought"), 404, code="RepoNotFound")


# Making, listing, moving


def test_create_says_where_the_bucket_is_even_when_it_was_there(api: Api, server: Server) -> None:
    body = {"visibility": "private", "resourceGroupId": "g", "region": "eu"}
    made = api.post("/api/buckets/me/twice", body)
    assert made.json["url"] == f"{server.url}/buckets/{server.owner}/twice"
    assert made.json["private"] is True
    again = api.post("/api/buckets/me/twice", {})
    refused(again, 409)
    assert again.json["url"] == made.json["url"]
    other_host = api.post("/api/buckets/me/twice", {}, headers={"Host": "elsewhere.example:99"})
    assert other_host.json["url"] == f"http://elsewhere.example:99/buckets/{server.owner}/twice"
    info = api.get(f"/api/buckets/{server.owner}/twice").json
    assert info["resourceGroup"]["id"] == "g" and info["region"] == "eu"


@pytest.mark.parametrize(
    "name", ["-a", "a-", ".a", "a.", "a--b", "a..b", "a.git", "a b", "ä", "a" * 97, "a%00b", "%2E"]
)
def test_names_that_no_bucket_may_have(api: Api, name: str) -> None:
    refused(api.post(f"/api/buckets/me/{quote(name, safe='%')}", {}), 400, "name")
    assert api.get(f"/api/buckets/me/{quote(name, safe='%')}").status == 404


def test_lists_in_pages(api: Api, server: Server, nobody: Api) -> None:
    server.run("user", "add", "collector")
    collector = Api(server, new_token(server, "collector"))
    names = [f"b{number:03}" for number in range(205)]
    for name in names:
        assert (
            collector.post(f"/api/buckets/me/{name}", {"visibility": "private"} if name == "b007" else {}).status == 200
        )

    def listed(caller: Api, path: str) -> tuple[list[str], int]:
        found, pages = [], 0
        url: str | None = path
        while url is not None:
            answer = caller.get(url)
            found += [one["id"].partition("/")[2] for one in answer.json]
            link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
            url = link.group(1).removeprefix(server.url) if link else None
            pages += 1
        return found, pages

    assert listed(collector, "/api/buckets/me") == (names, 3)
    without = [name for name in names if name != "b007"]
    assert listed(nobody, "/api/buckets/collector") == (without, 3)
    assert listed(collector, "/api/buckets/me?search=B20") == (["b200", "b201", "b202", "b203", "b204"], 1)
    assert listed(nobody, "/api/buckets/collector?search=absent") == ([], 1)
    refused(nobody.get("/api/buckets/me"), 401)
    refused(api.get("/api/buckets/nobody-of-that-name"), 404)
    foreign = re.search(r"cursor=([^>&]+)", collector.get("/api/buckets/me").headers["link"])
    assert foreign is not None
    refused(api.get(f"/api/buckets/{server.owner}?cursor={foreign.group(1)}"), 400, "cursor")


def test_moves(api: Api, stranger: Api, bucket: str, server: Server) -> None:
    taken = new_bucket(api)

    def move(to: str, source: str = bucket, caller: Api = api) -> Answer:
        return caller.post("/api/repos/move", {"fromRepo": source, "toRepo": to, "type": "bucket"})

    refused(move(taken), 409, taken)
    refused(move("stranger/mine"), 403)
    refused(move("nonsense"), 400, "toRepo")
    refused(move(f"{server.owner}/-"), 400, "name")
    refused(move(f"{server.owner}/new", f"{server.owner}/absent"), 404, code="RepoNotFound")
    refused(move("stranger/mine", caller=stranger), 403)
    batch(api, bucket, add("f"))
    assert move(f"{bucket}-moved").status == 200
    assert paths(api, f"{bucket}-moved") == ["f"]
    refused(api.get(f"/api/buckets/{bucket}"), 404, code="RepoNotFound")
    refused(api.post("/api/repos/move", {"fromRepo": "a/b", "toRepo": "a/c", "type": "model"}), 501)


# Batches


def test_adds_copies_and_deletes(api: Api, bucket: str, source: tuple[str, dict[str, str]]) -> None:
    origin, hashes = source
    done = batch(
        api,
        bucket,
        copy("c/one", hashes["one"], origin),
        copy("c/two", hashes["two"], origin),
        add("none", mtime=1_600_000_000_999, contentType="text/plain"),
        add("gone"),
    )
    assert (done.status, done.json["failed"]) == (200, [])
    done = batch(
        api, bucket, delete("gone"), delete("never there"), delete("c/one"), copy("c/one", hashes["three"], bucket)
    )
    # What a bucket may copy from itself is what it has a claim on: three was never there.
    assert done.status == 200
    assert [one["path"] for one in done.json["failed"]] == ["c/one"]
    assert paths(api, bucket) == ["c/two", "none"]
    none = file(api, bucket, "none")
    assert (none["mtime"], none["size"], none["contentType"]) == ("2020-09-13T12:26:40.999Z", 0, "text/plain")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", none["uploadedAt"])
    assert file(api, bucket, "c/two")["size"] == len(CONTENTS["two"])
    info = api.get(f"/api/buckets/{bucket}").json
    assert (info["size"], info["totalFiles"]) == (len(CONTENTS["two"]), 2)
    assert api.get(resolve(bucket, "c/two")).body == CONTENTS["two"]


def test_the_last_operation_on_a_path_counts(api: Api, bucket: str, source: tuple[str, dict[str, str]]) -> None:
    origin, hashes = source
    batch(api, bucket, add("x"), delete("x"), copy("y", hashes["one"], origin), add("y"), delete("z"), add("z"))
    assert [(one["path"], one["xetHash"]) for one in tree(api, bucket)] == [("y", EMPTY), ("z", EMPTY)]


def test_a_batch_can_be_repeated(api: Api, bucket: str) -> None:
    operations = [add("a"), add("b"), delete("c")]
    batch(api, bucket, *operations)
    first = api.get(f"/api/buckets/{bucket}").json, tree(api, bucket)
    assert batch(api, bucket, *operations).json["failed"] == []
    assert (api.get(f"/api/buckets/{bucket}").json, tree(api, bucket)) == first


def test_a_hash_alone_gives_no_access(
    api: Api, stranger: Api, bucket: str, source: tuple[str, dict[str, str]], server: Server
) -> None:
    origin, hashes = source  # private
    assert stranger.post("/api/buckets/me/thief", {}).status in (200, 409)
    taken = batch(stranger, "stranger/thief", add("a", hashes["one"]), copy("b", hashes["one"], origin), add("mine"))
    assert taken.status == 200
    assert [one["path"] for one in taken.json["failed"]] == ["a", "b"]
    absent = batch(stranger, "stranger/thief", copy("b", hashes["one"], f"{server.owner}/absent"))
    assert absent.status == 422
    assert absent.json["failed"][0]["error"].replace("absent", "source") == taken.json["failed"][1]["error"]
    assert paths(stranger, "stranger/thief") == ["mine"]

    public = new_bucket(api)
    batch(api, public, copy("shown", hashes["one"], origin))
    assert batch(stranger, "stranger/thief", copy("b", hashes["one"], public)).json["failed"] == []
    refusal = batch(stranger, "stranger/thief", copy("c", hashes["two"], public))
    assert refusal.status == 422
    assert stranger.get(resolve("stranger/thief", "b")).body == CONTENTS["one"]
    [unbuilt] = batch(stranger, "stranger/thief", copy("c", hashes["two"], "a/b", "model")).json["failed"]
    assert "repositories" in unbuilt["error"]


BAD_PATHS = [
    *("", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "a\0b", "\ud800", "x" * 1025, "é" * 513),
]
GOOD_PATHS = [
    *("...", "a/...", ".a", "a ", " a", "a /b", "~", "\\", "a\\..\\b", "C:\\x", "con", "\u00e9", "e\u0301", "\u202e"),
    *("x" * 1024, "é" * 512, "tab\t", "line\nbreak", "\r", "\x7f", "\x01", "🎉/🎉", "a%2Fb", "a%00b", "*?[]", "-rf"),
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_no_file_may_have(api: Api, bucket: str, path: str) -> None:
    for operation in (add(path), delete(path), copy(path, EMPTY, bucket)):
        answer = batch(api, bucket, operation, add("good"))
        assert answer.status == 200, answer
        [failed] = answer.json["failed"]
        assert failed["path"] == path.encode("utf-8", "backslashreplace").decode()
        assert "path" in failed["error"]
        assert batch(api, bucket, operation).status == 422
    assert paths(api, bucket) == ["good"]
    if "\ud800" not in path:
        assert api.post(f"/api/buckets/{bucket}/paths-info", {"paths": [path, "good"]}).json[0]["path"] == "good"
        assert api.get(resolve(bucket, path)).status == 404
        answer = api.get(f"/api/buckets/{bucket}/tree/{quote(path, safe='')}")
        assert answer.status == 200
        assert answer.json in ([], tree(api, bucket))  # all of it for the empty one


def test_paths_are_kept_as_they_are(api: Api, bucket: str) -> None:
    assert batch(api, bucket, *map(add, GOOD_PATHS)).json["failed"] == []
    assert paths(api, bucket) == sorted(GOOD_PATHS)
    info = api.post(f"/api/buckets/{bucket}/paths-info", {"paths": [*GOOD_PATHS, "absent", "🎉"]}).json
    assert [one["path"] for one in info] == GOOD_PATHS
    for path in GOOD_PATHS:
        for quoted in (quote(path, safe=""), quote(path)):
            head = api.call("HEAD", f"/buckets/{bucket}/resolve/{quoted}")
            assert (head.status, head.headers["x-xet-hash"]) == (200, EMPTY), path
            assert "\n" not in head.headers["content-disposition"]
        assert paths(api, bucket, path)[0] == path
    assert batch(api, bucket, *map(delete, GOOD_PATHS)).json["failed"] == []
    assert paths(api, bucket) == []


@pytest.mark.parametrize(
    ("operation", "status", "words"),
    [
        (add("p", "xyz"), 422, ["p", "xetHash", "xyz"]),
        (add("p", "A" * 64), 422, ["xetHash"]),
        (add("p", "1" * 64), 422, ["uploaded", "1" * 64]),
        ({"type": "addFile", "path": "p", "mtime": 1}, 422, ["xetHash"]),
        (add("p", mtime="soon"), 422, ["mtime", "soon"]),
        (add("p", mtime=True), 422, ["mtime"]),
        (add("p", mtime=1e300), 422, ["mtime"]),
        (add("p", mtime=-1e14), 422, ["mtime"]),
        (add("p", contentType="a\r\nX-Evil: 1"), 422, ["content type"]),
        (add("p", contentType="x" * 256), 422, ["content type"]),
        (add("p", contentType=7), 422, ["contentType"]),
        ({"type": "renameFile", "path": "p"}, 422, ["renameFile"]),
        ({"type": "copyFile", "path": "p", "xetHash": EMPTY}, 422, ["sourceRepoType"]),
        ({"type": "addFile", "path": 7, "xetHash": EMPTY}, 400, ["line 1", "path"]),
        ('{"type": "addFile", "path": "p", "mtime": NaN}', 400, ["line 1", "NaN"]),
        ("{", 400, ["line 1", "JSON"]),
        ("[]", 400, ["line 1", "object"]),
        ("[" * 100_000, 400, ["line 1"]),
        ("\ud800", 400, ["line 1"]),
    ],
)
def test_operations_that_mean_nothing(
    api: Api, bucket: str, operation: dict[str, Any] | str, status: int, words: list[str]
) -> None:
    answer = batch(api, bucket, operation)
    assert answer.status == status, answer
    said = json.dumps(answer.json)
    assert all(word in said for word in words), answer
    assert paths(api, bucket) == []
    assert api.get(f"/api/buckets/{bucket}").json["updatedAt"] == api.get(f"/api/buckets/{bucket}").json["createdAt"]


def test_batches_have_a_size(api: Api, bucket: str) -> None:
    assert batch(api, bucket).json["failed"] == []
    assert batch(api, bucket, "", "\r", " ").json["processed"] == 0
    refused(batch(api, bucket, *(add(str(n)) for n in range(10_001))), 413, "10000")
    assert paths(api, bucket) == []
    assert batch(api, bucket, *(add(str(n)) for n in range(3000))).json["processed"] == 3000
    refused(api.post(f"/api/buckets/{bucket}/paths-info", {"paths": ["x"] * 1001}), 413, "1000")
    refused(api.post(f"/api/buckets/{bucket}/paths-info", {"paths": "x"}), 400, "paths")
    refused(api.post(f"/api/buckets/{bucket}/paths-info", {}), 400, "paths")


# Trees


def test_trees_in_pages(api: Api, bucket: str) -> None:
    many = [f"d{number % 7}/{number:05}" for number in range(2500)] + [f"f{number:04}" for number in range(1200)]
    for start in range(0, len(many), 1000):
        batch(api, bucket, *map(add, many[start : start + 1000]))
    assert paths(api, bucket) == sorted(many)
    assert paths(api, bucket, query="?recursive=true&limit=999") == sorted(many)
    folders = [f"d{number}" for number in range(7)]
    files = sorted(path for path in many if path.startswith("f"))
    assert paths(api, bucket, query="?recursive=false") == folders + files
    assert paths(api, bucket, query="?recursive=false&limit=1000") == folders + files
    entries = tree(api, bucket, query="?recursive=false&limit=3")
    assert {entry["type"] for entry in entries if "/" in entry["path"]} == set()
    assert all(entry.keys() == {"type", "path", "uploadedAt"} for entry in entries if entry["type"] == "directory")
    assert paths(api, bucket, "d3") == [path for path in sorted(many) if path.startswith("d3/")]
    assert paths(api, bucket, "d3/") == paths(api, bucket, "d3")
    assert paths(api, bucket, "d") == []
    assert paths(api, bucket, "f0001", "?recursive=false") == ["f0001"]
    first = api.get(f"/api/buckets/{bucket}/tree?limit=2").headers["link"]
    cursor = re.search(r"cursor=([^>&]+)", first)
    assert cursor is not None
    refused(api.get(f"/api/buckets/{bucket}/tree?recursive=false&cursor={cursor.group(1)}"), 400, "cursor")
    refused(api.get(f"/api/buckets/{bucket}/tree/d1?cursor={cursor.group(1)}"), 400, "cursor")
    refused(api.get(f"/api/buckets/{bucket}/tree?cursor=x"), 400, "cursor")
    refused(api.get(f"/api/buckets/{bucket}/tree?limit=0"), 400, "limit")
    refused(api.get(f"/api/buckets/{bucket}/tree/%FF"), 400, "UTF-8")


# Reads


@pytest.fixture
def two(api: Api, bucket: str, source: tuple[str, dict[str, str]]) -> str:
    """The address of a file with the second content."""
    origin, hashes = source
    assert batch(api, bucket, copy("d/two.bin", hashes["two"], origin)).json["failed"] == []
    return resolve(bucket, "d/two.bin")


def test_a_head_says_where_the_content_is(api: Api, nobody: Api, bucket: str, two: str, server: Server) -> None:
    for caller in (api, nobody):
        head = caller.call("HEAD", two)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["x-xet-hash"] == file(api, bucket, "d/two.bin")["xetHash"]
        assert head.headers["x-linked-size"] == head.headers["content-length"] == str(len(CONTENTS["two"]))
        assert head.headers["link"] == f'<{server.url}/api/buckets/{bucket}/xet-read-token>; rel="xet-auth"'
        assert head.headers["accept-ranges"] == "bytes"
        assert head.headers["etag"] == f'"{head.headers["x-xet-hash"]}"'
        assert head.headers["last-modified"].endswith("GMT")
        assert head.headers["content-type"] == "application/octet-stream"
        token = caller.get(f"/api/buckets/{bucket}/xet-read-token")
        assert token.json["casUrl"].startswith(server.url) and not token.json["casUrl"].endswith("/")
        assert token.json["exp"] > time.time() + 60
        assert token.headers["x-xet-access-token"] == token.json["accessToken"]
        assert token.headers["x-xet-token-expiration"] == str(token.json["exp"])
        assert token.headers["x-xet-cas-url"] == token.json["casUrl"]


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=300000-", 300_000, 512_000),
        ("bytes=-7", 511_993, 512_000),
        ("bytes=-9999999", 0, 512_000),
        ("bytes=511999-9999999", 511_999, 512_000),
        ("Bytes = 1-2", 1, 3),
    ],
)
def test_ranges(api: Api, two: str, wanted: str, start: int, end: int) -> None:
    answer = api.get(two, headers={"Range": wanted})
    assert answer.status == 206
    assert answer.body == CONTENTS["two"][start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/512000"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("wanted", ["bytes=512000-", "bytes=512000-512001", "bytes=-0", "bytes=99999999999999-"])
def test_ranges_outside(api: Api, two: str, wanted: str) -> None:
    answer = api.get(two, headers={"Range": wanted})
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */512000"


@pytest.mark.parametrize("wanted", ["bytes=2-1", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=", "nonsense"])
def test_ranges_that_are_not_understood_do_not_count(api: Api, two: str, wanted: str) -> None:
    answer = api.get(two, headers={"Range": wanted})
    assert (answer.status, answer.body) == (200, CONTENTS["two"])


def test_conditions(api: Api, two: str) -> None:
    head = api.call("HEAD", two)
    etag, date = head.headers["etag"], head.headers["last-modified"]
    earlier = "Mon, 01 Jan 2024 00:00:00 GMT"

    def status(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answers = [api.call(method, two, headers=sent) for method in ("GET", "HEAD")]
        assert all(
            answer.status != 304 or (answer.body == b"" and answer.headers["etag"] == etag) for answer in answers
        )
        if "Range" not in headers:
            assert answers[0].status == answers[1].status
        return answers[0].status

    assert status(If_None_Match=etag) == 304
    assert status(If_None_Match=f'"x", W/{etag}') == 304
    assert status(If_None_Match="*") == 304
    assert status(If_None_Match='"x"') == 200
    assert status(If_None_Match='"x"', If_Modified_Since=date) == 200  # the tag alone counts
    assert status(If_Modified_Since=date) == 304
    assert status(If_Modified_Since=earlier) == 200
    assert status(If_Modified_Since="nonsense") == 200
    assert status(Range="bytes=0-1", If_Range=etag) == 206
    assert status(Range="bytes=0-1", If_Range=date) == 206
    assert status(Range="bytes=0-1", If_Range='"x"') == 200
    assert status(Range="bytes=0-1", If_Range=f"W/{etag}") == 200
    assert status(Range="bytes=0-1", If_Range=earlier) == 200
    assert status(Range="bytes=0-1", If_Range="nonsense") == 200
    assert status(Range="bytes=0-1", If_None_Match=etag) == 304


def test_what_a_browser_gets(api: Api, bucket: str) -> None:
    batch(api, bucket, add("page.html"), add("typed", contentType="image/png"), add('q"uo\\te\r\n.é'))
    page = api.get(resolve(bucket, "page.html"))
    assert (page.status, page.body, page.headers["content-length"]) == (200, b"", "0")
    assert page.headers["content-type"] == "text/html"
    assert page.headers["content-security-policy"] == "sandbox"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert api.get(resolve(bucket, "typed")).headers["content-type"] == "image/png"
    odd = api.get(resolve(bucket, 'q"uo\\te\r\n.é'))
    assert odd.status == 200, odd
    assert (
        odd.headers["content-disposition"]
        == "inline; filename*=UTF-8''q%22uo%5Cte%0D%0A.%C3%A9; filename=\"q_uo_te__._\""
    )
    assert api.get(resolve(bucket, "page.html"), headers={"Range": "bytes=0-"}).status == 416


def test_no_such_file(api: Api, nobody: Api, bucket: str) -> None:
    batch(api, bucket, add("folder/file"))
    for path in ("absent", "folder", "folder/", "folder/file/more", "Folder/File"):
        refused(api.get(resolve(bucket, path)), 404, path, code="EntryNotFound")
        refused(nobody.get(resolve(bucket, path)), 404, path, code="EntryNotFound")
        assert api.call("HEAD", resolve(bucket, path)).headers["x-error-code"] == "EntryNotFound"
    refused(api.get(f"/buckets/{bucket}/resolve/%FF"), 400, "UTF-8")
    assert api.get(f"/buckets/{bucket}/resolve/folder%2Ffile").status == 200
    assert api.get(f"/buckets/{bucket}/resolve/folder%252Ffile").status == 404


# Events


@contextmanager
def following(api: Api, bucket: str, query: str = "") -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    connection = api.connect(30)
    try:
        token = api.server.token if api.token is None else api.token
        headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {token}"} if token else {})
        connection.request("GET", f"/api/buckets/{bucket}/events{query}", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, (response.status, response.read())
        assert response.getheader("Content-Type", "").startswith("text/event-stream")

        def events() -> Iterator[tuple[str, dict[str, Any]]]:
            name = ""
            while line := response.readline():
                kind, _, value = line.decode().rstrip("\n").partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data":
                    yield name, json.loads(value)

        yield events()
    finally:
        connection.close()


def test_changes_are_told_as_they_happen(api: Api, bucket: str, source: tuple[str, dict[str, str]]) -> None:
    origin, hashes = source
    with following(api, bucket) as events:
        assert next(events)[0] == "ready"
        waits: list[float] = []
        for number in range(10):
            began: list[float] = []

            def change(number: int = number, began: list[float] = began) -> None:
                time.sleep(0.05)
                began.append(time.perf_counter())
                batch(api, bucket, copy("file", hashes[["one", "two"][number % 2]], origin))

            thread = threading.Thread(target=change)
            thread.start()
            name, data = next(events)
            waits.append(time.perf_counter() - began[0])
            thread.join()
            assert name == "changes"
            [told] = data["changes"]
            assert (told["path"], told["op"]) == ("file", "update" if number else "add")
            assert told["xetHash"] == hashes[["one", "two"][number % 2]]
            assert told["size"] == len(CONTENTS[["one", "two"][number % 2]])
            assert told["uploadedAt"] == file(api, bucket, "file")["uploadedAt"]
            assert told["mtime"] == "2023-11-14T22:13:20.000Z"
        assert sorted(waits)[5] < 0.1, waits
        batch(api, bucket, delete("file"), delete("absent"))
        assert next(events)[1]["changes"] == [{"path": "file", "op": "delete"}]


def test_a_follower_goes_on_where_it_was(api: Api, bucket: str) -> None:
    with following(api, bucket) as events:
        name, ready = next(events)
        assert name == "ready"
    for number in range(3):
        batch(api, bucket, add(f"f{number}"))
    with following(api, bucket, f"?cursor={ready['cursor']}") as events:
        told = [next(events) for _ in range(4)]
        assert [[c["path"] for c in data.get("changes", [])] for _, data in told] == [["f0"], ["f1"], ["f2"], []]
        assert [name for name, _ in told] == ["changes", "changes", "changes", "ready"]
    with following(api, bucket, f"?cursor={told[1][1]['cursor']}") as events:
        assert next(events)[1]["changes"][0]["path"] == "f2"
        assert next(events)[0] == "ready"
    updated = api.get(f"/api/buckets/{bucket}").json["updatedAt"]
    batch(api, bucket, add("after"))
    with following(api, bucket, f"?since={updated}") as events:
        replayed: list[str] = []
        while (event := next(events))[0] == "changes":
            replayed += [change["path"] for change in event[1]["changes"]]
        assert replayed[-1] == "after" and "f0" not in replayed
    created = api.get(f"/api/buckets/{bucket}").json["createdAt"]
    with following(api, bucket, f"?since={created}") as events:
        assert next(events)[1]["changes"][0]["path"] == "f0"
    for wrong in ("?cursor=x", f"?cursor={ready['cursor'][:-4]}AAA=", "?since=yesterday", "?since=99999"):
        refused(api.get(f"/api/buckets/{bucket}/events{wrong}"), 400)
    other = new_bucket(api)
    refused(api.get(f"/api/buckets/{other}/events?cursor={ready['cursor']}"), 400, "cursor")


def test_a_large_batch_is_told_in_pieces_that_can_be_resumed(api: Api, bucket: str) -> None:
    with following(api, bucket) as events:
        next(events)
        many = [f"p{number:05}" for number in range(2500)]
        batch(api, bucket, *map(add, many))
        pieces = [next(events)[1] for _ in range(3)]
    assert [change["path"] for piece in pieces for change in piece["changes"]] == many
    with following(api, bucket, f"?cursor={pieces[0]['cursor']}") as events:
        assert next(events)[1]["changes"][0]["path"] == "p00000"  # all of it again, rather than a part missing
    with following(api, bucket, f"?cursor={pieces[2]['cursor']}") as events:
        assert next(events)[0] == "ready"


def test_followers_are_asked_to_come_back_when_they_may_not_see_it_any_more(api: Api, nobody: Api, bucket: str) -> None:
    with following(nobody, bucket) as events:
        assert next(events)[0] == "ready"
        api.put(f"/api/buckets/{bucket}/settings", {"private": True})
        assert next(events)[0] == "reconnect"
        assert next(events, None) is None
    with following(api, bucket) as events:
        assert next(events)[0] == "ready"
        api.call("DELETE", f"/api/buckets/{bucket}")
        assert next(events)[0] == "reconnect"


def test_a_server_that_stops_says_so(own_server: Server) -> None:
    api = Api(own_server)
    bucket = new_bucket(api)
    with following(api, bucket) as events:
        name, ready = next(events)
        assert name == "ready"
        assert own_server.terminate() == 0
        assert next(events)[0] == "reconnect"
        assert next(events, None) is None
    own_server.start()
    batch(api, bucket, add("meanwhile"))
    with following(api, bucket, f"?cursor={ready['cursor']}") as events:
        assert next(events)[1]["changes"][0]["path"] == "meanwhile"


def test_nothing_failed_in_the_server(server: Server) -> None:
    """Last: all refusals above were meant."""
    assert eventually(lambda: "Traceback" not in server.log.read_text(), 0.1), server.log.read_text()[-3000:]
