"""What pages write: amounts, commands to copy, filters, and text that stays text."""

import shlex
from datetime import UTC, datetime

import pytest
from starlette.datastructures import QueryParams

from runstead.model.errors import Invalid
from runstead.model.jobs import Initiator, Job, JobSpec, Phase, Stage
from runstead.model.volumes import Volume, VolumeKind
from runstead.web import formats
from runstead.web.job_commands import job_commands
from runstead.web.job_filters import read_query
from runstead.web.static_files import StaticFiles
from runstead.web.templates import Templates

AT = datetime(2026, 5, 12, 14, 57, 43, tzinfo=UTC)


def job(stage: Stage = Stage.RUNNING) -> Job:
    spec = JobSpec(
        command=("python", "-c", "print('a b')"),
        flavor="cpu-basic",
        docker_image="python:3.12",
        environment={"A": "x y"},
        secret_names=("TOKEN",),
        labels={"name": "eval", "team": ""},
        timeout_seconds=60,
        volumes=(Volume(VolumeKind.BUCKET, "org/data", "/mnt", path="sub", read_only=True),),
    )
    return Job(
        1, "0" * 24, "n1", "org", "org", "u1", "ada", spec, stage, Phase.RUNNING, None, AT, Initiator("user", "u1")
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.01, "0 s"),
        (0.3, "0.3 s"),
        (9.99, "9 s"),
        (59, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (7200, "2 h"),
        (7260, "2 h 1 min"),
        (86400 * 3 + 3600, "3 d 1 h"),
        (-5, "0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (3 * 10**9, "3 GB")])
def test_sizes(count: int, text: str) -> None:
    assert formats.size(count) == text


def test_commands_can_be_typed_as_they_are() -> None:
    commands = dict(job_commands(job(), is_own=False))
    assert "--namespace org" in commands["Cancel it"]
    words = shlex.split(commands["Run one like it"])
    assert words[-4:] == ["python:3.12", "python", "-c", "print('a b')"]
    assert words[words.index("--env") + 1] == "A=x y"
    assert words[words.index("--volume") + 1] == "hf://buckets/org/data/sub:/mnt:ro"
    assert words[words.index("--secrets") + 1] == "TOKEN"
    assert words[words.index("--name") + 1] == "eval"
    assert "Cancel it" not in dict(job_commands(job(Stage.COMPLETED), is_own=True))


def test_filters_are_read_and_written() -> None:
    query = read_query("/jobs/me", QueryParams("stage=running&label=a%3D1+b%3D&stage="))
    assert query.wanted.stages == {Stage.RUNNING}
    assert query.wanted.labels == {"a": "1", "b": ""}
    assert query.with_stage(None) == "/jobs/me?label=a%3D1&label=b%3D"
    assert query.after("x").endswith("&after=x")
    assert read_query("/jobs/me", QueryParams("")).is_everything


@pytest.mark.parametrize("query", ["stage=NOPE", "label=x", "label==x", "label=<b>=1", "label=a=" + "x" * 101])
def test_wrong_filters_are_refused(query: str) -> None:
    with pytest.raises(Invalid):
        read_query("/jobs/me", QueryParams(query))


def test_values_are_escaped_and_every_page_has_a_nonce_of_its_own() -> None:
    templates = Templates(StaticFiles())
    values = {"visit": None, "status": 404, "title": "t", "message": "<script>x</script>", "next": '"><b>'}
    pages = [templates.page("error.html", values, 404) for _ in range(2)]
    text = bytes(pages[0].body).decode()
    assert "<script>x" not in text
    assert "&lt;script&gt;x" in text
    assert '"><b>' not in text
    policies = [page.headers["content-security-policy"] for page in pages]
    assert policies[0] != policies[1]
    for policy in policies:
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
