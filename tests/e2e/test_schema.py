"""The API against its own description: whatever is generated from it, nothing fails inside and errors look alike."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as conformance

from calls import Api
from clients import Server

FLAVORS = "[flavors.cpu-basic]\ncpu = 1\nmemory = '64MB'\n"
UNBUILT = 501
PER_OPERATION = {GenerationMode.POSITIVE: 30, GenerationMode.NEGATIVE: 20}
EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Target:
    server: Server
    over: str  # a job that is over: its streams end
    schedule: str


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server whose machine is held by one job, so that whatever is submitted is stored and waits."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "runstead.toml").write_text(FLAVORS)
    flags = ("--config", str(folder / "runstead.toml"), "--executor-memory", "64MB", "--stop-jobs-at-exit")
    server = Server(folder / "data", flags).start()
    api = Api(server)
    over = api.shell("echo over")["id"]
    api.ended(over)
    api.shell("sleep 1000")
    spec = {"command": ["true"], "dockerImage": "ubuntu"}
    made = api.post(f"/api/scheduled-jobs/{server.owner}", {"jobSpec": spec, "schedule": "@annually"}).json
    yield Target(server, over, made["id"])
    assert api.get("/healthz").status == 200
    assert "Traceback" not in server.log.read_text()
    server.stop()


def not_a_failure(context: checks.CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """Refuse every 5xx but the one that says that something is not built."""
    if response.status_code != UNBUILT:
        checks.not_a_server_error(context, response, case)


def an_error_says_why(_: checks.CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """An error has the Hub's form: headers and body."""
    if response.status_code < 400 or case.method == "HEAD":
        return
    headers = {name.lower() for name in response.headers}
    if {"x-error-code", "x-error-message"} <= headers:
        assert isinstance(response.json()["error"], str)
    else:  # refused where requests are parsed, before there is an address
        assert response.status_code == 400
        assert response.content == b"Invalid HTTP request received."


CHECKS = [
    not_a_failure,
    an_error_says_why,
    conformance.status_code_conformance,
    conformance.response_schema_conformance,
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_what_is_made_from_the_description_does_not_fail(target: Target, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{target.server.url}/openapi.json")
    headers = {"Authorization": f"Bearer {target.server.token}"}
    failures: list[str] = []
    seen: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # wrong paths: test_bad_input has better ones than what comes slowly out of a generator

        @settings(EXAMPLES, max_examples=PER_OPERATION[mode])
        @given(case=operation.as_strategy(generation_mode=mode))
        def attack(case: schemathesis.Case) -> None:
            aim(case, target)
            seen[case.call_and_validate(headers=headers, checks=CHECKS, timeout=20).status_code] += 1

        try:
            attack()
        except Unsatisfiable:
            continue  # nothing can be wrong with a call that has no parts
        except Exception as error:
            failures.append(f"{operation.label}: {error}")
    assert not failures, "\n\n".join(failures)
    assert seen[400] > 10, seen
    assert mode is GenerationMode.NEGATIVE or min(seen[200], seen[403], seen[404]) > 20, seen


def aim(case: schemathesis.Case, target: Target) -> None:
    """Let half of all calls reach what is behind the question whose namespace it is."""
    chosen = case.path_parameters or {}
    if "namespace" in chosen and len(str(chosen["namespace"])) % 2:
        chosen["namespace"] = target.server.owner
    if "job_id" in chosen and len(str(chosen["job_id"])) % 2:
        chosen["job_id"] = target.over
    if "schedule_id" in chosen and len(str(chosen["schedule_id"])) % 2 and case.method != "DELETE":
        chosen["schedule_id"] = target.schedule


def test_the_description_is_complete(target: Target) -> None:
    found = Api(target.server, "").get("/openapi.json").json
    assert "/api/jobs/{namespace}/{job_id}/logs" in found["paths"]
    assert (
        "text/event-stream"
        in found["paths"]["/api/jobs/{namespace}/{job_id}/logs"]["get"]["responses"]["200"]["content"]
    )
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert "default" in operation["responses"], (path, method)
            assert operation.get("description"), (path, method)
