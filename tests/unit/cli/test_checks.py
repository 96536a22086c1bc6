"""What `runstead doctor` looks at."""

import http.server
import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runstead.cli import client_checks, doctor, machine_checks, storage_checks
from runstead.cli.findings import Finding, Level
from runstead.cli.main import app
from runstead.kit.settings import DatabaseSettings, ExecutorSettings, ServerSettings, Settings


def at(path: Path, port: int = 0) -> Settings:
    return Settings(server=ServerSettings(data_dir=path, port=port))


def worst(findings: list[Finding]) -> Level:
    return max((finding.level for finding in findings), key=list(Level).index)


def test_a_fresh_data_directory_is_fine_and_is_not_made(tmp_path: Path) -> None:
    settings = at(tmp_path / "not" / "yet")
    assert worst(storage_checks.data_dir(settings)) in (Level.OK, Level.MISSING)
    assert worst(storage_checks.database(settings)) is Level.OK
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert worst(storage_checks.data_dir(at(tmp_path / "file"))) is Level.FAILED


def test_file_system_of_a_path() -> None:
    if sys.platform == "linux":
        assert storage_checks.file_system(Path("/proc")) == "proc"


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "runstead.db").close()
    assert worst(storage_checks.database(at(tmp_path))) is Level.OK
    (tmp_path / "runstead.db").write_bytes(b"not a database" * 1000)
    assert worst(storage_checks.database(at(tmp_path))) is Level.FAILED


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://joe:hunter2@127.0.0.1:1/x"
    settings = Settings(server=ServerSettings(data_dir=tmp_path), database=DatabaseSettings(url=url))
    (finding,) = storage_checks.database(settings)
    assert finding.level is Level.FAILED
    assert "hunter2" not in finding.text


def test_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert worst(machine_checks.port(at(tmp_path, port))) is Level.FAILED
    assert worst(machine_checks.port(at(tmp_path, port))) is Level.OK


def test_passwords_handed_to_jobs_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://joe:hunter2@index.example/simple")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    settings = Settings(executor=ExecutorSettings(pass_environment=("UV_DEFAULT_INDEX", "HTTPS_PROXY", "UNSET_HERE")))
    findings = machine_checks.handed_over(settings)
    assert [finding.level for finding in findings] == [Level.NOTE, Level.MISSING]
    assert "UV_DEFAULT_INDEX" in findings[1].text
    assert all("hunter2" not in finding.text for finding in findings)


class Whoami(http.server.BaseHTTPRequestHandler):
    """Answers as a server that knows one token."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer hf_known"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"name": "alice"} if known else {}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Whoami)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()
    serving.server_close()


def test_endpoint(server: str, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    cases = [
        ({}, Level.NOTE, "not set"),
        ({"HF_ENDPOINT": server, "HF_TOKEN": "hf_known"}, Level.OK, "alice"),
        ({"HF_ENDPOINT": server, "HF_TOKEN": "hf_other"}, Level.MISSING, "does not know"),
        ({"HF_ENDPOINT": server}, Level.MISSING, "does not know"),
        ({"HF_ENDPOINT": "http://127.0.0.1:1", "HF_TOKEN": "hf_known"}, Level.NOTE, "nobody answers"),
        ({"HF_ENDPOINT": "localhost:8000"}, Level.MISSING, "no http"),
    ]
    for environment, level, text in cases:
        (finding,) = client_checks.endpoint(Settings(), {**home, **environment})
        assert finding.level is level
        assert text in finding.text
        assert "hf_known" not in finding.text
    (tmp_path / "token").write_text("hf_known\n")
    (finding,) = client_checks.endpoint(Settings(), {**home, "HF_ENDPOINT": server})
    assert finding.level is Level.OK


def test_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert client_checks.client()[0].level is Level.MISSING
    hf = tmp_path / "hf"
    for version, level in (("2.4.0", Level.OK), ("0.20.1", Level.MISSING)):
        hf.write_text(f"#!/bin/sh\necho 'huggingface_hub version: {version}'\n")
        hf.chmod(0o755)
        assert client_checks.client()[0].level is level


def test_exit_code_says_whether_serve_would_work(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Finding(Level.MISSING, "a", "b"), Finding(Level.FAILED, "c", "d", "e")
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: [good],))
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: [good], lambda _: [bad]))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["works"] is False
    assert said["findings"][-1] == {"level": "failed", "subject": "c", "text": "d", "remedy": "e"}


def test_an_examination_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: [][0],))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "IndexError" in done.stdout


def test_python_and_kernel_are_named() -> None:
    assert "Python" in {finding.subject for finding in machine_checks.python()}
    assert machine_checks.kernel()[0].subject == "system"


def test_doctor_runs_on_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runstead.cli", "doctor", "--port", "0", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=100)
    said = json.loads(done.stdout)
    assert done.returncode == 0, said
    subjects = {finding["subject"] for finding in said["findings"]}
    assert {"Python", "system", "data directory", "database", "executor", "flavors", "address", "client"} <= subjects
