"""The content store over real HTTP: the vectors byte for byte, the real clients, bad input, damage."""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from cas_client import Cas, CasServer, hf_xet
from clients import ROOT
from runstead.xet.hashes import hash_from_text, hash_to_text, keyed_hashes
from runstead.xet.shard import read_shard
from runstead.xet.xorb import unpack_chunks
from runstead.xet.xorb_builder import XorbBuilder
from s3_server import s3_server

VERSIONS = ("2.4.0", "xet-1.5.0", "xet-1.1.10")
"""The present client, and two that know the older protocol alone."""

VECTORS = ROOT / "tests" / "vectors" / "xet"
FACTS: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text())
sys.path.insert(0, str(VECTORS))
from inputs import INPUTS  # noqa: E402

STEPS = [
    step for step in FACTS["uploads"] if all((VECTORS / "xorbs" / f"{x}.xorb").exists() for x in step["new_xorbs"])
]
FILES = [name for step in STEPS for name in step["files"]]


def xorb_body(name: str) -> bytes:
    return (VECTORS / "xorbs" / f"{name}.xorb").read_bytes()


def upload_vectors(cas: Cas) -> None:
    for step in STEPS:
        for name in step["new_xorbs"]:
            assert cas.upload_xorb(name, xorb_body(name)) in (200, 201)
        assert cas.upload_shard((VECTORS / step["shard"]).read_bytes()) == {"type": "result", "result": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CasServer]:
    server = CasServer(tmp_path_factory.mktemp("cas") / "store").start()
    yield server
    server.stop()


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[CasServer]:
    server = CasServer(tmp_path / "store").start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def filled(store: CasServer) -> Cas:
    cas = Cas(store.url)
    upload_vectors(cas)
    return cas


def without_urls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "URL" if k == "url" else without_urls(v) for k, v in value.items()}
    return [without_urls(one) for one in value] if isinstance(value, list) else value


