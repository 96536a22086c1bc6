"""Every route, one row each, and the application made of them."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

import runstead
from runstead.api import accounts, buckets, errors, jobs, openapi, raw_path, resolve, sandboxes, scheduled_jobs, unbuilt
from runstead.api.cas import CasRoutes
from runstead.api.context import Context
from runstead.api.limits import BodyLimit, DateHeader

_JOBS = "/api/jobs/{namespace}"
_JOB = _JOBS + "/{job_id}"
_SCHEDULES = "/api/scheduled-jobs/{namespace}"
_SCHEDULE = _SCHEDULES + "/{schedule_id}"
_BUCKETS = "/api/buckets/{namespace}"
_BUCKET = _BUCKETS + "/{name}"
_RESOLVE = "/buckets/{namespace}/{name}/resolve/{path:tail}"

# Fixed words stand before the patterns that would swallow them.
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", accounts.whoami),
    ("GET", "/api/agent-harnesses", accounts.agent_harnesses),
    ("GET", "/healthz", accounts.health),
    ("GET", "/api/jobs/hardware", jobs.hardware),
    ("POST", _JOBS, jobs.create),
    ("GET", _JOBS, jobs.page),
    ("GET", _JOBS + "/count", jobs.count),
    ("POST", _JOBS + "/auth-check/{permission}", jobs.auth_check),
    ("GET", _JOB, jobs.inspect),
    ("DELETE", _JOB, jobs.cancel),
    ("GET", _JOB + "/logs", jobs.logs),
    ("GET", _JOB + "/metrics", jobs.metrics),
    ("GET", _JOB + "/history", jobs.history),
    ("GET", _JOB + "/outputs", jobs.outputs),
    ("POST", _JOB + "/cancel", jobs.cancel),
    ("POST", _JOB + "/duplicate", jobs.duplicate),
    ("POST", _JOB + "/fork", sandboxes.fork),
    ("PUT", _JOB + "/labels", jobs.set_labels),
    ("PUT", _JOB + "/expose", jobs.expose),
    ("POST", _JOB + "/auth-check/{permission}", jobs.job_auth_check),
    ("POST", _SCHEDULES, scheduled_jobs.create),
    ("GET", _SCHEDULES, scheduled_jobs.all_of),
    ("GET", _SCHEDULE, scheduled_jobs.inspect),
    ("DELETE", _SCHEDULE, scheduled_jobs.delete),
    ("POST", _SCHEDULE + "/suspend", scheduled_jobs.suspend),
    ("POST", _SCHEDULE + "/resume", scheduled_jobs.resume),
    ("POST", _SCHEDULE + "/schedule", scheduled_jobs.reschedule),
    ("POST", _SCHEDULE + "/run", scheduled_jobs.run),
    ("PUT", _SCHEDULE + "/labels", scheduled_jobs.set_labels),
    ("GET", _SCHEDULE + "/history", scheduled_jobs.history),
    ("POST", "/api/repos/move", buckets.move),
    ("GET", _BUCKETS, buckets.page),
    ("DELETE", _BUCKETS, buckets.nameless),
    ("POST", _BUCKET, buckets.create),
    ("GET", _BUCKET, buckets.inspect),
    ("DELETE", _BUCKET, buckets.delete),
    ("PUT", _BUCKET + "/settings", buckets.settings),
    ("GET", _BUCKET + "/tree", buckets.tree),
    ("GET", _BUCKET + "/tree/{prefix:tail}", buckets.tree),
    ("POST", _BUCKET + "/paths-info", buckets.paths_info),
    ("POST", _BUCKET + "/batch", buckets.batch),
    ("GET", _BUCKET + "/events", buckets.events),
    ("GET", _BUCKET + "/xet-read-token", buckets.read_token),
    ("GET", _BUCKET + "/xet-write-token", buckets.write_token),
    ("GET", _RESOLVE, resolve.resolve),
    ("HEAD", _RESOLVE, resolve.resolve),
]


def create_api(context: Context) -> FastAPI:
    """Return the application that serves the Hub's API."""
    app = FastAPI(
        title="Runstead",
        version=runstead.__version__,
        summary="Hugging Face Jobs on your own machines.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.state.context = context
    errors.install(app)
    openapi.install(app)
    raw_path.install()
    for method, path, endpoint in ROUTES:
        app.add_api_route(path, endpoint, methods=[method], response_model=None, name=endpoint.__name__)
    for prefix, _ in unbuilt.FEATURES:
        for path in (prefix, prefix + "/{rest:path}"):
            app.add_api_route(
                path, unbuilt.unbuilt, methods=["GET", "HEAD", "POST", "PUT", "DELETE"], include_in_schema=False
            )
    app.add_middleware(BodyLimit, max_bytes=context.max_body_bytes)
    app.add_middleware(CasRoutes, content=context.content, public_url=context.public_url)
    app.add_middleware(DateHeader)
    return app
