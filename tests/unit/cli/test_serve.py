"""`runstead serve` at a terminal: what the first start says, what later ones say, and how it refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def command(data_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "runstead.cli", "serve", "--port", "0", "--data-dir", str(data_dir), *more]


@contextmanager
def served(data_dir: Path, until: str, **variables: str) -> Iterator[str]:
    """Run a server; yield what it printed up to and including the line that begins with `until`."""
    process = subprocess.Popen(
        command(data_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **variables},
    )
    assert process.stdout
    printed = ""
    try:
        for line in process.stdout:
            printed += line
            if line.strip().startswith(until):
                break
        yield printed
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def refused(*arguments: str) -> str:
    done = subprocess.run(list(arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("Error: ")]
    return line


def test_the_token_is_shown_on_the_first_start_and_never_again(tmp_path: Path) -> None:
    with served(tmp_path / "data", "export HF_TOKEN=") as printed:
        (url,) = re.findall(r"^  export HF_ENDPOINT=(http://127\.0\.0\.1:\d+)$", printed, re.MULTILINE)
        (token,) = re.findall(r"^  export HF_TOKEN=(hf_[A-Za-z0-9]{34,})$", printed, re.MULTILINE)
        assert printed.count(token) == 1
        request = urllib.request.Request(f"{url}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
    with served(tmp_path / "data", "A client needs") as printed:
        assert "hf_" not in printed
        assert f"--data-dir {tmp_path / 'data'}" in printed
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert kept
    assert [path for path in kept if token.encode() in path.read_bytes()] == []


def test_accounts_may_be_managed_while_it_runs(tmp_path: Path) -> None:
    with served(tmp_path / "data", "export HF_TOKEN=") as printed:
        (url,) = re.findall(r"HF_ENDPOINT=(\S+)", printed)
        on = ["--data-dir", str(tmp_path / "data")]
        cli = [sys.executable, "-m", "runstead.cli"]
        subprocess.run([*cli, "user", "add", "zoe", *on], check=True, capture_output=True)
        made = subprocess.run([*cli, "token", "add", "zoe", *on], check=True, capture_output=True, text=True)
        request = urllib.request.Request(
            f"{url}/api/whoami-v2", headers={"Authorization": f"Bearer {made.stdout.strip()}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert b"zoe" in answer.read()


def test_a_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    with served(tmp_path / "data", "export HF_TOKEN="):
        assert str(tmp_path / "data") in refused(*command(tmp_path / "data"))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(*command(tmp_path / "file"))


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused(*command(tmp_path / "data", "--port", port))


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with served(tmp_path / "data", "export HF_TOKEN="):
        pass
    import sqlite3

    database = sqlite3.connect(tmp_path / "data/runstead.db")
    tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
    if "alembic_version" not in tables:
        pytest.skip("this database does not keep its version so")
    database.execute("update alembic_version set version_num = '9999'")
    database.commit()
    database.close()
    assert "newer" in refused(*command(tmp_path / "data"))


def test_a_bad_flag_is_refused(tmp_path: Path) -> None:
    assert refused(*command(tmp_path / "data", "--jobs-endpoint", "x")).startswith("Error: --jobs-endpoint: ")
