"""One local proxy for all environments of this process, for clients that cannot send a token.

    http://127.0.0.1:<port>/<secret>/<job id>/...   ->   the address of the job's port, with the token added

Only needed where neither a public port nor a Runstead server's pass will do. It listens on loopback alone, and a
secret in the path keeps other users of the machine out. One event loop in one thread serves them all, with one pool of
connections. An environment that died is a 502 with `X-Runstead-Cause`; the environment's own errors pass unchanged.
Which it is, the job tells: it is looked at when the environment cannot be reached, or answers what a proxy in front of
a dead one may answer too.
"""

import asyncio
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

from runstead.openenv.errors import EnvironmentDied
from runstead.openenv.journal import write
from runstead.openenv.loopback import is_loopback

_START_SECONDS = 20.0
_CONNECT_SECONDS = 10.0
_MESSAGE_BYTES = 100 << 20  # of a WebSocket: what OpenEnv's own client takes
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)
_HANDSHAKE = frozenset({"sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"})
_ABNORMAL = 1014  # RFC 6455's registry: bad gateway
_CAUSE = "x-runstead-cause"
_DOUBTFUL = frozenset({404, 410, 502, 503, 504})  # what a proxy may answer in place of an environment that died

Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Target:
    job_id: str
    url: str
    headers: Callable[[], Mapping[str, str]]
    death: Callable[[], EnvironmentDied | None]

    async def failed(self, error: Exception) -> "_Failure":
        """Return what to answer when the environment cannot be reached."""
        died = await asyncio.to_thread(self.death)
        if died is not None:
            return _died(died)
        text = f"the environment cannot be reached: {type(error).__name__}: {error}"
        write(logging.WARNING, text, job_id=self.job_id, cause="unreachable")
        return _Failure("unreachable", text)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A 502 of the relay's own."""

    cause: str
    text: str


def _died(died: EnvironmentDied) -> _Failure:
    cause = died.failure_class or "ended"
    write(logging.ERROR, "environment died", job_id=died.job_id, stage=died.stage, cause=cause)
    return _Failure("job-ended", str(died))


