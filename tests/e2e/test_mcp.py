"""The tools for agents against a real server, with the official MCP client over each transport."""

import asyncio
import json
import re
from contextlib import AbstractAsyncContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import pytest
from mcp import MCPError

from agents import TRANSPORTS, Agent, connected, links_of, text_of
from calls import Api
from clients import Client, Server

SECRET = "s3cr3t-of-mine"


class Connect(Protocol):
    def __call__(self, token: str | None = None) -> AbstractAsyncContextManager[Agent]: ...


@pytest.fixture(params=TRANSPORTS)
def connect(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Connect:
    """Connect to the tools over each transport."""

    def run(token: str | None = None) -> AbstractAsyncContextManager[Agent]:
        return connected(request.param, server, tmp_path, token)

    return run


@pytest.fixture
def agent_at(server: Server, tmp_path: Path) -> Connect:
    """Connect to the tools over one transport, for what does not depend on it."""

    def run(token: str | None = None) -> AbstractAsyncContextManager[Agent]:
        return connected("http", server, tmp_path, token)

    return run


def lines(outcome: dict[str, Any]) -> list[str]:
    """The log of an outcome, without what the executor says of itself."""
    return [line for line in outcome["logs"] if not line.startswith("runstead: ")]


async def test_the_tools_say_what_they_are(connect: Connect) -> None:
    async with connect() as agent:
        tools = {tool.name: tool for tool in (await agent.client.list_tools()).tools}
        assert set(tools) == {"hf_jobs", "hf_whoami"}
        jobs, whoami = tools["hf_jobs"].annotations, tools["hf_whoami"].annotations
        assert jobs is not None and whoami is not None
        assert (jobs.read_only_hint, jobs.destructive_hint, jobs.idempotent_hint) == (False, True, False)
        assert (whoami.read_only_hint, whoami.destructive_hint, whoami.idempotent_hint) == (True, False, True)
        assert all(tool.output_schema and tool.output_schema["type"] == "object" for tool in tools.values())
        assert agent.client.instructions and "hf_jobs" in agent.client.instructions


async def test_called_empty_it_explains_itself(connect: Connect) -> None:
    async with connect() as agent:
        found = await agent.call("hf_jobs", {})
        assert not found.is_error
        operations = found.structured_content["outcome"]["available_operations"]
        assert {"run", "uv", "ps", "logs", "inspect", "cancel", "wait", "stats", "hardware"} < set(operations)
        of_schedules = ("run", "uv", "ps", "inspect", "suspend", "resume", "delete", "trigger", "reschedule", "labels")
        assert {f"scheduled {one}" for one in of_schedules} < set(operations)
        for name in operations:
            assert f"`{name}`" in text_of(found)


async def test_every_operation_has_help_with_an_example(agent_at: Connect) -> None:
    async with agent_at() as agent:
        usage = await agent.call("hf_jobs", {})
        for name in usage.structured_content["outcome"]["available_operations"]:
            outcome = await agent.jobs(name, help=True)
            assert (outcome["kind"], outcome["operation"], outcome["reason"]) == ("help", name, "requested")
            example = re.search(r"```json\n(.*?)```", outcome["instructions"], re.DOTALL)
            assert example and json.loads(example[1])["operation"] == name
        missing = await agent.jobs("logs")
        assert missing["reason"] == "missing_arguments"
        assert "`job_id` (required)" in missing["instructions"]


async def test_run_waits_tells_how_far_it_is_and_gives_the_log(connect: Connect) -> None:
    async with connect() as agent:
        found = await agent.call(
            "hf_jobs", {"operation": "run", "args": {"command": ["sh", "-c", "echo one; sleep 1.2; echo two"]}}
        )
        outcome = found.structured_content["outcome"]
        assert outcome["job"]["status"]["stage"] == "COMPLETED"
        assert lines(outcome) == ["one", "two"]
        assert outcome["logs_finished"] and not outcome["logs_truncated"]
        assert outcome["job"]["id"] in text_of(found) and outcome["job"]["url"] in text_of(found)
        gone = [progress for progress, _, _ in agent.progress]
        assert len(gone) >= 2 and gone == sorted(gone) and gone[-1] > gone[0]
        assert {total for _, total, _ in agent.progress} == {30.0}
        assert agent.progress[-1][2] == "two"


async def test_the_wait_is_bounded_and_the_job_goes_on(connect: Connect) -> None:
    async with connect() as agent:
        outcome = await agent.jobs("run", command=["sleep", "60"], wait_seconds=1)
        job_id = outcome["job"]["id"]
        assert outcome["job"]["status"]["stage"] == "RUNNING"
        assert not outcome["logs_finished"]
        waited = await agent.call("hf_jobs", {"operation": "wait", "args": {"job_id": job_id, "wait_seconds": 0.5}})
        assert waited.structured_content["outcome"]["job"]["status"]["stage"] == "RUNNING"
        assert any("wait" in step and job_id in step for step in waited.structured_content["next_steps"])
        ended = await agent.jobs("cancel", job_id=job_id)
        assert ended["job"]["status"]["stage"] == "CANCELED"
        again = await agent.jobs("cancel", job_id=job_id)
        assert again["job"]["status"]["stage"] == "CANCELED"


async def test_wait_ends_with_the_job(connect: Connect) -> None:
    async with connect() as agent:
        job = await agent.jobs("run", command=["sh", "-c", "sleep 1; echo over; exit 4"], detach=True)
        assert "logs" not in job
        found = await agent.call(
            "hf_jobs", {"operation": "wait", "args": {"job_id": job["job"]["id"], "wait_seconds": 30}}
        )
        outcome = found.structured_content["outcome"]
        assert outcome["job"]["status"]["stage"] == "ERROR"
        assert outcome["job"]["status"]["exit_code"] == 4
        assert outcome["job"]["status"]["failure_class"] == "user"
        assert lines(outcome) == ["over"]
        assert found.structured_content["next_steps"]
        assert not found.is_error  # the call did what it was asked for: the job is what failed


async def test_ps_inspect_labels_logs_and_resources(connect: Connect, server: Server) -> None:
    async with connect() as agent:
        job = (await agent.jobs("run", command="echo hello; echo world", labels={"suite": "mcp"}, name="first"))["job"]
        listed = await agent.jobs("ps", all=True, labels={"suite": "mcp"})
        assert job["id"] in [one["id"] for one in listed["jobs"]]
        assert (await agent.jobs("ps", labels={"suite": "none"}))["jobs"] == []
        limited = await agent.jobs("ps", all=True, limit=1)
        assert len(limited["jobs"]) == 1
        changed = await agent.jobs("labels", job_id=job["id"], labels={"more": "1"}, name="second")
        assert changed["job"]["labels"] == {"suite": "mcp", "more": "1", "name": "second"}
        cleared = await agent.jobs("labels", job_id=job["id"], labels={"only": "1"}, replace=True)
        assert cleared["job"]["labels"] == {"only": "1"}
        both = await agent.jobs("inspect", job_id=[job["id"], "0" * 24])
        assert [one["status"] for one in both["inspections"]] == ["success", "error"]
        shown = await agent.call("hf_jobs", {"operation": "logs", "args": {"job_id": job["url"], "tail": 1}})
        outcome = shown.structured_content["outcome"]
        assert outcome["lines"] == ["world"] and outcome["finished"] and outcome["truncated"]
        (link,) = links_of(shown)
        text = (await agent.client.read_resource(link.uri)).contents[0].text
        assert text.endswith("hello\nworld\n")
        listed = (await agent.client.list_resources()).resources
        assert link.uri in [one.uri for one in listed]
        templates = (await agent.client.list_resource_templates()).resource_templates
        assert templates[0].uri_template == "job://{namespace}/{job_id}/log"
        with pytest.raises(MCPError, match="there is no resource"):
            await agent.client.read_resource(f"job://{server.owner}/{'0' * 24}/log")


async def test_the_log_of_a_running_job_is_read_up_to_now(connect: Connect) -> None:
    async with connect() as agent:
        job = (await agent.jobs("run", command="echo started; sleep 60", wait_seconds=1))["job"]
        shown = await agent.jobs("logs", job_id=job["id"])
        assert shown["lines"][-1] == "started"
        assert not shown["finished"]
        used = await agent.jobs("stats", job_id=job["id"])
        assert used["kind"] == "stats"
        assert used["memory_used_bytes"] > 0
        await agent.jobs("cancel", job_id=job["id"])
        over = await agent.jobs("stats", job_id=job["id"])
        assert over["kind"] == "job"


async def test_a_long_log_is_cut_to_what_an_answer_may_hold(agent_at: Connect) -> None:
    async with agent_at() as agent:
        code = "for i in range(3000): print(i, 'x' * 100)\nprint('y' * 5000)"
        job = await agent.jobs("run", command=["python3", "-c", code], tail=2000)
        assert job["logs_truncated"]
        assert sum(len(line) for line in job["logs"]) < 61_000
        assert job["logs"][-1].endswith("[and 3,000 more characters]")
        assert job["logs"][-2].startswith("2999 ")


async def test_hardware_and_whoami(connect: Connect, server: Server) -> None:
    async with connect() as agent:
        flavors = (await agent.jobs("hardware"))["flavors"]
        assert "cpu-basic" in [flavor["name"] for flavor in flavors]
        who = (await agent.call("hf_whoami", {})).structured_content
        assert who["authenticated"]
        assert (who["name"], who["endpoint"], who["token_role"]) == (server.owner, server.url, "write")
        assert who["jobs_namespaces"] == [server.owner]


async def test_the_callers_own_token_reaches_the_job_and_nobody_else(connect: Connect, server: Server) -> None:
    code = "import hashlib, os; print(hashlib.sha256(os.environ['HF_TOKEN'].encode()).hexdigest())\n"
    code += "print(os.environ['HF_TOKEN']); print(os.environ['OTHER'], os.environ['PLAIN'])"
    async with connect() as agent:
        found = await agent.call(
            "hf_jobs",
            {
                "operation": "run",
                "args": {
                    "command": ["python3", "-c", code],
                    "secrets": {"HF_TOKEN": "$HF_TOKEN", "OTHER": SECRET},
                    "env": {"PLAIN": 1},
                },
            },
        )
        outcome = found.structured_content["outcome"]
        assert lines(outcome) == [sha256(server.token.encode()).hexdigest(), "[hidden]", "[hidden] 1"]
        assert outcome["job"]["secret_names"] == ["HF_TOKEN", "OTHER"]
        assert outcome["job"]["environment_variable_names"] == ["PLAIN"]
        seen = found.model_dump_json()
        again = await agent.call("hf_jobs", {"operation": "logs", "args": {"job_id": outcome["job"]["id"]}})
        read = await agent.client.read_resource(links_of(again)[0].uri)
        assert server.token not in seen + again.model_dump_json() + read.model_dump_json()
        assert SECRET not in seen
        assert server.token not in server.log.read_text()


async def test_a_token_in_plain_variables_is_refused_with_the_way_to_do_it(agent_at: Connect) -> None:
    async with agent_at() as agent:
        outcome, _ = await agent.refused("run", command="true", env={"TOKEN": "${HF_TOKEN}"})
        assert outcome["code"] == "validation"
        assert 'secrets: {"HF_TOKEN": "$HF_TOKEN"}' in outcome["message"]


async def test_a_script_travels_through_the_bucket_and_leaves_its_results_there(
    connect: Connect, newest: Client
) -> None:
    async with connect() as agent:
        code = "import six\nopen('/artifacts/result.txt', 'w').write(six.__name__)\nprint('wrote')\n"
        outcome = await agent.jobs("uv", script=code, dependencies=["six"])
        assert outcome["job"]["status"]["stage"] == "COMPLETED", outcome
        assert lines(outcome)[-1] == "wrote"
        assert outcome["script"]["transport"] == "bucket"
        results = outcome["script"]["results"]
        assert "/jobs-artifacts/_scripts/" in results
        kept = newest.python(f"from huggingface_hub import hffs; out(hffs.cat({results + '/result.txt'!r}).decode())")
        assert kept == "six"


async def test_a_script_travels_in_a_variable_where_its_path_is_taken(connect: Connect, server: Server) -> None:
    async with connect() as agent:
        await agent.jobs("uv", script="print(1)\n")  # so that the bucket is there
        mine = f"hf://buckets/{server.owner}/jobs-artifacts:/artifacts:ro"
        outcome = await agent.jobs(
            "uv", script="import sys\nprint('here', sys.argv[1:])\n", script_args=["a b", "$c"], volumes=[mine]
        )
        assert outcome["script"]["transport"] == "environment"
        assert "/artifacts is taken" in outcome["script"]["reason"]
        assert lines(outcome)[-1] == "here ['a b', '$c']"
        too_much, _ = await agent.refused("uv", script="x = 1\n" * 20_000, volumes=[mine])
        assert "put it into a bucket of yours" in too_much["message"]


async def test_a_public_bucket_gets_no_script(agent_at: Connect, server: Server) -> None:
    api = Api(server)
    async with agent_at() as agent:
        await agent.jobs("uv", script="print(1)\n")
        assert api.put(f"/api/buckets/{server.owner}/jobs-artifacts/settings", {"private": False}).status == 200
        try:
            outcome = await agent.jobs("uv", script="print('quiet')\n")
        finally:
            api.put(f"/api/buckets/{server.owner}/jobs-artifacts/settings", {"private": True})
        assert outcome["script"]["transport"] == "environment"
        assert "is public" in outcome["script"]["reason"]
        assert lines(outcome)[-1] == "quiet"


async def test_a_url_and_a_path_are_handed_to_uv(agent_at: Connect) -> None:
    async with agent_at() as agent:
        program = await agent.jobs("uv", script="python", script_args=["-c", "print('a program')"])
        assert program["script"] == {"transport": "path"}
        assert lines(program)[-1] == "a program"
        address = await agent.jobs("uv", script="http://127.0.0.1:9/none.py", detach=True)
        assert address["script"] == {"transport": "url"}
        assert address["job"]["command"] == ["uv", "run", "http://127.0.0.1:9/none.py"]


async def test_what_an_agent_asks_for_is_what_the_job_gets(agent_at: Connect) -> None:
    async with agent_at() as agent:
        wanted = {"image": "python:3.12", "flavor": "cpu-performance", "timeout": "90s", "env": {"A": 1}, "attempts": 2}
        asked = {**wanted, "dependencies": ["six"], "python": "3.12", "script_args": ["--fast"], "labels": {"a": "b"}}
        job = (await agent.jobs("uv", script="run.py", detach=True, **asked))["job"]
        assert job["command"] == ["uv", "run", "--with", "six", "--python", "3.12", "run.py", "--fast"]
        assert (job["docker_image"], job["flavor"], job["timeout_seconds"]) == ("python:3.12", "cpu-performance", 90)
        assert (job["environment_variable_names"], job["labels"]) == (["A"], {"a": "b"})
        await agent.jobs("cancel", job_id=job["id"])


async def test_the_program_beside_the_agent_sends_its_files_and_the_server_none_of_its(
    server: Server, tmp_path: Path
) -> None:
    script = tmp_path / "mine.py"
    script.write_text("print('from a file')")
    async with connected("stdio", server, tmp_path) as agent:
        outcome = await agent.jobs("uv", script=str(script))
        assert outcome["script"]["transport"] == "bucket"
        assert lines(outcome)[-1] == "from a file"
    async with connected("http", server, tmp_path) as agent:
        outcome = await agent.jobs("uv", script=str(script), detach=True)
        assert outcome["script"] == {"transport": "path"}
        await agent.jobs("cancel", job_id=outcome["job"]["id"])


async def test_a_key_makes_submitting_safe_to_repeat(connect: Connect) -> None:
    async with connect() as agent:
        wanted = {"command": "true", "idempotency_key": f"once-{id(agent)}"}
        first = await agent.jobs("run", **wanted)
        second = await agent.call("hf_jobs", {"operation": "run", "args": wanted})
        assert first["job"]["id"] == second.structured_content["outcome"]["job"]["id"]
        assert "idempotency_key" not in text_of(second)
        third = await agent.jobs("run", command="true")
        assert third["job"]["id"] != first["job"]["id"]


async def test_rerun_is_a_new_job_with_the_secrets(connect: Connect) -> None:
    async with connect() as agent:
        first = await agent.jobs("run", command='test "$KEY" = abc', secrets={"KEY": "abc"})
        again = await agent.jobs("rerun", job_id=first["job"]["id"])
        assert again["job"]["id"] != first["job"]["id"]
        assert again["job"]["status"]["stage"] == "COMPLETED"


async def test_a_schedule_is_made_tried_stopped_and_taken_away(connect: Connect) -> None:
    async with connect() as agent:
        made = (await agent.jobs("scheduled run", schedule="@daily", command="echo daily", name="every-day"))[
            "scheduled_job"
        ]
        schedule = {"scheduled_job_id": made["id"]}
        assert made["job_spec"]["labels"]["name"] == "every-day"
        assert made["next_run"]
        run = (await agent.jobs("scheduled trigger", **schedule))["job"]
        assert (await agent.jobs("wait", job_id=run["id"]))["job"]["status"]["stage"] == "COMPLETED"
        shown = (await agent.jobs("scheduled inspect", **schedule))["scheduled_job"]
        assert shown["last_job_id"] == run["id"]
        assert (await agent.jobs("scheduled suspend", **schedule))["action"] == "suspended"
        assert made["id"] not in [one["id"] for one in (await agent.jobs("scheduled ps"))["scheduled_jobs"]]
        everything = (await agent.jobs("scheduled ps", all=True))["scheduled_jobs"]
        assert [one["suspended"] for one in everything if one["id"] == made["id"]] == [True]
        assert (await agent.jobs("scheduled resume", **schedule))["action"] == "resumed"
        moved = (await agent.jobs("scheduled reschedule", **schedule, schedule="0 0 29 2 *"))["scheduled_job"]
        assert (moved["schedule"], moved["next_run"]) == ("0 0 29 2 *", "2028-02-29T00:00:00.000Z")
        named = (await agent.jobs("scheduled labels", **schedule, labels={"team": "a"}))["scheduled_job"]
        assert named["job_spec"]["labels"] == {"name": "every-day", "team": "a"}
        cleared = (await agent.jobs("scheduled labels", **schedule, name="rare", replace=True))["scheduled_job"]
        assert cleared["job_spec"]["labels"] == {"name": "rare"}
        assert (await agent.jobs("scheduled delete", **schedule))["action"] == "deleted"
        gone, steps = await agent.refused("scheduled inspect", **schedule)
        assert gone["status"] == 404 and "scheduled ps" in steps[0]


async def test_a_scheduled_script_travels_as_others_do(connect: Connect) -> None:
    async with connect() as agent:
        made = await agent.jobs("scheduled uv", schedule="0 6 * * 1-5", script="print('morning')\n", suspend=True)
        assert made["script"]["transport"] == "bucket"
        schedule = {"scheduled_job_id": made["scheduled_job"]["id"]}
        assert made["scheduled_job"]["suspended"]
        run = (await agent.jobs("scheduled trigger", **schedule))["job"]
        assert lines(await agent.jobs("wait", job_id=run["id"]))[-1] == "morning"
        await agent.jobs("scheduled delete", **schedule)


async def test_a_run_that_is_not_over_keeps_a_second_one_away(agent_at: Connect) -> None:
    async with agent_at() as agent:
        made = (await agent.jobs("scheduled run", schedule="@yearly", command="sleep 60"))["scheduled_job"]
        run = (await agent.jobs("scheduled trigger", scheduled_job_id=made["id"]))["job"]
        refused, steps = await agent.refused("scheduled trigger", scheduled_job_id=made["id"])
        assert refused["status"] == 409 and "scheduled ps" in steps[0]
        await agent.jobs("cancel", job_id=run["id"])
        wrong, _ = await agent.refused("scheduled run", schedule="whenever", command="true")
        assert wrong["status"] == 400 and "whenever" in wrong["message"]
        await agent.jobs("scheduled delete", scheduled_job_id=made["id"])


@pytest.mark.parametrize(
    ("operation", "args", "said", "next_step"),
    [
        ("run", {"command": "true", "flavor": "h9000"}, "has no flavor 'h9000'; it has cpu-basic", "`hardware`"),
        ("run", {"command": "true", "namespace": "strangers"}, "has no write access", "hf_whoami"),
        ("run", {"command": "true", "timeout": "soon"}, "like 90s, 30m, 2h", "help"),
        ("run", {"command": "true", "comand": "true"}, "'command' is", "help"),
        ("run", {"command": "true", "volumes": ["hf://buckets/x:/data"]}, "OWNER/NAME", "help"),
        ("run", {"command": "true", "volumes": ["hf://buckets/nobody/none:/data"]}, "no bucket", ""),
        ("run", {"command": "true", "wait_seconds": 100000}, "less than or equal to 600", "help"),
        ("logs", {"job_id": "0" * 24}, "there is no job", '"all": true'),
        ("cancel", {"job_id": "../../etc"}, "", ""),
        ("labels", {"job_id": "0" * 24, "labels": {"a b": "c"}}, "there is no job", "ps"),
        ("inspect", {"job_id": "x", "namespace": "a/../b"}, "match pattern", "help"),
        ("logs", {"job_id": "root/.."}, "that is no id", "ps"),
        ("lgos", {}, "there is no operation 'lgos'", "Did you mean 'logs'?"),
    ],
)
async def test_refusals_say_what_to_do_next(
    agent_at: Connect, operation: str, args: dict[str, Any], said: str, next_step: str
) -> None:
    async with agent_at() as agent:
        outcome, steps = await agent.refused(operation, **args)
        assert outcome["kind"] == "error"
        assert said in outcome["message"]
        assert next_step in " ".join(steps)


async def test_arguments_beside_the_operation_are_taken_too(agent_at: Connect) -> None:
    async with agent_at() as agent:
        found = await agent.call("hf_jobs", {"operation": "PS", "all": True})
        assert found.structured_content["outcome"]["kind"] == "jobs"
        broken = await agent.call("hf_jobs", {"operation": "ps", "args": [1]})
        assert broken.is_error and "should be an object" in text_of(broken)


async def test_a_token_reaches_only_what_it_may(connect: Connect, server: Server) -> None:
    server.run("user", "add", "reader", check=False)
    made = server.run("token", "add", "reader", "--name", f"look-{id(connect)}", "--role", "read")
    token = re.search(r"hf_\w+", made.stdout)
    assert token
    mine = Api(server).shell("echo mine")
    async with connect(token[0]) as agent:
        outcome, steps = await agent.refused("run", command="true")
        assert outcome["status"] == 403 and "hf_whoami" in steps[0]
        strange, _ = await agent.refused("logs", job_id=f"{server.owner}/{mine['id']}")
        assert strange["status"] == 403
        with pytest.raises(MCPError, match="there is no resource"):
            await agent.client.read_resource(f"job://{server.owner}/{mine['id']}/log")
        who = (await agent.call("hf_whoami", {})).structured_content
        assert (who["name"], who["jobs_namespaces"]) == ("reader", [])


async def test_the_program_says_so_when_nobody_answers_or_the_token_is_wrong(server: Server, tmp_path: Path) -> None:
    async with connected("stdio", server, tmp_path, "hf_wrong") as agent:
        outcome, steps = await agent.refused("ps")
        assert outcome["status"] == 401 and "Ask the user" in steps[0]
        who = await agent.call("hf_whoami", {})
        assert not who.is_error and not who.structured_content["authenticated"]
    away = Server(tmp_path / "none", url="http://127.0.0.1:9", token="hf_any")
    async with connected("stdio", away, tmp_path) as agent:
        outcome, steps = await agent.refused("ps")
        assert outcome["code"] == "unreachable" and "cannot be reached" in steps[0]


def rpc(api: Api, method: str = "tools/list", headers: dict[str, str] | None = None, verb: str = "POST") -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {}}
    accepted = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    return api.call(verb, "/mcp", body, headers=accepted | (headers or {}))


