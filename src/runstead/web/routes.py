"""Every page, one row each, and how they join the server."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from runstead.web import (
    bucket_downloads,
    bucket_pages,
    job_list,
    job_log,
    job_metrics,
    job_page,
    schedule_pages,
    signing_in,
)
from runstead.web.context import WebContext
from runstead.web.html_errors import HtmlErrors
from runstead.web.visit import Kind, Site, action, data, page, public

_JOB = "/jobs/{namespace}/{job_id}"
_SCHEDULE = "/schedules/{namespace}/{schedule_id}"
_BUCKET = "/buckets/{namespace}/{name}"


async def _static(site: Site, request: Request) -> Response:
    return await site.static.serve(request)


async def _icon(site: Site, request: Request) -> Response:
    return await site.static.icon(request)


ROUTES: list[tuple[str, str, Kind]] = [
    ("GET", "/static/{version}/{name}", public(_static)),
    ("GET", "/favicon.svg", public(_icon)),
    ("GET", "/avatar.svg", public(_icon)),
    ("GET", "/login", public(signing_in.show_login)),
    ("POST", "/login", public(signing_in.login)),
    ("GET", "/logout", page(signing_in.show_logout)),
    ("POST", "/logout", action(signing_in.logout)),
    ("GET", "/", page(job_list.start)),
    ("GET", "/jobs", page(job_list.start)),
    ("GET", "/jobs/{namespace}", page(job_list.job_list)),
    ("GET", _JOB, page(job_page.job_page)),
    ("POST", _JOB + "/cancel", action(job_page.cancel)),
    ("POST", _JOB + "/rerun", action(job_page.rerun)),
    ("GET", _JOB + "/log", page(job_log.download)),
    ("GET", _JOB + "/log/lines", data(job_log.lines)),
    ("GET", _JOB + "/log/events", data(job_log.events)),
    ("GET", _JOB + "/metrics/events", data(job_metrics.metrics)),
    ("GET", "/schedules", page(schedule_pages.start)),
    ("GET", "/schedules/{namespace}", page(schedule_pages.schedule_list)),
    ("GET", _SCHEDULE, page(schedule_pages.schedule_page)),
    ("POST", _SCHEDULE + "/run", action(schedule_pages.run)),
    ("POST", _SCHEDULE + "/suspend", action(schedule_pages.suspend)),
    ("POST", _SCHEDULE + "/resume", action(schedule_pages.resume)),
    ("POST", _SCHEDULE + "/delete", action(schedule_pages.delete)),
    ("GET", "/buckets", page(bucket_pages.start)),
    ("GET", "/buckets/{namespace}", page(bucket_pages.bucket_list)),
    ("GET", _BUCKET, page(bucket_pages.bucket_page)),
    ("GET", _BUCKET + "/tree", page(bucket_pages.bucket_page)),
    ("GET", _BUCKET + "/tree/{path:path}", page(bucket_pages.bucket_page)),
    ("GET", _BUCKET + "/download/{path:path}", page(bucket_downloads.download)),
]


def with_pages(app: Starlette, context: WebContext) -> ASGIApp:
    """Return the application with the pages added, behind its own routes."""
    site = Site(context)
    for method, path, kind in ROUTES:
        app.router.routes.append(Route(path, kind(site), methods=[method], include_in_schema=False))
    return HtmlErrors(app, site)
