"""Sockets of an attempt's network, made inside of it for the server to connect.

A socket keeps the network it was made in, wherever it goes. Where the attempt shares a network with others, only
what itself listens on is offered: nobody may reach other services of the machine through a job.
"""

import os
import socket
import struct
import sys

from runstead.node import processes
from runstead.node.inside.refusal import UNSUPPORTED, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runstead.node.inside.ground import Ground

_LISTENS = "0A"
_PROXIED = ".sbx/proxy"


def make_sockets(message: "dict[str, Any]", ground: "Ground") -> "tuple[dict[str, Any], list[int]]":
    """Return the addresses to try in this order, and for each a socket that is not connected yet.

    Where ports may be sockets in the home, and this one is, it is connected to that.
    """
    port, own_network = int(message["port"]), ground.own_network
    if ground.rooted:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            made.connect(f"{ground.folder}/{_PROXIED}/{port}.sock")
            return {"connected": True, "addresses": []}, [made.detach()]
        except OSError:
            made.close()
    if ground.entrance is not None and own_network:
        addresses = _own_addresses(port, None)
    elif own_network:
        addresses = ["127.0.0.1", "::1", *message.get("more", [])]
    else:
        addresses = _own_addresses(port, _inodes())
    fds: list[int] = []
    usable: list[str] = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError:  # no IPv6 here
            continue
        fds.append(made.detach())
        usable.append(address)
    return {"connected": False, "addresses": usable}, fds


def _own_addresses(port: int, inodes: set[str] | None) -> list[str]:
    """Return the addresses on which one of these sockets, or any, listens to the port."""
    found: list[str] = []
    for table, anything, loopback in (("tcp", "0.0.0.0", "127.0.0.1"), ("tcp6", "::", "::1")):  # noqa: S104
        try:
            with open(f"/proc/self/net/{table}", "rb") as lines:
                rows = [line.decode().split() for line in lines][1:]
        except OSError:
            continue
        for row in rows:
            host, _, number = row[1].partition(":")
            if row[3] == _LISTENS and int(number, 16) == port and (inodes is None or row[9] in inodes):
                address = _address(host)
                found.append(loopback if address == anything else address)
    return found


def _address(text: str) -> str:
    """Return an address of /proc/net: numbers of 32 bits in the machine's own order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"{'<' if sys.byteorder == 'little' else '>'}{len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _inodes() -> set[str]:
    """Return the sockets that processes of this attempt hold: all below the process that forked us."""
    if not os.path.isdir("/proc/self/fd"):
        raise Refusal(UNSUPPORTED, "which ports belong to a job cannot be found out on this system")
    found: set[str] = set()
    for pid in processes.descendants(os.getppid()):
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if link.startswith("socket:["):
                    found.add(link[8:-1])
        except OSError:
            continue
    return found