def test_without_a_valid_token_the_door_says_where_to_knock(server: Server) -> None:
    for token in ("", "hf_wrong"):
        refused = rpc(Api(server, token=token))
        assert refused.status == 401
        assert "runstead token add" in refused.json["error"]
        said = refused.headers["www-authenticate"]
        assert said.startswith("Bearer ")
        assert ('error="invalid_token"' in said) == bool(token)
        found = re.search(r'resource_metadata="([^"]+)"', said)
        assert found
        metadata = Api(server, token="").get(found[1].removeprefix(server.url))
        assert metadata.status == 200
        assert metadata.json["resource"] == f"{server.url}/mcp"
        assert metadata.json["bearer_methods_supported"] == ["header"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("https://evil.example:8080", 403),
        ("http://localhost.evil.example", 403),
        ("http://[", 403),
        ("http://localhost:6274", 200),
        ("http://127.0.0.1:1", 200),
    ],
)
def test_pages_of_other_sites_are_refused(server: Server, origin: str, status: int) -> None:
    assert rpc(Api(server), headers={"Origin": origin}).status == status


def test_a_name_bound_to_our_address_is_no_origin_of_ours(server: Server) -> None:
    rebound = {"Origin": "http://rebound.example", "Host": "rebound.example"}
    assert rpc(Api(server), headers=rebound).status == 403


