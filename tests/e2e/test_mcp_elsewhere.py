"""The program beside the agent at an endpoint that is not ours: a stand-in that has what the hosted Hub documents."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from agents import Agent, connected, text_of
from clients import Server
from hosted_hub import TOKEN, HostedHub, hosted_hub


@pytest.fixture
def hub() -> Iterator[HostedHub]:
    with hosted_hub() as found:
        yield found


def agent_at(hub: HostedHub, home: Path) -> AbstractAsyncContextManager[Agent]:
    return connected("stdio", Server(home / "none", url=hub.url, token=TOKEN), home)


async def test_every_operation_works_with_what_the_hub_has(hub: HostedHub, tmp_path: Path) -> None:
    async with agent_at(hub, tmp_path) as agent:
        await look_after_jobs(agent, hub)
        await look_after_schedules(agent, hub)
    assert hub.unknown == []


async def look_after_jobs(agent: Agent, hub: HostedHub) -> None:
    who = (await agent.call("hf_whoami", {})).structured_content
    assert (who["name"], who["endpoint"], who["jobs_namespaces"]) == ("mia", hub.url, ["mia"])
    ran = await agent.jobs("run", command="true", secrets={"HF_TOKEN": "$HF_TOKEN"}, labels={"a": "1"})
    job = ran["job"]
    assert (job["status"]["stage"], ran["logs"]) == ("COMPLETED", ["hello", "from the Hub"])
    assert job["url"] == f"{hub.url}/jobs/mia/{job['id']}"
    assert not {"cost_usd", "failure_class", "exit_code"} & {*job, *job["status"]}, "the Hub says none of these"
    assert TOKEN not in str(ran)
    one = {"job_id": job["id"]}
    assert (await agent.jobs("logs", **one, tail=1))["lines"] == ["from the Hub"]
    assert (await agent.jobs("wait", **one))["job"]["status"]["stage"] == "COMPLETED"
    assert (await agent.jobs("inspect", **one))["inspections"][0]["status"] == "success"
    assert (await agent.jobs("cancel", **one))["job"]["id"] == job["id"]
    assert (await agent.jobs("stats", **one))["kind"] == "job"
    assert (await agent.jobs("labels", **one, name="first"))["job"]["labels"] == {"a": "1", "name": "first"}
    again = (await agent.jobs("rerun", **one))["job"]
    assert [found["id"] for found in (await agent.jobs("ps", all=True))["jobs"]] == [again["id"], job["id"]]
    assert (await agent.jobs("hardware"))["flavors"][0]["usd_per_minute"] == 0.000167


async def look_after_schedules(agent: Agent, hub: HostedHub) -> None:
    made = (await agent.jobs("scheduled run", schedule="@daily", command="true"))["scheduled_job"]
    one = {"scheduled_job_id": made["id"]}
    assert (await agent.jobs("scheduled suspend", **one))["action"] == "suspended"
    assert (await agent.jobs("scheduled resume", **one))["action"] == "resumed"
    moved = (await agent.jobs("scheduled reschedule", **one, schedule="@hourly"))["scheduled_job"]
    assert (moved["schedule"], moved["next_run"]) == ("@hourly", "2026-05-12T14:57:43.000Z")
    named = (await agent.jobs("scheduled labels", **one, name="nightly"))["scheduled_job"]
    assert named["job_spec"]["labels"] == {"name": "nightly"}
    assert (await agent.jobs("scheduled inspect", **one))["scheduled_job"] == named
    run = (await agent.jobs("scheduled trigger", **one))["job"]
    assert (await agent.jobs("wait", job_id=run["id"]))["job"]["status"]["stage"] == "COMPLETED"
    assert len((await agent.jobs("scheduled ps"))["scheduled_jobs"]) == 1
    assert (await agent.jobs("scheduled delete", **one))["action"] == "deleted"
    assert hub.schedules == {}


async def test_what_an_endpoint_does_not_have_is_said(hub: HostedHub, tmp_path: Path) -> None:
    async with agent_at(hub, tmp_path) as agent:
        for _ in range(2):
            args = {"command": "true", "idempotency_key": "once"}
            found = await agent.call("hf_jobs", {"operation": "run", "args": args})
            assert "knows no idempotency_key" in text_of(found)
        assert len(hub.jobs) == 2

        script = (await agent.jobs("uv", script="print(1)\n", detach=True))["script"]
        assert script["transport"] == "environment"
        assert "the bucket mia/jobs-artifacts cannot be had" in script["reason"]

        lost, steps = await agent.refused("labels", job_id="f" * 24, name="x")
        assert (lost["status"], lost["message"]) == (404, "Job not found")
        assert '"all": true' in steps[0]
        hub.lacking = "/labels"
        lacking, steps = await agent.refused("labels", job_id=next(iter(hub.jobs)), name="x")
        assert (lacking["status"], lacking["message"]) == (501, "this endpoint does not have that operation")
        assert "do without the operation" in steps[0]
