"""The content store alone, served as the whole server serves it: for tests and benchmarks that kill it at will.

    python tests/cas_server.py DIRECTORY [--port PORT]

Prints `ready PORT`. `GET /token/read|write?scope=S` gives a token, as a bucket's token routes do; `GET
/plain/{file hash}` gives a file as `resolve` does.
"""

import argparse
import os
import socket
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from runstead.api.bodies import BodyProtocol
from runstead.api.cas import CasRoutes
from runstead.api.exchange import Exchange
from runstead.kit.clock import SystemClock
from runstead.model.accounts import Permission
from runstead.objects.disk import DiskObjectStore
from runstead.objects.interface import ObjectStore
from runstead.objects.s3 import S3ObjectStore
from runstead.services.content.service import StoredContent
from runstead.services.secrets import load_key
from runstead.stores.content import SqlContentStore
from runstead.stores.opening import open_database
from runstead.xet.hashes import hash_from_text
from sudden_death import die_at


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--s3", help="s3://bucket/prefix, at AWS_ENDPOINT_URL")
    parser.add_argument("--die-at", type=int, help="end suddenly at the n-th durable step")
    arguments = parser.parse_args()
    if arguments.die_at:
        die_at(arguments.die_at)
    uvloop.run(serve(arguments.directory, arguments.port, arguments.s3))


async def serve(directory: Path, port: int, s3: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    database = await open_database(f"sqlite:///{directory / 'test.db'}")
    objects: ObjectStore
    if s3:
        objects = S3ObjectStore(s3, directory / "staging", endpoint=os.environ["AWS_ENDPOINT_URL"], region="us-east-1")
    else:
        objects = DiskObjectStore(directory / "objects")
    content = StoredContent(SqlContentStore(database), objects, SystemClock(), load_key(directory / "key"))
    await content.open()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    app = CasRoutes(Rest(content), content)
    config = uvicorn.Config(
        app, http=BodyProtocol, ws="none", lifespan="off", access_log=False, log_level="warning", server_header=False
    )
    print(f"ready {listener.getsockname()[1]}", flush=True)
    await uvicorn.Server(config).serve([listener])
    content.close()
    await database.close()


class Rest:
    """What the Hub's side of the server would answer."""

    def __init__(self, content: StoredContent) -> None:
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        _, first, *rest = exchange.path.split("/")
        if first == "token":
            await self._token(exchange, Permission(rest[0]))
        elif first == "plain":
            await self._plain(exchange, hash_from_text(rest[0]))
        elif first == "take":
            hashes = [hash_from_text(text) for text in rest[0].split(",")]
            found = await self._content.take(exchange.query()["scope"], hashes)
            await exchange.answer_json(200, list(found.values()))
        else:
            await exchange.answer(404)

    async def _token(self, exchange: Exchange, permission: Permission) -> None:
        scope = exchange.query().get("scope", "bucket:test")
        token = await self._content.cas_token(scope, permission, exchange.base_url)
        found = {"accessToken": token.access_token, "exp": token.expires_at, "casUrl": token.cas_url}
        await exchange.answer_json(200, found)

    async def _plain(self, exchange: Exchange, file_hash: bytes) -> None:
        file = await self._content.file(file_hash)
        start, end = 0, file.size
        header = exchange.header(b"range")
        if header:
            first, _, last = header.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else file.size
        left = min(end, file.size) - start
        await exchange.start(206 if header else 200, [(b"content-length", b"%d" % left)])
        async for piece in self._content.read(file_hash, start, end):
            left -= len(piece)
            await exchange.send(piece, more=left > 0)
        if file.size == 0:
            await exchange.send(b"", more=False)


if __name__ == "__main__":
    main()
