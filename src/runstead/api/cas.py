"""The content store on the wire: what `hf_xet` calls below its `casUrl` (wire-storage §5 to §9).

Plain ASGI, because bodies of 64 MiB stream through here in both directions. What is not known is 404, with any
method: clients take that as the sign to try something older, and give up on 405 and 501.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from runstead.api import cas_files, cas_shards, cas_xorbs
from runstead.api.bodies import BodyLost
from runstead.api.cas_request import CasRequest
from runstead.api.errors import error_response, status_of
from runstead.api.exchange import ClientGone, Exchange
from runstead.model.errors import Invalid, NotFound, RunsteadError
from runstead.services.content.service import PATH, StoredContent
from runstead.xet.errors import InvalidHash

log = structlog.get_logger()

TELEMETRY = "/v1/telemetry"
_MOST_TELEMETRY_BYTES = 1_000_000

Endpoint = Callable[[CasRequest], Awaitable[None]]

# Below `/xet/{store id}`. A star stands for one part of the path.
ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "v1/chunks/*/*", cas_files.find_chunk),
    ("POST", "v1/xorb-grants/*/*", cas_xorbs.grant),
    ("PUT", "grants/*", cas_xorbs.put),
    ("POST", "v1/xorb-commits/*/*/grant/*", cas_xorbs.commit),
    ("POST", "v1/xorbs/*/*", cas_xorbs.post),
    ("HEAD", "v1/xorbs/*/*", cas_xorbs.head),
    ("GET", "data/*/*", cas_xorbs.get),
    ("HEAD", "data/*/*", cas_xorbs.get),
    ("POST", "v2/shards", cas_shards.post_v2),
    ("POST", "v1/shards", cas_shards.post_v1),
    ("GET", "v2/reconstructions/*", cas_files.reconstruct_v2),
    ("GET", "v1/reconstructions/*", cas_files.reconstruct_v1),
    ("POST", "v1/reconstructions", cas_files.reconstruct_many),
    ("POST", "v2/reconstructions", cas_files.reconstruct_together),
    ("HEAD", "v1/files/*", cas_files.head),
    # hf_xet 1.1 knows no version in any path, 1.5 none in that of shards.
    ("GET", "chunks/*/*", cas_files.find_chunk),
    ("POST", "xorbs/*/*", cas_xorbs.post),
    ("POST", "shards", cas_shards.post_v1),
    ("GET", "reconstructions/*", cas_files.reconstruct_v1),
)


class CasRoutes:
    """Serves the content store's part of the origin and hands everything else on."""

    def __init__(self, app: ASGIApp, content: StoredContent, public_url: str | None = None) -> None:
        self._app = app
        self._content = content
        self._public_url = public_url
        self._routes = _by_size(ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(PATH + "/"):
            await _serve(Exchange(scope, receive, send), self._dispatch)
        elif path == TELEMETRY:
            await _serve(Exchange(scope, receive, send), _telemetry)
        else:
            await self._app(scope, receive, send)

    async def _dispatch(self, exchange: Exchange) -> None:
        store_id, _, rest = exchange.path.removeprefix(PATH + "/").partition("/")
        words = rest.split("/")
        for pattern, endpoint in self._routes.get((exchange.method, len(words)), ()):
            if all(expected in ("*", word) for expected, word in zip(pattern, words, strict=True)):
                parts = tuple(word for expected, word in zip(pattern, words, strict=True) if expected == "*")
                cas_url = f"{self._public_url or exchange.base_url}{PATH}/{store_id}"
                await endpoint(CasRequest(exchange, self._content, cas_url, store_id, parts))
                return
        raise NotFound(f"the content store has no such address: {exchange.method} /{rest[:200]}")


async def _serve(exchange: Exchange, endpoint: Callable[[Exchange], Awaitable[None]]) -> None:
    with suppress(ClientGone, BodyLost):
        try:
            await endpoint(exchange)
        except InvalidHash as error:
            await _refuse(exchange, Invalid(str(error)))
        except RunsteadError as error:
            await _refuse(exchange, error)
        except (ClientGone, BodyLost):
            raise
        except Exception as error:
            log.error("a request to the content store failed", path=exchange.path[:200], exc_info=error)
            await _refuse(exchange, None)


async def _refuse(exchange: Exchange, error: RunsteadError | None) -> None:
    if exchange.started:
        # Too late for a status: the server closes the connection because the announced length was not reached.
        return
    if error is not None and not isinstance(error, NotFound):
        # Most clients show the status alone, so what was wrong is said here.
        log.info("the content store refused a request", path=exchange.path[:200], reason=error.message)
    if error is None:
        response = error_response(500, "InternalError", "the server failed on this request; its log says why")
    else:
        response = error_response(status_of(error), type(error).__name__, error.message)
    headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    await exchange.answer(response.status_code, bytes(response.body), headers)


async def _telemetry(exchange: Exchange) -> None:
    """Take what clients report of their transfers, and keep nothing of it."""
    if exchange.method == "POST":
        await exchange.whole_body(_MOST_TELEMETRY_BYTES)
        await exchange.answer_json(200, {})
    else:
        raise NotFound("there is nothing to read here")


def _by_size(
    routes: tuple[tuple[str, str, Endpoint], ...],
) -> dict[tuple[str, int], list[tuple[list[str], Endpoint]]]:
    """Return the routes by method and number of parts."""
    found: dict[tuple[str, int], list[tuple[list[str], Endpoint]]] = {}
    for method, pattern, endpoint in routes:
        words = pattern.split("/")
        found.setdefault((method, len(words)), []).append((words, endpoint))
    return found
