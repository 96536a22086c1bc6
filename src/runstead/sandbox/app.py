"""The protocol as an ASGI application. Which sandbox is meant says the visit that the proxy let in."""

import re
from collections.abc import Awaitable, Callable, Mapping

import structlog
from starlette.types import Receive, Scope, Send

import runstead
from runstead.model.errors import NotFound, NotRunning, RunsteadError, Unavailable
from runstead.model.jobs import Job
from runstead.model.sandboxes import Mode
from runstead.sandbox import commands, errors, files, hosts
from runstead.sandbox.exchange import ClientGone, Exchange
from runstead.services.exposure import Visit
from runstead.services.sandboxes.sandboxes import Room, Sandboxes

log = structlog.get_logger()

PROTOCOL = 3
_VISIT = "runstead.visit"  # where the proxy puts the visit

_POOLED = re.compile(r"/v1/sandboxes/([^/]+)(/.*)")
_PROCESS = re.compile(r"/processes/([^/]+)")

InRoom = Callable[[Exchange, Room], Awaitable[None]]

_ROUTES: Mapping[str, Mapping[str, InRoom]] = {
    "/processes": {"POST": commands.spawn, "GET": commands.processes},
    "/files/read": {"GET": files.read},
    "/files/write": {"PUT": files.write},
    "/files/stat": {"GET": files.stat},
    "/files/list": {"GET": files.listing},
    "/files/delete": {"DELETE": files.delete},
    "/files/mkdir": {"POST": files.make_folder},
}


class SandboxApp:
    """Answers requests for sandboxes."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        visit: Visit = scope["extensions"][_VISIT]
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange, visit.job)
        except ClientGone:
            pass
        except RunsteadError as error:
            await _refuse(exchange, errors.status_of(error), error.message)
        except OSError as error:
            await _refuse(exchange, *errors.system_error(error))
        except Exception:
            log.exception("a request to a sandbox failed", job=visit.job.id, method=exchange.method, path=exchange.path)
            await _refuse(exchange, 500, "the server failed on this request; its log says why")

    async def _answer(self, exchange: Exchange, job: Job) -> None:
        path = exchange.path
        if path == "/health":
            await self._health(exchange, job)
        elif path == "/v1/sandboxes":
            await self._host(exchange, job)
        elif pooled := _POOLED.fullmatch(path):
            sandbox_id, rest = pooled.groups()
            if rest == "/token":
                _allow(exchange, "GET")
                await hosts.token(exchange, self._sandboxes, job, sandbox_id)
                return
            async with self._sandboxes.pooled(job, sandbox_id, exchange.token) as room:
                await self._in_room(exchange, room, rest)
        elif path.startswith("/v1/sandboxes/"):
            _allow(exchange, "DELETE")
            await hosts.remove(exchange, self._sandboxes, job, path.removeprefix("/v1/sandboxes/"))
        elif path.startswith("/v1/"):
            async with self._sandboxes.dedicated(job, exchange.token) as room:
                await self._in_room(exchange, room, path.removeprefix("/v1"))
        else:
            raise _nothing(exchange)

    async def _health(self, exchange: Exchange, job: Job) -> None:
        """Say whether commands can be executed; more about it to who has the token."""
        _allow(exchange, "GET", "HEAD")
        try:
            await self._sandboxes.is_open(job)
        except NotRunning as error:
            raise Unavailable(f"the sandbox cannot be used yet, or no longer: {error.message}") from error
        found: dict[str, object] = {"status": "ok", "protocol": PROTOCOL}
        if await self._sandboxes.opens(job, exchange.token):
            pooled = job.spec.sandbox is not None and job.spec.sandbox.mode is Mode.POOL
            began = job.started_at or job.created_at
            found |= {
                "version": runstead.__version__,
                "uptime_ms": int((self._sandboxes.clock.now() - began).total_seconds() * 1000),
                "mode": "host" if pooled else "dedicated",
                "sandboxes": len(await self._sandboxes.members(job, exchange.token)) if pooled else 1,
            }
        await exchange.answer_json(found)

    async def _host(self, exchange: Exchange, job: Job) -> None:
        _allow(exchange, "POST", "GET", "DELETE")
        method = {"POST": hosts.create, "GET": hosts.page, "DELETE": hosts.remove_all}[exchange.method]
        await method(exchange, self._sandboxes, job)

    async def _in_room(self, exchange: Exchange, room: Room, path: str) -> None:
        if path == "/exec":
            _allow(exchange, "POST")
            await commands.execute(exchange, room, self._sandboxes.closing)
        elif process := _PROCESS.fullmatch(path):
            _allow(exchange, "DELETE")
            await commands.kill(exchange, room, process[1])
        elif routes := _ROUTES.get(path):
            _allow(exchange, *routes)
            await routes[exchange.method](exchange, room)
        else:
            raise _nothing(exchange)


def _allow(exchange: Exchange, *methods: str) -> None:
    if exchange.method not in methods:
        raise NotFound(f"{exchange.method} is not served at this address, which takes {' and '.join(methods)}")


def _nothing(exchange: Exchange) -> NotFound:
    return NotFound(f"the sandbox protocol has no such address: {exchange.method} {exchange.path[:100]}")


async def _refuse(exchange: Exchange, status: int, message: str) -> None:
    """Answer with an error; one in the middle of an answer cuts it where it is."""
    if exchange.started:
        log.info("an answer of a sandbox was cut", path=exchange.path, reason=message)
        await exchange.send(b"", more=False)
        return
    text = message.encode("utf-8", "backslashreplace").decode()
    await exchange.answer_json({"error": text}, status)
