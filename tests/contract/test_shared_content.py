"""Several servers over one database and one object store: what one takes in, the others have."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients import Client, Server, make_client
from s3_server import s3_server


@pytest.fixture
def two(tmp_path: Path, new_postgres_database: Callable[[], str]) -> Iterator[tuple[Client, Client]]:
    """Two servers with one key, and a client of each."""
    with s3_server("content") as endpoint:
        environment = {
            "RUNSTEAD_DATABASE_URL": new_postgres_database(),
            "RUNSTEAD_STORAGE_URL": "s3://content/some/prefix",
            "RUNSTEAD_STORAGE_ENDPOINT": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        first = Server(tmp_path / "first", environment=environment).start()
        second = Server(tmp_path / "second", environment=environment, token=first.token)
        second.data_dir.mkdir(mode=0o700)
        shutil.copy(first.data_dir / "secret.key", second.data_dir)
        second.start()
        yield make_client("2.4.0", first, tmp_path / "a"), make_client("2.4.0", second, tmp_path / "b")
        first.stop()
        second.stop()


@pytest.mark.timeout(300)
def test_what_one_server_takes_in_the_others_have(two: tuple[Client, Client], tmp_path: Path) -> None:
    one, other = two
    folder = f"hf://buckets/{one.server.owner}/shared"
    data = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(data)
    one.hf("buckets", "create", "shared", "--quiet")
    one.hf("buckets", "cp", str(tmp_path / "f"), f"{folder}/f")
    other.hf("buckets", "cp", f"{folder}/f", str(tmp_path / "g"))
    assert (tmp_path / "g").read_bytes() == data

    # The same content at the same time through both, into the same bucket.
    sending = [c.popen("buckets", "cp", str(tmp_path / "f"), f"{folder}/{n}") for n, c in enumerate((one, other) * 2)]
    for process in sending:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
    assert json.loads(other.hf("buckets", "info", f"{one.server.owner}/shared", "--json").stdout)["total_files"] == 5
    for client in two:
        environment = {**os.environ, **client.server.environment}
        checked = client.server.run("fsck", "--json", env=environment)
        assert json.loads(checked.stdout)["damages"] == []
        assert json.loads(client.server.run("gc", "--json", env=environment).stdout)["files"] == 0

    one.server.kill()
    other.hf("buckets", "cp", f"{folder}/3", str(tmp_path / "h"))
    assert (tmp_path / "h").read_bytes() == data
    other.hf("buckets", "rm", f"{one.server.owner}/shared/f", "--yes")
    one.server.start()
    gone = one.hf("buckets", "cp", f"{folder}/f", str(tmp_path / "i"), check=False)
    assert gone.returncode != 0
    one.hf("buckets", "cp", f"{folder}/0", str(tmp_path / "j"))
    assert (tmp_path / "j").read_bytes() == data