class TestVectors:
    @pytest.mark.parametrize("path", sorted((VECTORS / "reconstructions").glob("*.json")), ids=lambda path: path.stem)
    def test_reconstructions_are_those_of_the_vectors(self, filled: Cas, path: Path) -> None:
        wanted = json.loads(path.read_text())
        for query in wanted["queries"]:
            for version in ("v2", "v1"):
                if version not in query:
                    continue
                answer = filled.reconstruction(wanted["xet_hash"], query["range"], int(version[1]))
                if answer.status != 200:
                    assert query[version] in (answer.status, {"status": answer.status}), (query, answer)
                else:
                    assert without_urls(answer.json()) == query[version]

    @pytest.mark.parametrize("name", FILES)
    def test_the_content_comes_back(self, filled: Cas, name: str) -> None:
        wanted = INPUTS[name]()
        assert download(filled, FACTS["files"][name]["xet_hash"]) == wanted
        assert filled.plain(FACTS["files"][name]["xet_hash"]) == wanted

    def test_everything_may_be_sent_again(self, filled: Cas) -> None:
        upload_vectors(filled)

    def test_a_known_xorb_is_not_asked_for_again(self, filled: Cas) -> None:
        name = STEPS[0]["new_xorbs"][0]
        answer = filled.grant(name, xorb_body(name))
        assert (answer.status, answer.body) == (200, b"")

    def test_a_deduplication_answer_has_the_whole_xorb(self, filled: Cas) -> None:
        asked = json.loads((VECTORS / "dedup" / "dedup.json").read_text())
        answer = filled.call("GET", f"v1/chunks/default-merkledb/{asked['hit']}")
        assert answer.status == 200
        found = read_shard(answer.body)
        ours = read_shard((VECTORS / "dedup" / "response.shard").read_bytes())
        assert found.footer is not None and ours.footer is not None and found.footer.hmac_key != bytes(32)
        assert not found.files
        answered = {x.xorb_hash: x for x in found.xorbs}
        plain = b"".join(hash_from_text(c[0]) for c in FACTS["xorbs"][hash_to_text(ours.xorbs[0].xorb_hash)]["chunks"])
        assert answered[ours.xorbs[0].xorb_hash].chunk_hashes() == keyed_hashes(found.footer.hmac_key, plain)
        assert filled.call("GET", "v1/chunks/default/" + "5" * 64).status == 404

    def test_the_shard_after_that_answer_is_accepted_for_another_bucket(self, store: CasServer, filled: Cas) -> None:
        other = Cas(store.url, "bucket:other")
        name = FACTS["files"]["rand1m"]["xet_hash"]
        assert other.reconstruction(name).status == 404
        assert other.upload_shard((VECTORS / "dedup" / "resulting_upload.shard").read_bytes())["type"] == "result"
        assert other.reconstruction(name).status == 200

    def test_other_routes(self, filled: Cas) -> None:
        name = STEPS[0]["new_xorbs"][0]
        head = filled.call("HEAD", f"v1/xorbs/default/{name}")
        assert (head.status, int(head.headers["content-length"])) == (200, len(xorb_body(name)))
        assert filled.call("HEAD", f"v1/xorbs/default/{'0' * 63}1").status == 404
        mix = FACTS["files"]["mix"]
        head = filled.call("HEAD", f"v1/files/{mix['xet_hash']}")
        assert (head.status, int(head.headers["content-length"])) == (200, mix["size"])
        body = json.dumps([{"prefix": "default", "hash": mix["xet_hash"]}, {"prefix": "default", "hash": "1" * 64}])
        many = filled.call("POST", "v1/reconstructions", body.encode()).json()
        assert list(many["files"]) == [mix["xet_hash"]] and len(many["fetch_info"]) == 2
        assert filled.http("POST", "/v1/telemetry", b"{}").status == 200

    def test_several_files_together(self, filled: Cas) -> None:
        names = [FACTS["files"][name]["xet_hash"] for name in ("mix", "rand1m")]
        body = json.dumps([{"prefix": "default", "hash": name} for name in [*names, "1" * 64]])
        plan = filled.call("POST", "v2/reconstructions", body.encode()).json()
        assert sorted(plan["files"]) == sorted(names)
        chunks: dict[tuple[str, int], bytes] = {}
        for xorb, fetches in plan["xorbs"].items():
            for fetch in fetches:
                for part in fetch["ranges"]:
                    got = filled.fetch(fetch["url"], part["bytes"]["start"], part["bytes"]["end"])
                    assert got.status == 206
                    for index, chunk in enumerate(unpack_chunks(got.body), part["chunks"]["start"]):
                        chunks[xorb, index] = bytes(chunk)
        for name, terms in plan["files"].items():
            parts = [chunks[term["hash"], index] for term in terms for index in range(*term["range"].values())]
            assert b"".join(parts) == download(filled, name)
        for wrong in (b"{}", b'[{"hash": "x"}]'):
            assert filled.call("POST", "v2/reconstructions", wrong).status == 400


def download(cas: Cas, name: str, span: tuple[int, int] | None = None) -> bytes:
    """Read a file as a client does: reconstruction, ranged reads, unpacking; `span` has both ends in it."""
    answer = cas.reconstruction(name, None if span is None else f"bytes={span[0]}-{span[1]}")
    assert answer.status == 200
    plan = answer.json()
    chunks: dict[tuple[str, int], bytes] = {}
    for xorb, fetches in plan["xorbs"].items():
        for fetch in fetches:
            for part in fetch["ranges"]:
                got = cas.fetch(fetch["url"], part["bytes"]["start"], part["bytes"]["end"])
                assert got.status == 206
                for index, chunk in enumerate(unpack_chunks(got.body), part["chunks"]["start"]):
                    chunks[xorb, index] = bytes(chunk)
    content = b"".join(
        chunks[term["hash"], index] for term in plan["terms"] for index in range(*term["range"].values())
    )[plan["offset_into_first_range"] :]
    return content if span is None else content[: span[1] - span[0] + 1]


