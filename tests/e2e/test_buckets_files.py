"""Files in buckets as Python programs open them: HfFileSystem, and pandas, Polars and DuckDB by way of it."""

import json
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from clients import CLIENTS, Client, make_client

DATAFRAMES = CLIENTS / "dataframes" / "bin" / "python"
NUMBERS = count()


@pytest.fixture
def bucket(newest: Client) -> str:
    name = f"{newest.server.owner}/files-{next(NUMBERS)}"
    newest.hf("buckets", "create", name)
    return name


def run(client: Client, bucket: str, code: str, python: Path | None = None) -> Any:
    """Run a program that has a file system `fs`, the root of a bucket `root`, and returns by `out(value)`."""
    prelude = f"""
import json, os, time
from huggingface_hub import HfApi, HfFileSystem
def out(value): print("OUT:" + json.dumps(value, default=str))
fs, api, bucket, root = HfFileSystem(), HfApi(), {bucket!r}, {"buckets/" + bucket!r}
"""
    done = subprocess.run(
        [python or client.bin / "python", "-c", prelude + code],
        env=client.environment,
        text=True,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    said = [line[4:] for line in done.stdout.splitlines() if line.startswith("OUT:")]
    return json.loads(said[-1]) if said else None


def test_a_file_system(newest: Client, bucket: str) -> None:
    found = run(
        newest,
        bucket,
        """
data = os.urandom(2_000_000)
with fs.open(f"{root}/a/b/r.bin", "wb") as file:
    file.write(data)
fs.pipe({f"{root}/a/one.txt": b"one", f"{root}/a/two.txt": b"two", f"{root}/top.csv": b"x,y"})
with fs.open(f"{root}/a/one.txt", "r") as file:
    text = file.read()
with fs.open(f"{root}/a/b/r.bin", "rb") as file:
    whole = file.read() == data
    file.seek(1_500_000)
    middle = file.read(1000) == data[1_500_000:1_501_000]
    file.seek(-10, 2)
    end = file.read() == data[-10:]
    file.seek(3)
    start = file.read(5) == data[3:8]
with fs.open(f"{root}/a/b/r.bin", "rb", block_size=0) as file:
    streamed = b"".join(iter(lambda: file.read(300_000), b"")) == data
fs.get(f"{root}/a", "DOWN", recursive=True)
copied = open("DOWN/b/r.bin", "rb").read() == data
fs.mv(f"{root}/a/two.txt", f"{root}/moved/2.txt")
fs.cp_file(f"{root}/top.csv", f"{root}/moved/top.csv")
fs.rm(f"{root}/a/one.txt")
out(dict(
    read=[text, whole, middle, end, start, streamed, copied],
    ls=[name.removeprefix(root) for name in fs.ls(root, detail=False)],
    found=[name.removeprefix(root) for name in fs.find(root)],
    glob=[name.removeprefix(root) for name in fs.glob(f"{root}/**/*.txt")],
    size=fs.info(f"{root}/a/b/r.bin")["size"],
    exists=[fs.exists(f"{root}/{name}") for name in ("a/one.txt", "a/b", "moved/2.txt", "nothing")],
    cat=fs.cat_file(f"{root}/a/b/r.bin", start=100, end=200) == data[100:200],
))
""".replace("DOWN", str(newest.home / "down")),
    )
    assert found["read"] == ["one", True, True, True, True, True, True]
    assert found["ls"] == ["/a", "/moved", "/top.csv"]
    assert found["found"] == ["/a/b/r.bin", "/moved/2.txt", "/moved/top.csv", "/top.csv"]
    assert found["glob"] == ["/moved/2.txt"]
    assert found["size"] == 2_000_000
    assert found["exists"] == [False, True, True, False]
    assert found["cat"]


def test_what_is_not_there(newest: Client, bucket: str) -> None:
    found = run(
        newest,
        bucket,
        """
def name_of(action):
    try:
        action()
    except Exception as error:
        return [cls.__name__ for cls in type(error).__mro__]
from huggingface_hub.errors import BucketNotFoundError
out([
    name_of(lambda: fs.open(f"{root}/absent").read()),
    name_of(lambda: fs.ls(f"{root}/absent")),
    name_of(lambda: fs.ls(root + "-absent")),
    name_of(lambda: api.bucket_info(bucket + "-absent")),
    name_of(lambda: list(api.list_bucket_tree(bucket + "-absent"))),
    name_of(lambda: HfApi(token=False).bucket_info(bucket + "-absent")),
    name_of(lambda: api.batch_bucket_files(bucket + "-absent", add=[(b"x", "x")])),
    name_of(lambda: api.batch_bucket_files(bucket, copy=[("bucket", bucket, "1" * 64, "x")])),
])
""",
    )
    assert "FileNotFoundError" in found[0]
    assert "FileNotFoundError" in found[1]
    assert "FileNotFoundError" in found[2]
    assert found[3][0] == found[4][0] == found[5][0] == "BucketNotFoundError"
    assert found[6] is not None
    assert found[7][0] == "BucketBatchError"


def test_listings_follow_what_others_change(newest: Client, bucket: str) -> None:
    found = run(
        newest,
        bucket,
        """
live = HfFileSystem(live_follow=True)
first = live.ls(root, detail=False)
time.sleep(1.5)  # for the stream to open
waits = []
for number in range(5):
    api.batch_bucket_files(bucket, add=[(b"x", f"f{number}")])
    began = time.perf_counter()
    while f"{root}/f{number}" not in live.ls(root, detail=False) and time.perf_counter() - began < 5:
        time.sleep(0.005)
    waits.append(time.perf_counter() - began)
api.batch_bucket_files(bucket, delete=["f0"])
began = time.perf_counter()
while f"{root}/f0" in live.ls(root, detail=False) and time.perf_counter() - began < 5:
    time.sleep(0.005)
out([first, waits, time.perf_counter() - began])
""",
    )
    assert found[0] == []
    assert sorted(found[1])[2] < 0.5, found
    assert found[2] < 1, found


def test_dataframes_read_parquet_by_ranges(newest: Client, bucket: str, tmp_path: Path) -> None:
    if not DATAFRAMES.exists():
        pytest.fail("no environment with pandas, Polars and DuckDB: run `make test` once, which installs it")
    client = make_client(newest.version, newest.server, tmp_path)
    found = run(
        client,
        bucket,
        """
import duckdb, pandas, polars, numpy
uri = f"hf://buckets/{bucket}/tables/t.parquet"
rows = 200_000
table = pandas.DataFrame({
    "n": numpy.arange(rows), "group": numpy.arange(rows) % 7,
    **{f"noise{i}": numpy.random.default_rng(i).random(rows) for i in range(6)},
})
table.to_parquet(uri, row_group_size=20_000)
size = fs.info(uri)["size"]

from huggingface_hub import hf_file_system
read = []
fetch = hf_file_system.HfFileSystemFile._fetch_range
def counted(self, start, end):
    data = fetch(self, start, end)
    read.append(len(data))
    return data
hf_file_system.HfFileSystemFile._fetch_range = counted

def opened():
    return fs.open(uri, "rb", cache_type="none")  # so that what is read is what was asked for

back = pandas.read_parquet(opened(), columns=["n", "group"])
pandas_bytes, read[:] = sum(read), []
whole = pandas.read_parquet(uri).equals(table)
read.clear()
lazy = polars.read_parquet(opened(), columns=["n"], use_pyarrow=True)["n"].sum()
polars_bytes, read[:] = sum(read), []
duckdb.register_filesystem(fs)
query = f"select \\"group\\", count(*), sum(n) from '{uri}' where n < 1000 group by 1 order by 1"
groups = duckdb.sql(query).fetchall()
duckdb_bytes, read[:] = sum(read), []
fs.pipe({f"hf://buckets/{bucket}/csv/{i}.csv": f"a,b\\n{i},x\\n".encode() for i in range(3)})
csv = duckdb.sql(f"select sum(a) from 'hf://buckets/{bucket}/csv/*.csv'").fetchall()
out(dict(
    size=size, pandas=int(back.n.sum()), whole=whole, polars=int(lazy), groups=groups, csv=csv,
    bytes=[pandas_bytes, polars_bytes, duckdb_bytes],
))
""",
        DATAFRAMES,
    )
    total = sum(range(200_000))
    assert found["pandas"] == found["polars"] == total
    assert found["whole"]
    assert [row[1] for row in found["groups"]] == [143] * 6 + [142]
    assert sum(row[2] for row in found["groups"]) == sum(range(1000))
    assert found["csv"] == [[3]]
    assert found["size"] > 8_000_000
    assert all(0 < some < found["size"] / 2 for some in found["bytes"]), (found["size"], found["bytes"])
