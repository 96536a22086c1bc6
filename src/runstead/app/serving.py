"""Runs a server from its first instant to its last."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import uvicorn

from runstead.api.routes import create_api
from runstead.app.addresses import URL_FILE, node_endpoint
from runstead.app.data_directory import hold_data_directory
from runstead.app.executors import build_executor
from runstead.app.listening import BACKLOG, Connection, bind, covers, open_many_files, run_http
from runstead.app.log import configure_logging
from runstead.app.ports import build_tls
from runstead.app.server import Server
from runstead.app.volumes import volume_notes
from runstead.events.interface import LOGS, WORK, EventBus
from runstead.events.local import LocalEventBus
from runstead.kit.clock import SystemClock
from runstead.kit.settings import Settings
from runstead.mcp.face import with_mcp
from runstead.stores.opening import open_database
from runstead.web.routes import with_pages

_SWITCH_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Started:
    """What there is to say about a server that has just come up."""

    url: str
    owner: str
    token: str | None  # its value, on the very first start only
    notes: tuple[str, ...]


def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Started], None] | None = None,
    stop_jobs_at_exit: bool = False,
) -> int:
    """Run a server until SIGTERM or SIGINT; return the exit code.

    Jobs go on when it stops, unless `stop_jobs_at_exit`. Raises Conflict when another server uses the data
    directory, Unavailable when the directory or the port cannot be had.
    """
    configure_logging(settings)
    with hold_data_directory(settings.server.data_dir):
        import uvloop

        # A database thread that has its answer waits for the interpreter: with the usual 5 ms a busy event loop
        # makes one in a hundred submissions take a second.
        sys.setswitchinterval(_SWITCH_SECONDS)
        return uvloop.run(_serve(settings, on_ready, stop_jobs_at_exit))


async def _serve(settings: Settings, on_ready: Callable[[Started], None] | None, stop_jobs_at_exit: bool) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        database = await open_database(settings.database_url)
        stack.push_async_callback(database.close)
        events = LocalEventBus()
        listeners = [bind(settings.server.host, settings.server.port)]
        port = listeners[0].getsockname()[1]
        executor = build_executor(settings, _wake(events), port)
        capabilities = await executor.open()
        stack.push_async_callback(executor.close)
        open_many_files()  # now, for what starts jobs has the usual limit already, and hands it on to them
        if capabilities.host_address and not covers(settings.server.host, capabilities.host_address):
            listeners.append(bind(capabilities.host_address, port))
        server = Server(settings, database, events, executor, capabilities, port)
        stack.callback(server.content.close)
        await server.content.open()
        await server.provider.open()
        stack.push_async_callback(server.provider.close)
        owner, token = await server.accounts.ensure_owner()
        app = create_api(server.context)
        mcp = with_mcp(app, server.mcp)
        stack.push_async_callback(mcp.close)
        http = uvicorn.Server(
            uvicorn.Config(
                with_pages(app, server.web),
                http=cast("type[asyncio.Protocol]", partial(Connection, proxy=server.proxy)),
                ws="none",
                lifespan="off",
                proxy_headers=False,  # see runstead.proxy.forwarding
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=10,
                backlog=BACKLOG,
            )
        )
        tls = build_tls(settings, SystemClock())
        (settings.server.data_dir / URL_FILE).write_text(node_endpoint(settings, port), encoding="utf-8")
        serving = asyncio.create_task(run_http(http, listeners, tls))
        duties = [asyncio.create_task(duty) for duty in server.duties()]
        try:
            if on_ready is not None:
                notes = (
                    *(*capabilities.notes, *capabilities.missing, *volume_notes(settings, capabilities)),
                    *(f"{one.text}; {one.remedy}" for one in (tls.shortcomings if tls is not None else ())),
                )
                on_ready(Started(server.url, owner.name, token, notes))
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop_jobs_at_exit:  # while requests are answered: what jobs wrote is saved through them
                await server.stop_jobs()
            server.logs.close()
            server.following.close()
            server.sandboxes.close()
            server.metrics.close()
            await mcp.close()
            http.should_exit = True
            await serving
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
    return 0


def _wake(events: EventBus) -> Callable[[str, str], None]:
    """Return what an executor calls when an attempt changed ("jobs") or its log grew ("logs")."""
    topics = {"jobs": WORK, "logs": LOGS}
    return lambda kind, job_id: events.publish(topics[kind], job_id)