class TestRanges:
    @pytest.mark.parametrize("name", ["mix", "zeros1m", "f32_200k", "s100", "one"])
    def test_any_range_is_the_slice(self, filled: Cas, name: str) -> None:
        content = INPUTS[name]()
        seed = int.from_bytes(os.urandom(4), "little")
        for step in range(25):
            first = (seed * (step + 7) * 2654435761) % len(content)
            last = first + (seed * (step + 3) * 40503) % (len(content) - first)
            where = (name, first, last)
            assert download(filled, FACTS["files"][name]["xet_hash"], (first, last)) == content[first : last + 1], where
            assert filled.plain(FACTS["files"][name]["xet_hash"], first, last) == content[first : last + 1], where

    def test_links(self, filled: Cas) -> None:
        plan = filled.reconstruction(FACTS["files"]["mix"]["xet_hash"], "bytes=700000-800000").json()
        (xorb, [fetch, *_]), *_ = plan["xorbs"].items()
        first, last = fetch["ranges"][0]["bytes"].values()
        body = xorb_body(xorb)
        assert filled.fetch(fetch["url"], first, last).body == body[first : last + 1]
        part = filled.fetch(fetch["url"], first + 5, last - 5)
        assert (part.status, part.body) == (206, body[first + 5 : last - 4])
        assert part.headers["content-range"] == f"bytes {first + 5}-{last - 5}/{len(body)}"
        if first:
            assert filled.fetch(fetch["url"], first - 1, last).status == 403
        assert filled.fetch(fetch["url"], 10**9, 2 * 10**9).status == 416
        assert filled.http("GET", "/" + fetch["url"].split("/", 3)[3]).status == 403
        assert filled.fetch(fetch["url"].replace("Expires=1", "Expires=2"), first, last).status == 403
        assert filled.fetch(fetch["url"].replace("Signature=", "Signature=0"), first, last).status == 403
        assert filled.fetch(fetch["url"].split("?")[0], first, last).status == 403
        assert f"bytes={first}-{last}" in unquote(fetch["url"])

    def test_several_ranges_at_once(self, filled: Cas) -> None:
        plan = filled.reconstruction(FACTS["files"]["rand1m"]["xet_hash"]).json()
        ((xorb, [fetch]),) = plan["xorbs"].items()
        answer = filled.http("GET", "/" + fetch["url"].split("/", 3)[3], headers={"Range": "bytes=0-99,500-599"})
        assert answer.status == 206 and answer.headers["content-type"].startswith("multipart/byteranges")
        assert xorb_body(xorb)[:100] in answer.body and xorb_body(xorb)[500:600] in answer.body
        assert len(answer.body) == int(answer.headers["content-length"])

    def test_ranges_of_a_file(self, filled: Cas) -> None:
        one = FACTS["files"]["s100"]["xet_hash"]
        assert filled.reconstruction(one, "bytes=100-200").status == 416
        assert filled.reconstruction(one, "bytes=99-").status == 200
        for wrong in ("bytes=5-2", "lines=1-2", "bytes=a-b", "bytes=", "bytes=0-1,3-4"):
            assert filled.reconstruction(one, wrong).status == 400
        assert filled.reconstruction("0" * 64).json() == {"offset_into_first_range": 0, "terms": [], "xorbs": {}}


