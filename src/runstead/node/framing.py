"""Messages on the sockets between our programs: four bytes of length, then JSON.

Both ends belong to one user on one machine; the length bound only keeps a stray client from filling memory.
"""

import json
import os
import socket
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

LIMIT = 16 * 1024 * 1024

_DECODER = json.JSONDecoder()  # json.loads would look at each message for its encoding


def encode(message: Mapping[str, object]) -> bytes:
    """Return the bytes of one message."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def is_silent(connection: socket.socket) -> bool:
    """Say whether the other end of a connection that does not block is there and has said nothing."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def receive(connection: socket.socket) -> "dict[str, Any] | None":
    """Read one message; None when the other side went away before its end."""
    head = _exactly(connection, 4)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > LIMIT:
        return None
    body = _exactly(connection, length)
    return None if body is None else decode(body)


def decode(body: bytes) -> "dict[str, Any]":
    """Return the message whose body this is. Raises ValueError for what is none."""
    message: Any = _DECODER.decode(body.decode())
    if message.__class__ is not dict:
        raise ValueError("a message is an object")
    return message


class Incoming:
    """Messages of a stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes) -> "list[dict[str, Any]]":
        """Take a piece and return the messages that it completes. Raises ValueError for what is none."""
        data = self._data
        data += piece
        found: list[dict[str, Any]] = []
        while len(data) >= 4:
            length = int.from_bytes(data[:4], "big")
            if length > LIMIT:
                raise ValueError(f"a message is too long: {length} bytes")
            if len(data) < 4 + length:
                break
            found.append(decode(bytes(data[4 : 4 + length])))
            del data[: 4 + length]
        return found


def send(connection: socket.socket, message: Mapping[str, object], fds: "Sequence[int]" = ()) -> None:
    """Send one message, with open files beside it. Raises OSError."""
    data = encode(message)
    if not fds:
        connection.sendall(data)
        return
    sent = socket.send_fds(connection, [data], fds)
    connection.sendall(memoryview(data)[sent:])


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        try:
            part = connection.recv(min(count, 1 << 18))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def socket_address(folder: int, folder_path: str, name: str) -> str:
    """Return an address for a socket in a folder, whatever the length of its path (108 bytes is the limit).

    `folder` is an open file descriptor of it; where /proc is, the address goes through that.
    """
    path = os.path.join(folder_path, name)
    if len(os.fsencode(path)) <= 100:
        return path
    return f"/proc/self/fd/{folder}/{name}"