def test_there_is_nothing_to_get_and_no_session_to_end(server: Server) -> None:
    for verb in ("GET", "DELETE"):
        refused = rpc(Api(server), verb=verb)
        assert refused.status == 405
        assert refused.headers["allow"] == "POST"
    answered = rpc(Api(server))
    assert answered.status == 200
    assert "mcp-session-id" not in answered.headers


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_restart_of_the_server_breaks_no_client(own_server: Server, tmp_path: Path, transport: str) -> None:
    async with connected(transport, own_server, tmp_path) as agent:
        job = (await agent.jobs("run", command="echo before", tail=5))["job"]
        own_server.kill()
        own_server.start()
        shown = await agent.jobs("logs", job_id=job["id"])
        assert shown["lines"][-1] == "before"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_agent_that_waits_while_the_server_restarts_is_answered(
    own_server: Server, tmp_path: Path, transport: str
) -> None:
    async with connected(transport, own_server, tmp_path) as agent:
        job = (await agent.jobs("run", command="sleep 60", detach=True))["job"]
        agent.told.clear()
        waiting = asyncio.create_task(agent.jobs("wait", job_id=job["id"], wait_seconds=50))
        await agent.told.wait()
        assert await asyncio.to_thread(own_server.terminate) == 0
        await asyncio.to_thread(own_server.start)
        if transport != "stdio":  # answered before the server went
            assert (await waiting)["job"]["status"]["stage"] == "RUNNING"
        await agent.jobs("cancel", job_id=job["id"])
        assert (await agent.jobs("wait", job_id=job["id"]))["job"]["status"]["stage"] == "CANCELED"
        if transport == "stdio":  # the program waited for the server too
            assert (await waiting)["job"]["status"]["stage"] == "CANCELED"