class TestClients:
    @pytest.fixture(params=VERSIONS)
    def version(self, request: pytest.FixtureRequest) -> str:
        return request.param

    def test_up_and_down(self, store: CasServer, tmp_path: Path, version: str) -> None:
        contents = [b"", b"x", os.urandom(300_000), b"text %d\n" * 200_000, os.urandom(9_000_000), bytes(20_000_000)]
        paths = []
        for number, content in enumerate(contents):
            paths.append(tmp_path / f"in-{number}")
            paths[-1].write_bytes(content)
        done = hf_xet("upload", store.url, "bucket:up", *map(str, paths), version=version, home=tmp_path / "home")
        assert [size for _, size in done["files"]] == [len(content) for content in contents]
        wanted = [f"{name}:{size}:{tmp_path}/out-{n}" for n, (name, size) in enumerate(done["files"]) if size]
        hf_xet("download", store.url, "bucket:up", *wanted, version=version, home=tmp_path / "other")
        for number, content in enumerate(contents):
            if content:
                assert (tmp_path / f"out-{number}").read_bytes() == content
                assert Cas(store.url).plain(done["files"][number][0]) == content

    def test_the_older_way_to_send_xorbs(self, store: CasServer, tmp_path: Path, version: str) -> None:
        (tmp_path / "in").write_bytes(content := os.urandom(3_000_000))
        legacy = {"HF_XET_CLIENT_LEGACY_DIRECT_XORB_UPLOAD": "1"}
        done = hf_xet("upload", store.url, "s", str(tmp_path / "in"), version=version, home=tmp_path / "home", **legacy)
        assert Cas(store.url).plain(done["files"][0][0]) == content

    def test_several_ranges_in_one_request(self, store: CasServer, tmp_path: Path) -> None:
        old, new = os.urandom(3_000_000), os.urandom(500_000)
        (tmp_path / "old").write_bytes(old)
        (tmp_path / "new").write_bytes(content := old[:1_000_000] + new + old[1_200_000:])
        run = {"version": VERSIONS[0], "home": tmp_path / "home"}
        hf_xet("upload", store.url, "s", str(tmp_path / "old"), **run)
        done = hf_xet("upload", store.url, "s", str(tmp_path / "new"), **run)
        name, size = done["files"][0]
        multi = {"HF_XET_CLIENT_ENABLE_MULTIRANGE_FETCHING": "1"}
        hf_xet("download", store.url, "s", f"{name}:{size}:{tmp_path}/out", **run, **multi)
        assert (tmp_path / "out").read_bytes() == content

    def test_a_second_user_sends_no_data(self, own_store: CasServer, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(os.urandom(30_000_000))
        hf_xet("upload", own_store.url, "one", str(tmp_path / "in"), version=VERSIONS[0], home=tmp_path / "a")
        objects = sorted((own_store.directory / "objects" / "objects").rglob("*-*"))
        hf_xet("upload", own_store.url, "two", str(tmp_path / "in"), version=VERSIONS[0], home=tmp_path / "b")
        assert sorted((own_store.directory / "objects" / "objects").rglob("*-*")) == objects

    def test_a_store_that_lost_its_data_heals(self, own_store: CasServer, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(content := os.urandom(2_000_000))
        run = {"version": VERSIONS[0], "home": tmp_path / "home"}
        hf_xet("upload", own_store.url, "s", str(tmp_path / "in"), **run)
        before = Cas(own_store.url).cas_url
        own_store.stop()
        forget(own_store.directory)
        own_store.start()
        said = hf_xet("--error", "upload", own_store.url, "s", str(tmp_path / "in"), **run)
        assert "run the command again" in said
        assert Cas(own_store.url).cas_url != before
        done = hf_xet("upload", own_store.url, "s", str(tmp_path / "in"), **run)
        assert Cas(own_store.url).plain(done["files"][0][0]) == content


def test_with_s3_clients_read_from_it_directly(tmp_path: Path) -> None:
    with s3_server("content") as endpoint:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": endpoint}
        store = CasServer(tmp_path / "store", ("--s3", "s3://content/deep/prefix"), keys).start()
        try:
            (tmp_path / "in").write_bytes(content := os.urandom(30_000_000) + bytes(3_000_000))
            run = {"version": VERSIONS[0], "home": tmp_path / "home"}
            done = hf_xet("upload", store.url, "s", str(tmp_path / "in"), **run)
            name, size = done["files"][0]
            cas = Cas(store.url, "s")
            [[fetch, *_], *_] = cas.reconstruction(name).json()["xorbs"].values()
            assert fetch["url"].startswith(endpoint)
            hf_xet("download", store.url, "s", f"{name}:{size}:{tmp_path}/out", **run)
            assert (tmp_path / "out").read_bytes() == content
            assert cas.plain(name) == content
            assert cas.plain(name, 29_999_990, 30_000_010) == content[29_999_990:30_000_011]
        finally:
            store.stop()


def forget(directory: Path) -> None:
    """Lose all content but not the name of the store, as an older backup would, an hour later."""
    import sqlite3

    with sqlite3.connect(directory / "test.db") as database:
        for table in ("xorbs", "files", "claims", "dedup_chunks"):
            database.execute(f"DELETE FROM {table}")
        database.execute("UPDATE store_ids SET since = since - 3600000000")


class TestTokens:
    def test_rights(self, filled: Cas) -> None:
        name = STEPS[0]["new_xorbs"][0]
        for method, path in (
            ("POST", f"v1/xorb-grants/default/{name}"),
            ("POST", f"v1/xorb-commits/default/{name}/grant/x"),
            ("POST", f"v1/xorbs/default/{name}"),
            ("POST", "v1/shards"),
            ("POST", "v2/shards"),
        ):
            assert filled.call(method, path, b"{}", token=filled.read).status == 403
            assert filled.call(method, path, b"{}", token="").status == 401
            assert filled.call(method, path, b"{}", token="xet1.AAAA").status == 401
            assert filled.call(method, path, b"{}", token=filled.write[:-3] + "AAA").status == 401
        for path in (f"v1/chunks/default/{name}", f"v2/reconstructions/{name}", f"v1/reconstructions/{name}"):
            assert filled.call("GET", path, token="").status == 401
            assert filled.call("GET", path, token=filled.read).status == 404
            assert filled.call("GET", path, token=filled.write).status == 404

    def test_of_another_store(self, filled: Cas, own_store: CasServer) -> None:
        assert filled.call("GET", "v1/chunks/default/" + "1" * 64, token=Cas(own_store.url).read).status == 401

    def test_they_outlive_a_restart(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        upload_vectors(cas)
        name = FACTS["files"]["rand1m"]["xet_hash"]
        fetch = cas.reconstruction(name).json()["xorbs"].popitem()[1][0]
        own_store.kill()
        own_store.start()
        assert cas.reconstruction(name).status == 200
        assert cas.fetch(fetch["url"], 0, 999).status == 206

    def test_a_bucket_reads_only_what_it_has(self, store: CasServer, filled: Cas) -> None:
        stranger = Cas(store.url, "bucket:stranger")
        name = FACTS["files"]["text300k"]["xet_hash"]
        assert stranger.reconstruction(name).status == 404
        assert stranger.call("HEAD", f"v1/files/{name}").status == 404
        assert filled.reconstruction(name).status == 200


class TestUnknown:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])
    @pytest.mark.parametrize("path", ["", "v3/shards", "v1/xorbs", "v1/xorbs/default", "v9", "v1/shards/x", "../../x"])
    def test_is_404_with_any_method(self, filled: Cas, method: str, path: str) -> None:
        assert filled.call(method, path, b"" if method != "GET" else None).status == 404

    def test_methods(self, filled: Cas) -> None:
        for method, path in (("DELETE", "v2/shards"), ("PUT", "v1/shards"), ("GET", "v1/xorbs/default/" + "0" * 64)):
            assert filled.call(method, path).status == 404


def small_xorb(*chunks: bytes) -> tuple[str, bytes]:
    builder = XorbBuilder()
    for chunk in chunks or (os.urandom(5000), os.urandom(9000)):
        builder.add(chunk)
    built = builder.finish()
    return hash_to_text(built.facts.xorb_hash), built.body


class TestBadXorbs:
    def refused(self, cas: Cas, name: str, body: bytes) -> None:
        granted = cas.grant(name, body)
        assert granted.status == 201
        assert cas.put(granted.json()["url"], body).status == 400
        commit = cas.call("POST", f"v1/xorb-commits/default/{name}/grant/{granted.json()['id']}")
        assert commit.status == 404
        assert cas.call("POST", f"v1/xorbs/default/{name}", body).status == 400
        assert cas.call("HEAD", f"v1/xorbs/default/{name}").status == 404

    def test_bodies_that_are_not_that_xorb(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        name, body = small_xorb()
        other, _ = small_xorb()
        bomb = (b"\x00" + (300).to_bytes(3, "little") + b"\x01" + (131072).to_bytes(3, "little") + bytes(300)) * 3
        for wrong_name, wrong in (
            (other, body),
            (name, body[:-1]),
            (name, body + b"\0"),
            (name, body[:100] + bytes([body[100] ^ 1]) + body[101:]),
            (name, b"\x01" + body[1:]),
            (name, b"XETBLOB" + body),
            (name, bytes(5000)),
            (name, os.urandom(5000)),
            (name, bomb),
            (name, (b"\x00\x01\x00\x00\x00\x01\x00\x00x") * 8193),
        ):
            self.refused(cas, wrong_name, wrong)
        assert not list((own_store.directory / "objects" / "objects").rglob("*-*"))
        assert not list((own_store.directory / "objects" / "staging").iterdir())

    def test_what_differs_from_the_grant(self, filled: Cas) -> None:
        name, body = small_xorb()
        granted = filled.grant(name, body).json()
        assert filled.put(granted["url"], body[:-1]).status == 400
        assert filled.put(granted["url"], body + b"x").status == 400
        assert filled.put(granted["url"][:-5] + "AAAAA", body).status == 404
        assert filled.put(granted["url"] + "A" * 500, body).status == 404
        wrong = filled.grant(name, body, checksum={"algo": "crc64nvme", "value": "1"}).json()
        assert filled.put(wrong["url"], body).status == 400
        assert filled.call("HEAD", f"v1/xorbs/default/{name}").status == 404
        assert filled.put(granted["url"], body).status == 200
        assert filled.put(granted["url"], body).status == 200

    def test_grants_that_make_no_sense(self, filled: Cas) -> None:
        name, body = small_xorb()
        for changes in (
            {"length": 0},
            {"length": -1},
            {"length": True},
            {"length": 1e9},
            {"length": "7"},
            {"length": 10**12},
            {"length": float("nan")},
            {"checksum": {"algo": "crc64nvme", "value": 7}},
            {"checksum": {"algo": "crc64nvme", "value": "-1"}},
            {"checksum": {"algo": "crc64nvme", "value": str(1 << 64)}},
        ):
            assert filled.grant(name, body, **changes).status == 400
        for changes in ({"checksum": None}, {"checksum": {"algo": "md5", "value": "1"}}):
            assert filled.grant(name, body, **changes).status == 404
        for junk in (b"", b"[]", b"{", b"null", b"[" * 5000, b'{"length":' + b"9" * 5000 + b"}", b"\xff"):
            assert filled.call("POST", f"v1/xorb-grants/default/{name}", junk).status == 400
        assert filled.call("POST", f"v1/xorb-grants/default/{name}", b" " * 20_000).status in (400, 413)

    @pytest.mark.parametrize(
        "name", ["x", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "%00" * 64, "%C3%A9" * 32, "0" * 5000]
    )
    def test_names_that_are_none(self, filled: Cas, name: str) -> None:
        assert filled.call("GET", f"v1/chunks/default/{name}").status == 400
        assert filled.call("GET", f"v2/reconstructions/{name}").status == 400
        assert filled.call("HEAD", f"v1/xorbs/default/{name}").status == 400
        assert filled.call("POST", f"v1/xorbs/default/{name}", b"x").status == 400
        assert filled.call("GET", f"data/{name}/abcd").status in (400, 403)

    def test_a_footer_is_left_out(self, filled: Cas) -> None:
        from runstead.xet.xorb_footer import write_footer

        builder = XorbBuilder()
        for _ in range(20):
            builder.add(os.urandom(10_000))
        built = builder.finish()
        name = hash_to_text(built.facts.xorb_hash)
        body = built.body + write_footer(built.facts)
        assert filled.call("POST", f"v1/xorbs/default/{name}", body).json() == {"was_inserted": True}
        assert filled.call("POST", f"v1/xorbs/default/{name}", body).json() == {"was_inserted": False}
        assert int(filled.call("HEAD", f"v1/xorbs/default/{name}").headers["content-length"]) == len(built.body)

    def test_a_sender_that_goes_away_leaves_nothing(self, own_store: CasServer) -> None:
        import socket
        import time

        cas = Cas(own_store.url)
        name, body = small_xorb(*(os.urandom(100_000) for _ in range(50)))
        path = "/" + cas.grant(name, body).json()["url"].split("/", 3)[3]
        with socket.create_connection(("127.0.0.1", own_store.port)) as connection:
            head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body[: len(body) // 2])
            time.sleep(0.3)
        deadline = time.monotonic() + 10
        while list((own_store.directory / "objects" / "staging").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not list((own_store.directory / "objects" / "staging").iterdir())


class TestBadShards:
    def said(self, cas: Cas, shard: bytes) -> str:
        line = cas.upload_shard(shard)
        assert line["type"] == "error" and line["retryable"] is False
        return line["message"]

    def test_bytes_that_are_no_shard(self, filled: Cas) -> None:
        good = (VECTORS / "shards" / "01_batch.shard").read_bytes()
        for wrong in (b"", b"x", good[:47], good[:-1], good[:300], good + b"x", b"\0" * 48, os.urandom(3000)):
            assert self.said(filled, wrong)
            assert filled.call("POST", "v1/shards", wrong).status == 400

    def test_every_changed_byte_is_seen(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        for name in STEPS[1]["new_xorbs"]:
            cas.upload_xorb(name, xorb_body(name))
        good = (VECTORS / STEPS[1]["shard"]).read_bytes()
        unused = 0
        for at in range(0, len(good), 7):
            wrong = bytearray(good)
            wrong[at] ^= 0x10
            if cas.upload_shard(bytes(wrong))["type"] == "result":
                unused += 1
        assert unused < 60  # reserved fields, and the stored size that clients leave at zero
        assert cas.reconstruction(FACTS["files"]["rand1m"]["xet_hash"]).status == 200

    def test_xorbs_that_are_not_here(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        for step in STEPS[:3]:
            said = self.said(cas, (VECTORS / step["shard"]).read_bytes())
            assert "run the command again" in said
        assert cas.reconstruction(FACTS["files"]["mix"]["xet_hash"]).status == 404

    def test_absurd_counts(self, filled: Cas) -> None:
        good = (VECTORS / "shards" / "02_rand1m.shard").read_bytes()
        for count in (0, 1 << 20, 0xFFFFFFFF):
            wrong = good[: 48 + 36] + count.to_bytes(4, "little") + good[48 + 40 :]
            assert self.said(filled, wrong)

    def test_the_older_route(self, filled: Cas) -> None:
        good = (VECTORS / "shards" / "01_batch.shard").read_bytes()
        assert filled.call("POST", "v1/shards", good).json() == {"result": 1}


class TestDamage:
    def test_a_flipped_bit_is_an_error_and_never_wrong_bytes(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        upload_vectors(cas)
        facts = FACTS["files"]["rand1m"]
        content = INPUTS["rand1m"]()
        xorb = facts["terms"][0]["xorb"] if "xorb" in facts["terms"][0] else STEPS[1]["new_xorbs"][0]
        path = next((own_store.directory / "objects" / "objects").rglob(f"{xorb}-*"))
        good = path.read_bytes()
        for at in (100, 65_536, 400_000, len(good) - 1):
            bad = bytearray(good)
            bad[at] ^= 4
            path.write_bytes(bad)
            fetch = cas.reconstruction(facts["xet_hash"]).json()["xorbs"][xorb][0]
            for first in range(0, len(good), 200_000):
                last = min(first + 199_999, len(good) - 1)
                try:
                    got = cas.fetch(fetch["url"], first, last)
                except Exception:
                    continue
                assert got.status == 410 or got.body == good[first : last + 1]
            got = b""
            try:
                got = cas.plain(facts["xet_hash"])
            except Exception:
                continue
            assert got != content and content.startswith(got)

    def test_a_missing_object_is_an_error(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        upload_vectors(cas)
        for path in (own_store.directory / "objects" / "objects").rglob("*-*"):
            path.unlink()
        fetch = cas.reconstruction(FACTS["files"]["rand1m"]["xet_hash"]).json()["xorbs"].popitem()[1][0]
        assert cas.fetch(fetch["url"], 0, 10).status == 410


class TestMany:
    def test_sixteen_uploads_at_once_need_little_memory(self, own_store: CasServer) -> None:
        cas = Cas(own_store.url)
        bodies = [small_xorb(*(os.urandom(131_072) for _ in range(120))) for _ in range(4)]

        def send(number: int) -> None:
            name, body = bodies[number % 4] if number % 2 else small_xorb(*(os.urandom(131_072) for _ in range(120)))
            assert cas.upload_xorb(name, body) in (200, 201)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(send, range(32)))
        assert own_store.process is not None
        status = Path(f"/proc/{own_store.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak < 300_000, f"{peak} kB"


def test_the_largest_shards_need_little_memory(own_store: CasServer) -> None:
    import struct

    cas = Cas(own_store.url)
    top = (VECTORS / "shards" / "01_batch.shard").read_bytes()[:48]
    end = (b"\xff" * 32 + bytes(16)) * 2
    one = struct.Struct("<32sII8x32s4xIII32s16x")
    files = b"".join(one.pack(os.urandom(32), 1 << 31, 1, os.urandom(32), 9, 0, 1, bytes(32)) for _ in range(460_000))
    empty = struct.pack("<32sII8x", bytes(32), 1 << 31, 0) * 1_390_000
    for body in (top + files + end, top + empty + end, os.urandom(1 << 26), top + bytes((1 << 26) - 48)):
        assert len(body) <= 1 << 26
        assert cas.upload_shard(body)["type"] == "error"
    assert own_store.process is not None
    status = Path(f"/proc/{own_store.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 300_000, f"{peak} kB"
