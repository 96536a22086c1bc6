"""A program for jobs that serves a port: what it was sent, answers of every kind, and a WebSocket that echoes.

Run as `python ports_app.py PORT WEBSOCKET_PORT`. It speaks HTTP by hand, for it has to do what servers do not.
"""

import asyncio
import hashlib
import json
import os
import socket
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

STEPS = asyncio.Semaphore(0)  # each lets one more event go
closed: list[tuple[int | None, str | None]] = []  # how WebSockets ended, as this side saw it


async def read_body(reader: asyncio.StreamReader, fields: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        trailers: dict[str, str] = {}
        while (line := (await reader.readline()).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            trailers[name.lower()] = value.strip()
        return body, trailers
    return await reader.readexactly(int(fields.get("content-length", 0))), {}


def head(status: str, *fields: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode("latin-1")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    line = await reader.readline()
    if not line:
        return False
    method, target, version = line.decode("latin-1").split()
    raw: list[tuple[str, str]] = []
    while (text := (await reader.readline()).strip()) != b"":
        name, _, value = text.decode("latin-1").partition(":")
        raw.append((name, value.strip()))
    fields = {name.lower(): value for name, value in raw}
    path, _, query = target.partition("?")
    kind = "application/json"
    if path in ("/early", "/rude"):  # answers before it reads
        writer.write(head("413 Too Large", "Content-Length: 0"))
        if path == "/early":  # what is unread at the end would reset the connection
            writer.write_eof()
            while await reader.read(65536):
                pass
        return False
    if path == "/converse":  # says each piece again before there is another one
        writer.write(head("200 OK", "Transfer-Encoding: chunked"))
        while size := int(await reader.readline(), 16):
            writer.write(b"%x\r\n%b" % (size, await reader.readexactly(size + 2)))
        writer.write(b"0\r\n\r\n")
        await reader.readline()
        return True
    if path == "/continue" and fields.get("expect") == "100-continue":
        writer.write(head("100 Continue"))
    if path == "/upload":
        size, left, digest = int(fields["content-length"]), int(fields["content-length"]), hashlib.sha256()
        while left:
            data = await reader.read(min(left, 1 << 18))
            if not data:
                return False
            digest.update(data)
            left -= len(data)
        body, trailers = json.dumps({"size": size, "sha256": digest.hexdigest()}).encode(), {}
    else:
        body, trailers = await read_body(reader, fields)
    match path:
        case "/upload":
            pass
        case "/events":
            writer.write(head("200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
            for number in range(5):
                text = f"data: {number}\n\n".encode()
                writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                await STEPS.acquire()
            writer.write(b"0\r\n\r\n")
            return True
        case "/step":
            STEPS.release()
            body = b"{}"
        case "/trailers":
            writer.write(head("200 OK", "Transfer-Encoding: chunked", "Trailer: X-Sum"))
            writer.write(b"5;some=extension\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n")
            return True
        case "/big":
            left = int(query)
            writer.write(head("200 OK", f"Content-Length: {left}"))
            block = bytes(range(256)) * 1024
            while left > 0:
                writer.write(block[:left])
                await writer.drain()
                left -= len(block)
            return True
        case "/until-close":
            writer.write(head("200 OK", "Content-Type: text/plain") + b"until the end")
            return False
        case "/short":  # promises more than it gives
            writer.write(head("200 OK", "Content-Length: 100") + b"too little")
            return False
        case "/nothing":
            return False
        case "/rubbish":
            writer.write(b"this is no HTTP\r\n\r\n")
            return False
        case "/two-lengths":
            writer.write(head("200 OK", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n")
            return False
        case "/hang":
            await asyncio.sleep(3600)
        case "/die":
            print("dying as asked", flush=True)
            os._exit(3)
        case "/hints":
            writer.write(head("103 Early Hints", "Link: </style.css>; rel=preload"))
            writer.write(head("200 OK", "Content-Length: 2") + b"ok")
            return True
        case "/upgrade" if fields.get("upgrade") == "shout":
            writer.write(head("101 Switching Protocols", "Connection: Upgrade", "Upgrade: shout") + b"READY\n")
            while data := await reader.read(65536):
                writer.write(data.upper())
                await writer.drain()
            return False
        case "/resolve":
            try:
                found = await asyncio.get_running_loop().getaddrinfo(query, 1, type=socket.SOCK_STREAM)
            except OSError:
                found = []
            body = json.dumps(sorted({address[0] for *_, address in found})).encode()
        case "/connect":  # what is said at another address
            host, _, port = query.partition(":")
            try:
                async with asyncio.timeout(2):
                    there, back = await asyncio.open_connection(host, int(port))
                    back.write(b"GET /whoami HTTP/1.1\r\n\r\n")
                    body = json.dumps((await there.readline()).decode().strip()).encode()
                    back.close()
            except (OSError, TimeoutError) as error:
                body = json.dumps(type(error).__name__).encode()
        case "/page" | "/folder/page":
            kind, body = "text/html", b"<title>page</title><script src='script.js'></script>"
        case "/script.js" | "/folder/script.js":
            kind = "text/javascript"
            body = b"fetch('x', {headers: {'X-Mine': '1'}}).then(a => a.json()).then(a => document.title = a.target)"
        case "/environment":
            body = json.dumps(dict(os.environ)).encode()
        case "/head-of":
            writer.write(head("200 OK", *json.loads(body), "Content-Length: 0"))
            return True
        case _ if path.startswith("/status/"):
            writer.write(head(f"{path[8:]} As Asked", "Content-Length: 4", "X-From: app") + b"mine")
            return True
        case _:
            said = {"method": method, "target": target, "version": version, "fields": raw, "trailers": trailers}
            body = json.dumps(said | {"body": body.decode("latin-1")}).encode()
    writer.write(head("200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body)}"))
    writer.write(b"" if method == "HEAD" else body)
    return version == "HTTP/1.1"


async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await answer(reader, writer):
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def echo(connection: ServerConnection) -> None:
    try:
        async for message in connection:
            await reply(connection, message)
    except ConnectionClosed:
        pass
    closed.append((connection.close_code, connection.close_reason))


async def reply(connection: ServerConnection, message: str | bytes) -> None:
    match message:
        case "close":
            await connection.close(4321, "as asked")
        case "ping":
            await (await connection.ping(b"and you"))
            await connection.send("there was a pong")
        case "how did the last one end":
            while not closed:
                await asyncio.sleep(0.01)  # its end may still be on the way
            await connection.send(json.dumps(closed[-1]))
        case _:
            await connection.send(message)


async def main() -> None:
    http = await asyncio.start_server(client, "0.0.0.0", int(sys.argv[1]), limit=1 << 20)
    async with http, serve(echo, "127.0.0.1", int(sys.argv[2]), max_size=None):
        print("listening", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