async def test_scripts_travel_in_a_variable_where_jobs_have_no_volumes(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", ("--executor-isolation", "none", "--stop-jobs-at-exit")).start()
    try:
        async with connected("http", server, tmp_path) as agent:
            outcome = await agent.jobs("uv", script="print('no volumes')\n")
            assert outcome["script"]["transport"] == "environment"
            assert lines(outcome)[-1] == "no volumes"
    finally:
        server.stop()


async def test_costs_are_told_and_a_budget_stops_an_agent_that_knows_why(tmp_path: Path) -> None:
    (tmp_path / "runstead.toml").write_text("[prices]\ncpu-basic = 60\n")  # one a second
    flags = ("--config", str(tmp_path / "runstead.toml"), "--stop-jobs-at-exit")
    server = Server(tmp_path / "data", flags).start()
    try:
        async with connected("http", server, tmp_path) as agent:
            flavors = {one["name"]: one["usd_per_minute"] for one in (await agent.jobs("hardware"))["flavors"]}
            assert flavors["cpu-basic"] == 60
            found = await agent.call("hf_jobs", {"operation": "run", "args": {"command": "sleep 1", "timeout": "1m"}})
            cost = found.structured_content["outcome"]["job"]["cost_usd"]
            assert 1 <= cost < 30
            assert f"cost: {cost:.4f} USD" in text_of(found)
            server.run("budget", "set", server.owner, "50")
            outcome, steps = await agent.refused("run", command="true", timeout="1m")
            assert outcome["status"] == 402
            assert "50" in outcome["message"] and "do not retry" in steps[0]
    finally:
        server.stop()


async def test_an_agent_writes_a_script_reads_its_failure_and_mends_it(connect: Connect) -> None:
    """What an agent does with the answers alone: no step knows more than the answer before it said."""
    async with connect() as agent:
        usage = text_of(await agent.call("hf_jobs", {}))
        example = json.loads(re.findall(r"```json\n(.*?)```", usage, re.DOTALL)[0])
        args: dict[str, Any] = {"script": "import six\nprint(6 * 7 + undefined)\n", "timeout": "5m"}
        stages: list[str] = []
        for _ in range(4):
            found = await agent.call("hf_jobs", {"operation": example["operation"], "args": args})
            outcome, steps = found.structured_content["outcome"], found.structured_content["next_steps"]
            stages.append(outcome["job"]["status"]["stage"])
            if stages[-1] == "COMPLETED":
                break
            log = "\n".join(outcome["logs"])
            if missing := re.search(r"Add the package of the module '(\w+)' to `dependencies`", " ".join(steps)):
                args["dependencies"] = [missing[1]]
            elif unknown := re.search(r"NameError: name '(\w+)' is not defined", log):
                args["script"] = args["script"].replace(f" + {unknown[1]}", "")
        assert stages == ["ERROR", "ERROR", "COMPLETED"]
        read = await agent.jobs("logs", job_id=outcome["job"]["id"], tail=1)
        assert read["lines"] == ["42"]


async def test_many_agents_at_once_get_each_their_own_answers(server: Server, tmp_path: Path) -> None:
    async def one(number: int) -> list[str]:
        async with connected("http", server, tmp_path) as agent:
            outcome = await agent.jobs("run", command=f"echo number {number}")
            return lines(outcome)

    assert await asyncio.gather(*(one(n) for n in range(8))) == [[f"number {n}"] for n in range(8)]
