"""The log of a job: its end first, what is before on demand, what comes as it comes, and all of it as a file."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response, StreamingResponse

from runstead.model.errors import RunsteadError
from runstead.model.jobs import Job
from runstead.node.logformat import PREFIX_BYTES
from runstead.services.logs import Written, place_text, read_place
from runstead.web.job_page import find_job
from runstead.web.streams import KEEP_ALIVE, Events, event
from runstead.web.visit import Visit

LINES = 1000


async def lines(visit: Visit) -> Response:
    """Return lines before a place, or the last ones."""
    job = await find_job(visit)
    before = visit.request.query_params.get("before")
    written = await visit.context.logs.part(job, read_place(before) if before else None, LINES)
    return Response(_json(written), media_type="application/json")


async def events(visit: Visit) -> Response:
    """Send lines from a place on, and those to come, until the job is over."""
    job = await find_job(visit)
    last = visit.request.headers.get("last-event-id") or visit.request.query_params.get("from") or "1:0"
    return Events(visit, _follow(visit, job, last))


async def download(visit: Visit) -> Response:
    """Send the log as it is now, as text."""
    job = await find_job(visit)
    headers = {
        "Content-Disposition": f'attachment; filename="{job.id}.log"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return StreamingResponse(_text(visit, job), media_type="text/plain; charset=utf-8", headers=headers)


async def _follow(visit: Visit, job: Job, place: str) -> AsyncGenerator[bytes]:
    logs = visit.context.logs
    async with aclosing(logs.follow(job, read_place(place))) as blocks:
        async for block in blocks:
            yield KEEP_ALIVE if block is None else event("lines", _json(block), place_text(block.end))
    if await _is_over(visit, job):
        yield event("end", b"null")


async def _is_over(visit: Visit, job: Job) -> bool:
    """Say whether nothing will ever follow; else the server stops, and the page comes back to the next."""
    try:
        return (await visit.context.jobs.get(visit.caller, job.namespace, job.id)).stage.is_terminal
    except RunsteadError:
        return True


async def _text(visit: Visit, job: Job) -> AsyncGenerator[bytes]:
    async with aclosing(visit.context.logs.copy(job)) as blocks:
        async for block in blocks:
            yield b"".join([line[PREFIX_BYTES:] for line in block.splitlines(keepends=True)])
            await asyncio.sleep(0)


def _json(written: Written) -> bytes:
    """Return lines as one JSON object. They are encoded as events, one each, of which only the frames are changed."""
    places = f'{{"start":"{place_text(written.start)}","end":"{place_text(written.end)}","lines":['
    objects = written.encoded.removeprefix(b"data: ").removesuffix(b"\n\n").replace(b"\n\ndata: ", b",")
    return places.encode("ascii") + objects + b"]}"
