"""A content store that believes everything: the fastest peer a client can meet, for `xet.py`.

Speaks just enough of the protocol for `hf_xet` to upload. Bodies go into files as they come, unchecked and not made
durable; without a directory they are dropped.

    python benchmarks/xet_stub.py [DIRECTORY]    prints `ready PORT`
"""

import itertools
import json
import re
import socket
import sys
import threading
from pathlib import Path

NUMBERS = itertools.count()
GRANT = re.compile(rb"POST /cas/v1/xorb-grants/[^/]+/([0-9a-f]+)")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listener.getsockname()[1]
    print(f"ready {port}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, port, folder), daemon=True).start()


def serve(connection: socket.socket, port: int, folder: Path | None) -> None:
    buffer = memoryview(bytearray(1 << 18))
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = b""
        while True:
            while b"\r\n\r\n" not in waiting:
                count = connection.recv_into(buffer)
                if not count:
                    return
                waiting += buffer[:count]
            head, _, body = waiting.partition(b"\r\n\r\n")
            found = LENGTH.search(head)
            left = int(found[1]) if found else 0
            waiting, body = body[left:], body[:left]
            left -= len(body)
            keep = folder is not None and head.startswith(b"PUT")
            file = (folder / str(next(NUMBERS))).open("wb", 0) if keep and folder else None
            if file:
                file.write(body)
            while left:
                count = connection.recv_into(buffer, min(left, len(buffer)))
                if not count:
                    return
                left -= count
                if file:
                    file.write(buffer[:count])
            if file:
                file.close()
            connection.sendall(answer(head, port))


def answer(head: bytes, port: int) -> bytes:
    status, body = 200, b""
    if head.startswith(b"GET /token"):
        token = {"accessToken": "x", "exp": 1 << 33, "casUrl": f"http://127.0.0.1:{port}/cas"}
        body = json.dumps(token).encode()
    elif found := GRANT.match(head):
        name = found[1].decode()
        url = f"http://127.0.0.1:{port}/put/{name}"
        status, body = 201, json.dumps({"id": name, "method": "PUT", "url": url, "headers": {}}).encode()
    elif head.startswith(b"POST /cas/v2/shards"):
        body = b'{"type":"result","result":1}\n'
    elif head.startswith(b"GET"):
        status = 404
    return b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


if __name__ == "__main__":
    sys.exit(main())
