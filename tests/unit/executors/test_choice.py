"""Which executor a server gets: what the settings say, else the best that this machine can do."""

from pathlib import Path

import pytest

from runstead.app import executors
from runstead.cli.throwaway import isolated
from runstead.executors.docker import DockerExecutor
from runstead.executors.oci import OciExecutor
from runstead.executors.process import ProcessExecutor
from runstead.kit.settings import Settings, load_settings


def _settings(tmp_path: Path, **flags: str) -> Settings:
    words = {f"executor.{name}": value for name, value in flags.items()}
    return load_settings(flags={**words, "server.data_dir": str(tmp_path)}, environment={}, directory=tmp_path)


@pytest.mark.parametrize(
    ("flags", "lacking", "expected"),
    [
        ({}, None, OciExecutor),
        ({}, "no root", ProcessExecutor),
        ({"isolation": "none"}, None, ProcessExecutor),
        ({"kind": "process"}, None, ProcessExecutor),
        ({"kind": "docker"}, "no root", DockerExecutor),
        ({"kind": "oci"}, "no root", OciExecutor),  # whose opening says why it cannot
    ],
)
def test_settings_choose_and_auto_takes_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], lacking: str | None, expected: type
) -> None:
    monkeypatch.setattr(executors, "container_problem", lambda: lacking)
    settings = _settings(tmp_path, **flags)
    assert type(executors.build_executor(settings, lambda _kind, _job_id: None)) is expected
    reason = executors.no_containers(settings)
    assert (reason is None) == (expected in (OciExecutor, DockerExecutor))
    if not flags:
        assert reason == lacking


def test_a_server_for_one_command_needs_no_images_unless_it_is_told_to(tmp_path: Path) -> None:
    assert isolated(_settings(tmp_path), tmp_path).executor.kind == "process"
    assert isolated(_settings(tmp_path, kind="oci"), tmp_path).executor.kind == "oci"
