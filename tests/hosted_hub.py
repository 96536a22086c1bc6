"""A stand-in for the hosted Hub: the routes and the fields that its Jobs API documents, and nothing of ours.

It runs no jobs: each is over as soon as somebody looks, with two lines of log. What has no route is answered as the Hub
does, and noted in `unknown`.
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_hub"
AT = "2026-05-12T14:57:43.000Z"
OWNER = {"type": "user", "id": "a" * 24, "name": "mia", "avatarUrl": "/avatars/mia.svg"}
FLAVOR = {
    "name": "cpu-basic",
    "prettyName": "CPU Basic",
    "cpu": "2 vCPU",
    "ram": "16 GB",
    "ephemeralStorage": "50 GB",
    "accelerator": None,
    "unitCostMicroUSD": 167,
    "unitCostUSD": 0.000167,
    "unitLabel": "minute",
}
LINES = ("===== Job started at 2026-05-12 14:57:43 =====", "hello", "from the Hub")


@dataclass
class HostedHub:
    """What the stand-in remembers."""

    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    lacking: str = " "  # what ends like this has no route

    def answer(self, method: str, path: str, body: Any) -> "tuple[int, Any]":
        """Return status and body of the answer; a text is an event stream."""
        for known, pattern, perform in _ROUTES:
            match = re.fullmatch(pattern, path)
            if known == method and match and not path.endswith(self.lacking):
                return perform(self, body, *match.groups())
        self.unknown.append(f"{method} {path}")
        return 404, {"error": "Sorry, we can't find the page you are looking for."}


def _whoami(hub: HostedHub, body: Any) -> tuple[int, Any]:
    token = {"displayName": "laptop", "role": "write", "createdAt": AT}
    return 200, {**OWNER, "fullname": "Mia", "orgs": [], "auth": {"type": "access_token", "accessToken": token}}


def _hardware(hub: HostedHub, body: Any) -> tuple[int, Any]:
    return 200, [FLAVOR]


def _spec(body: Any) -> dict[str, Any]:
    asked = {key: value for key, value in body.items() if key not in ("timeoutSeconds", "secrets", "attempts")}
    return {**asked, "secrets": sorted(body.get("secrets", ())), "timeout": body.get("timeoutSeconds", 1800)}


def _new_job(hub: HostedHub, spec: dict[str, Any], initiator: dict[str, Any]) -> tuple[int, Any]:
    job_id = f"{len(hub.jobs) + 1:024x}"
    status = {"stage": "SCHEDULING", "message": None, "failureCount": 0}
    hub.jobs[job_id] = {"type": "job", "id": job_id, "owner": OWNER, "createdAt": AT, "initiator": initiator, **spec}
    return 200, hub.jobs[job_id] | {"status": status}


def _shown(job: dict[str, Any]) -> dict[str, Any]:
    over = {"stage": "COMPLETED", "message": None, "failureCount": 0}
    return {**job, "status": over, "startedAt": AT, "finishedAt": AT, "durations": {"runningSecs": 1}}


def _create(hub: HostedHub, body: Any, owner: str) -> tuple[int, Any]:
    return _new_job(hub, _spec(body), OWNER)


def _list(hub: HostedHub, body: Any, owner: str) -> tuple[int, Any]:
    return 200, [_shown(job) for job in reversed(hub.jobs.values())]


def _of_job(perform: Callable[[HostedHub, Any, dict[str, Any]], tuple[int, Any]]) -> Callable[..., tuple[int, Any]]:
    def found(hub: HostedHub, body: Any, owner: str, job_id: str) -> tuple[int, Any]:
        if job_id not in hub.jobs:
            return 404, {"error": "Job not found"}
        return perform(hub, body, hub.jobs[job_id])

    return found


def _logs(hub: HostedHub, body: Any, job: dict[str, Any]) -> tuple[int, Any]:
    return 200, "".join(f"data: {json.dumps({'data': line, 'timestamp': AT})}\n\n" for line in LINES)


def _labels(hub: HostedHub, body: Any, job: dict[str, Any]) -> tuple[int, Any]:
    job["labels"] = body["labels"]
    return 200, _shown(job)


def _duplicate(hub: HostedHub, body: Any, job: dict[str, Any]) -> tuple[int, Any]:
    spec = {key: value for key, value in job.items() if key not in ("id", "initiator", "type", "owner", "createdAt")}
    return _new_job(hub, spec, {"type": "duplicated-job", "id": job["id"]})


def _new_schedule(hub: HostedHub, body: Any, owner: str) -> tuple[int, Any]:
    schedule_id = f"{len(hub.schedules) + 1:024x}"
    hub.schedules[schedule_id] = {
        "type": "scheduled-job",
        "id": schedule_id,
        "owner": OWNER,
        "createdAt": AT,
        "initiator": OWNER,
        "jobSpec": _spec(body["jobSpec"]),
        "schedule": body["schedule"],
        "concurrency": False,
        "suspend": False,
        "status": {"lastJob": None, "nextJobRunAt": AT},
    }
    return 200, hub.schedules[schedule_id]


def _schedules(hub: HostedHub, body: Any, owner: str) -> tuple[int, Any]:
    return 200, list(hub.schedules.values())


def _of_schedule(perform: Callable[[dict[str, Any], Any], None]) -> Callable[..., tuple[int, Any]]:
    def found(hub: HostedHub, body: Any, owner: str, schedule_id: str) -> tuple[int, Any]:
        if schedule_id not in hub.schedules:
            return 404, {"error": "Scheduled job not found"}
        perform(hub.schedules[schedule_id], body)
        return 200, hub.schedules[schedule_id]

    return found


def _run(hub: HostedHub, body: Any, owner: str, schedule_id: str) -> tuple[int, Any]:
    return _new_job(hub, hub.schedules[schedule_id]["jobSpec"], {"type": "scheduled-job", "id": schedule_id})


def _delete(hub: HostedHub, body: Any, owner: str, schedule_id: str) -> tuple[int, Any]:
    del hub.schedules[schedule_id]
    return 200, None


_JOB = r"/api/jobs/([^/]+)/([0-9a-f]{24})"
_SCHEDULE = r"/api/scheduled-jobs/([^/]+)/([0-9a-f]{24})"
_ROUTES: list[tuple[str, str, Callable[..., tuple[int, Any]]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("GET", "/api/jobs/hardware", _hardware),
    ("POST", "/api/jobs/([^/]+)", _create),
    ("GET", "/api/jobs/([^/]+)", _list),
    ("GET", _JOB, _of_job(lambda hub, body, job: (200, _shown(job)))),
    ("GET", f"{_JOB}/logs", _of_job(_logs)),
    ("GET", f"{_JOB}/metrics", _of_job(lambda hub, body, job: (406, {"error": "Job is not running"}))),
    ("POST", f"{_JOB}/cancel", _of_job(lambda hub, body, job: (200, _shown(job)))),
    ("POST", f"{_JOB}/duplicate", _of_job(_duplicate)),
    ("PUT", f"{_JOB}/labels", _of_job(_labels)),
    ("POST", "/api/scheduled-jobs/([^/]+)", _new_schedule),
    ("GET", "/api/scheduled-jobs/([^/]+)", _schedules),
    ("GET", _SCHEDULE, _of_schedule(lambda one, body: None)),
    ("DELETE", _SCHEDULE, _delete),
    ("POST", f"{_SCHEDULE}/suspend", _of_schedule(lambda one, body: one.update(suspend=True))),
    ("POST", f"{_SCHEDULE}/resume", _of_schedule(lambda one, body: one.update(suspend=False))),
    ("POST", f"{_SCHEDULE}/schedule", _of_schedule(lambda one, body: one.update(body))),
    ("PUT", f"{_SCHEDULE}/labels", _of_schedule(lambda one, body: one["jobSpec"].update(body))),
    ("POST", f"{_SCHEDULE}/run", _run),
]


def _handler(hub: HostedHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                status, found = 401, {"error": "Invalid username or password."}
            else:
                status, found = hub.answer(self.command, self.path.partition("?")[0], json.loads(body or b"null"))
            data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def hosted_hub() -> Generator[HostedHub]:
    """Serve a stand-in on a port of its own."""
    hub = HostedHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
