"""A name server for tests: `name_service.py ADDRESS FILE`, where each line of the file is `[*.]NAME IP`.

The file is read for each question. There are no other names.
"""

import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

_HEAD = struct.Struct(">6H")
_ANSWERED, _NO_SUCH_NAME = 0x8580, 0x8583  # authoritative, as it should be asked
_A, _IN, _SECONDS = 1, 1, 1


def answer(query: bytes, known: Mapping[str, str]) -> bytes:
    """Answer one question."""
    number, _, _, _, _, _ = _HEAD.unpack_from(query)
    labels: list[str] = []
    at = _HEAD.size
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii").lower())
        at += 1 + query[at]
    kind, _ = struct.unpack_from(">2H", query, at + 1)
    question = query[_HEAD.size : at + 5]
    address = known.get(".".join(labels)) or known.get(".".join(["*", *labels[1:]]))
    records = [] if address is None or kind != _A else [socket.inet_aton(address)]
    head = _HEAD.pack(number, _NO_SUCH_NAME if address is None else _ANSWERED, 1, len(records), 0, 0)
    found = [struct.pack(">3HIH", 0xC000 | _HEAD.size, _A, _IN, _SECONDS, 4) + record for record in records]
    return head + question + b"".join(found)


def main() -> None:
    address, records = sys.argv[1:]
    with socket.socket(type=socket.SOCK_DGRAM) as listening:
        listening.bind((address, 53))
        print("ready", flush=True)
        while True:
            query, client = listening.recvfrom(4096)
            known = dict(line.split() for line in Path(records).read_text().splitlines())
            listening.sendto(answer(query, known), client)


if __name__ == "__main__":
    main()
