"""Who may do what: users, organizations, roles and tokens, changed by the command line while the server runs."""

import dataclasses
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from calls import Answer, Api
from clients import Server, make_client
from faults import run_quickly

NO_JOB = "0" * 24
ROLES = ("read", "contributor", "write", "admin")
REACHES = ("read", "write", "fine-read", "fine-write", "fine-elsewhere")


@dataclass
class World:
    """A server with an organization `team`, a member of every role in it, and a stranger."""

    server: Server
    tokens: dict[tuple[str, str], str]  # (role or "stranger", reach of the token) to its value
    job_id: str  # one that waits in the namespace of the team

    def api(self, who: str, reach: str = "write") -> Api:
        return Api(self.server, self.tokens[who, reach])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("access")
    started = Server(folder / "data", ("--stop-jobs-at-exit",)).start()
    tokens = populate(started, folder)
    owner = Api(started, tokens["admin", "write"])
    job_id = owner.submit("sleep", "1000", namespace="team")["id"]
    yield World(started, tokens, job_id)
    started.stop()


def populate(server: Server, folder: Path) -> dict[tuple[str, str], str]:
    """Make the accounts; through the library that the commands use, since a hundred commands take a minute."""
    script = """
import asyncio, json, sys
from runstead.app.opening.accounts import open_accounts
from runstead.kit.settings import load_settings
from runstead.model.accounts import OrgRole, Permission, TokenRole

async def main():
    found = {}
    async with open_accounts(load_settings(flags={"server.data_dir": sys.argv[1]})) as accounts:
        await accounts.add_org("team")
        await accounts.add_org("other-team")
        for role in [*OrgRole, None]:
            name = role.value if role else "stranger"
            await accounts.add_user(name + "-user")
            if role:
                await accounts.set_member("team", name + "-user", role)
            for reach, kind, scopes in (
                ("read", TokenRole.READ, []), ("write", TokenRole.WRITE, []),
                ("fine-read", TokenRole.FINE_GRAINED, [("team", Permission.READ)]),
                ("fine-write", TokenRole.FINE_GRAINED, [("team", Permission.WRITE)]),
                ("fine-elsewhere", TokenRole.FINE_GRAINED, [("other-team", Permission.WRITE)]),
            ):
                found[name + "/" + reach] = (await accounts.add_token(name + "-user", reach, kind, scopes))[1]
    print(json.dumps(found))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(server.data_dir)], capture_output=True, text=True, timeout=60, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return {(name.split("/")[0], name.split("/")[1]): value for name, value in json.loads(done.stdout).items()}


READS = (
    ("GET", "/api/jobs/team"),
    ("GET", "/api/jobs/team/count"),
    ("GET", "/api/jobs/team/{job}"),
    ("GET", "/api/jobs/team/{job}/history"),
    ("POST", "/api/jobs/team/auth-check/read"),
    ("POST", "/api/jobs/team/{job}/auth-check/read"),
)
WRITES = (
    ("POST", "/api/jobs/team"),
    ("PUT", "/api/jobs/team/{job}/labels"),
    ("POST", "/api/jobs/team/auth-check/write"),
    ("POST", "/api/jobs/team/{job}/duplicate"),
)


def call(api: Api, method: str, path: str, job_id: str) -> Answer:
    body = {"command": ["true"], "dockerImage": "a", "labels": {}} if method != "GET" else None
    return api.call(method, path.replace("{job}", job_id), body)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("role", ROLES)
def test_what_a_member_may_do_is_what_both_role_and_token_allow(world: World, role: str, reach: str) -> None:
    may_read = reach != "fine-elsewhere"
    may_write = role != "read" and reach in ("write", "fine-write")
    api = world.api(role, reach)
    for calls, allowed in ((READS, may_read), (WRITES, may_write)):
        for method, path in calls:
            answer = call(api, method, path, world.job_id)
            assert answer.status == (200 if allowed else 403), (method, path, answer)
            if not allowed:
                assert "access" in answer.error
    for route in ("logs", "metrics"):
        if may_read:
            with api.stream(f"/api/jobs/team/{world.job_id}/{route}") as events:
                assert next(events)
        else:
            assert api.get(f"/api/jobs/team/{world.job_id}/{route}").status == 403


@pytest.mark.parametrize("role", ROLES)
def test_everybody_has_a_namespace_of_their_own(world: World, role: str) -> None:
    mine = f"{role}-user"
    job = world.api(role).submit("true", namespace=mine)
    assert job["owner"] == {"id": job["owner"]["id"], "name": mine, "type": "user"}
    assert job["createdBy"]["name"] == mine
    assert world.api(role, "read").get(f"/api/jobs/{mine}/{job['id']}").status == 200
    assert world.api(role, "read").call("DELETE", f"/api/jobs/{mine}/{job['id']}").status == 403
    assert world.api(role, "fine-write").get(f"/api/jobs/{mine}/{job['id']}").status == 403


def every_call(api: Api, namespace: str, job_id: str) -> list[tuple[int, str]]:
    """Return what a caller learns of a namespace and a job by all calls there are."""
    learned: list[tuple[int, str]] = []
    for method, path in (
        *READS,
        *WRITES,
        ("GET", "/api/jobs/team/{job}/logs"),
        ("GET", "/api/jobs/team/{job}/metrics"),
        ("POST", "/api/jobs/team/{job}/cancel"),
        ("DELETE", "/api/jobs/team/{job}"),
        ("PUT", "/api/jobs/team/{job}/expose"),
    ):
        answer = call(api, method, path.replace("/team", f"/{namespace}"), job_id)
        learned.append((answer.status, answer.error.replace(namespace, "NAMESPACE").replace(job_id, "JOB")))
    return learned


@pytest.mark.parametrize("reach", ["read", "write", "fine-elsewhere"])
def test_a_stranger_learns_nothing_not_even_who_is_here(world: World, reach: str) -> None:
    stranger = world.api("stranger", reach)
    before = world.api("admin").get("/api/jobs/team/count").json
    there = every_call(stranger, "team", world.job_id)
    assert {status for status, _ in there} == {403}
    assert every_call(stranger, "team", NO_JOB) == there
    assert every_call(stranger, "nobody-at-all", world.job_id) == there
    assert every_call(stranger, "admin-user", world.job_id) == there
    assert world.api("admin").get("/api/jobs/team/count").json == before
    assert world.api("admin").job(world.job_id, "team")["status"]["stage"] == "RUNNING"


def test_a_job_is_found_in_its_own_namespace_only(world: World) -> None:
    admin = world.api("admin")
    for wrong in (world.job_id, NO_JOB):
        answer = admin.get(f"/api/jobs/admin-user/{wrong}")
        assert answer.status == 404
        assert answer.error.replace(wrong, "JOB") == admin.get(f"/api/jobs/admin-user/{'1' * 24}").error.replace(
            "1" * 24, "JOB"
        )
        for method, suffix in (("POST", "/cancel"), ("DELETE", ""), ("GET", "/logs"), ("GET", "/metrics")):
            assert admin.call(method, f"/api/jobs/admin-user/{wrong}{suffix}").status == 404
    assert admin.job(world.job_id, "team")["status"]["stage"] == "RUNNING"


def test_whoami_tells_each_their_own(world: World) -> None:
    for role in ROLES:
        me = world.api(role, "fine-write").get("/api/whoami-v2").json
        assert me["name"] == f"{role}-user"
        assert [(org["name"], org["roleInOrg"]) for org in me["orgs"]] == [("team", role)]
        scoped = me["auth"]["accessToken"]["fineGrained"]["scoped"]
        assert scoped == [
            {
                "entity": {"_id": me["orgs"][0]["id"], "name": "team", "type": "org"},
                "permissions": ["job.write"],
            }
        ]
    assert world.api("stranger").get("/api/whoami-v2").json["orgs"] == []


def test_accounts_made_by_the_command_line_work_at_once(server: Server, tmp_path: Path) -> None:
    brought = "hf_" + secrets.token_hex(17)
    (tmp_path / "token").write_text(brought + "\n")
    run_quickly(server, "user", "add", "ann", "--email", "ann@example.org")
    run_quickly(server, "org", "add", "lab")
    run_quickly(server, "org", "add-member", "lab", "ann", "--role", "read")
    assert Api(server, brought).get("/api/whoami-v2").status == 401
    done = run_quickly(server, "token", "add", "ann", "--value-file", str(tmp_path / "token"), "--name", "brought")
    assert brought not in done.stdout + done.stderr
    ann = Api(server, brought)
    assert ann.get("/api/whoami-v2").json["email"] == "ann@example.org"
    client = make_client("2.4.0", server, tmp_path)
    client.token = brought
    assert "by ann" in client.hf("jobs", "run", "ubuntu", "echo", "by", "ann").stdout

    assert ann.post("/api/jobs/lab", {"command": ["true"], "dockerImage": "a"}).status == 403
    run_quickly(server, "org", "add-member", "lab", "ann", "--role", "contributor")
    assert ann.submit("true", namespace="lab")["owner"]["name"] == "lab"
    run_quickly(server, "org", "remove-member", "lab", "ann")
    assert ann.get("/api/jobs/lab").status == 403
    assert ann.get("/api/whoami-v2").json["orgs"] == []

    fine = run_quickly(server, "token", "add", "ann", "--scope", "ann:read").stdout.strip()
    assert Api(server, fine).get("/api/jobs/ann").status == 200
    assert Api(server, fine).post("/api/jobs/ann", {"command": ["true"], "dockerImage": "a"}).status == 403
    run_quickly(server, "token", "revoke", "brought")
    answer = ann.get("/api/whoami-v2")
    assert answer.status == 401
    assert "revoked" in answer.error
    assert Api(server, fine).get("/api/jobs/ann").status == 200
    assert brought.encode() not in (server.data_dir / "runstead.db").read_bytes()
    assert run_quickly(server, "user", "remove", "ann", check=False).returncode != 0  # they own jobs


def test_a_token_of_the_first_start_is_the_owners(server: Server) -> None:
    me = Api(server).get("/api/whoami-v2").json
    assert me["name"] == server.owner
    assert me["auth"]["accessToken"]["displayName"] == "first-start"
    nobody = dataclasses.replace(Api(server), token="hf_" + "x" * 34)
    assert nobody.get("/api/whoami-v2").status == 401