class Relay:
    """The local proxy; it starts with its first environment."""

    def __init__(self) -> None:
        self._targets: dict[str, _Target] = {}
        self._secret = secrets.token_urlsafe(16)
        self._starting = threading.Lock()
        self._base_url: str | None = None
        self._client: Any = None

    def add(
        self,
        job_id: str,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        death: Callable[[], EnvironmentDied | None],
    ) -> str:
        """Return the local address of a port. `headers` are added to each request; `death` says if the job is over."""
        with self._starting:
            if self._base_url is None:
                self._base_url = self._start()
            self._targets[job_id] = _Target(job_id, url, headers, death)
            return f"{self._base_url}/{self._secret}/{job_id}"

    def drop(self, job_id: str) -> None:
        """Serve an environment no more. Idempotent."""
        self._targets.pop(job_id, None)

    def _start(self) -> str:
        import uvicorn

        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            self._app,
            log_config=None,  # how this process logs is the trainer's business
            access_log=False,
            lifespan="off",
            interface="asgi3",
            ws="websockets-sansio",
            ws_max_size=_MESSAGE_BYTES,
        )
        server = uvicorn.Server(config)
        ready = threading.Event()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(server, listener, ready)), name="openenv-relay", daemon=True
        )
        thread.start()
        if not ready.wait(_START_SECONDS):
            raise RuntimeError("the local proxy for environments does not start")
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def _serve(self, server: Any, listener: socket.socket, ready: threading.Event) -> None:
        self._client = _plain_client()
        listener.listen(256)
        ready.set()  # what connects from here on waits in the backlog
        server.install_signal_handlers = lambda: None
        await server.serve(sockets=[listener])

    async def _app(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        _, secret, job_id, *rest = [*scope["raw_path"].decode("latin-1").split("/", 3), "", ""]
        target = self._targets.get(job_id) if secrets.compare_digest(secret, self._secret) else None
        query = scope["query_string"].decode("latin-1")
        url = f"{target.url}/{rest[0]}{'?' + query if query else ''}" if target else ""
        match scope["type"], target:
            case "http", None:
                await _answer(send, 404, "no-such-port", "no environment of this process is there")
            case "http", _Target():
                await self._pass_request(scope, receive, send, target, url)
            case "websocket", _Target():
                await _pass_websocket(scope, receive, send, target, url)
            case _:
                await receive()
                await send({"type": "websocket.close", "code": 1008})

    async def _pass_request(
        self, scope: dict[str, Any], receive: Receive, send: Send, target: _Target, url: str
    ) -> None:
        headers = [*_kept(scope["headers"]), *target.headers().items()]
        began = False
        try:
            async with self._client.stream(
                scope["method"],
                url,
                headers=headers,
                content=_body(receive) if _has_body(scope["headers"]) else None,
                timeout=None,  # how long a step may take is the client's business
            ) as answer:
                died = None
                if answer.status_code in _DOUBTFUL and _CAUSE not in answer.headers:
                    died = await asyncio.to_thread(target.death)
                if died is not None:
                    failure = _died(died)
                    await _answer(send, 502, failure.cause, failure.text)
                    return
                kept = _kept([(k.encode(), v.encode("latin-1")) for k, v in answer.headers.multi_items()])
                raw = [(k.encode(), v.encode("latin-1")) for k, v in kept]
                await send({"type": "http.response.start", "status": answer.status_code, "headers": raw})
                began = True
                async for data in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except Exception as error:
            if began:  # the connection is cut: half an answer must not look like a whole one
                text = f"the environment's answer broke off: {type(error).__name__}: {error}"
                write(logging.WARNING, text, job_id=target.job_id, cause="connection-lost")
                return
            failure = await target.failed(error)
            await _answer(send, 502, failure.cause, failure.text)


def _plain_client() -> Any:
    """Return the Hub library's HTTP client, with the user's settings but none of its own ideas.

    It would read errors itself, follow redirects, and keep the cookies of one environment for the next.
    """
    from huggingface_hub.utils import get_async_session

    client = get_async_session()
    client.event_hooks = {"request": [], "response": []}
    client.follow_redirects = False
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


def _kept(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return [(name, value) for name, value in pairs if name.lower() not in _HOP_BY_HOP]


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client went away")
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _answer(send: Send, status: int, cause: str, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-runstead-cause", cause.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _pass_websocket(scope: dict[str, Any], receive: Receive, send: Send, target: _Target, url: str) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus, WebSocketException

    await receive()
    headers = [pair for pair in _kept(scope["headers"]) if pair[0].lower() not in _HANDSHAKE]
    try:
        upstream = await connect(
            "ws" + url.removeprefix("http"),
            additional_headers=[*headers, *target.headers().items()],
            subprotocols=scope.get("subprotocols") or None,
            open_timeout=_CONNECT_SECONDS,
            max_size=_MESSAGE_BYTES,
            proxy=None if is_loopback(url) else True,  # where the machine has one, as for every other request
        )
    except InvalidStatus as error:
        status, body = error.response.status_code, bytes(error.response.body or b"")
        cause = error.response.headers.get(_CAUSE)
        died = await asyncio.to_thread(target.death) if status in _DOUBTFUL and cause is None else None
        if died is not None:
            failure = _died(died)
            status, cause, body = 502, failure.cause, failure.text.encode()
        await _refuse(send, status, cause, body)
        return
    except (OSError, TimeoutError, WebSocketException) as error:
        failure = await target.failed(error)
        await _refuse(send, 502, failure.cause, failure.text.encode())
        return
    async with upstream:
        await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol})
        there = asyncio.create_task(_to_environment(receive, upstream))
        back = asyncio.create_task(_to_client(send, upstream))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        for task in (there, back):
            task.cancel()
        await asyncio.gather(there, back, return_exceptions=True)


async def _refuse(send: Send, status: int, cause: str | None, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(_CAUSE.encode(), cause.encode())] if cause else []
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _to_environment(receive: Receive, upstream: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or 1000
            await upstream.close(code if code not in (1005, 1006) else 1000)
            return
        text, data = message.get("text"), message.get("bytes")
        await upstream.send(text if text is not None else data)


async def _to_client(send: Send, upstream: Any) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        async for message in upstream:
            kind = "text" if isinstance(message, str) else "bytes"
            await send({"type": "websocket.send", kind: message})
    except ConnectionClosed:
        pass
    code = upstream.close_code
    await send(
        {
            "type": "websocket.close",
            "code": _ABNORMAL if code in (None, 1006) else 1000 if code == 1005 else code,
            "reason": upstream.close_reason or "",
        }
    )


relay = Relay()
