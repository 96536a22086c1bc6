"""The little of rtnetlink and nftables' netlink that a private network for jobs needs.

Messages are packed here and not by a library because a network is made for every job: five messages packed
by hand cost 1 ms, the same through pyroute2 seven, and nothing needs `ip`, `nft` or `iptables` installed.
"""

import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x200, 0x400, 0x800
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NESTED = 0x8000

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_NEWROUTE, RTM_GETROUTE = 20, 24, 26

IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO, IFLA_NET_NS_FD = 3, 4, 10, 12, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_BRPORT_ISOLATED = 1, 2, 1, 33
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
IFF_UP = 1

Message = tuple[int, int, bytes]  # type, flags, payload


class NetlinkSocket:
    """A conversation with the kernel, in the network namespace of the thread that opened it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.settimeout(10)
        self._socket.bind((0, 0))
        self._numbers = itertools.count(1)

    def __enter__(self) -> "NetlinkSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def do(self, *messages: Message) -> None:
        """Have messages carried out one after the other; raises OSError for the first that fails."""
        sent = dict(zip(self._numbers, messages, strict=False))
        self._socket.send(
            b"".join(
                _header(kind, flags | NLM_F_REQUEST | NLM_F_ACK, number, payload)
                for number, (kind, flags, payload) in sent.items()
            )
        )
        self._await_answers(set(sent))

    def do_batch(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Have nfnetlink messages carried out all together, or none of them."""
        edge = struct.pack(">BBH", 0, 0, subsystem)
        numbers = [next(self._numbers) for _ in range(len(messages) + 2)]
        parts = [_header(0x10, NLM_F_REQUEST, numbers[0], edge)]
        for number, (kind, flags, payload) in zip(numbers[1:-1], messages, strict=True):
            parts.append(_header(subsystem << 8 | kind, flags | NLM_F_REQUEST | NLM_F_ACK, number, payload))
        parts.append(_header(0x11, NLM_F_REQUEST, numbers[-1], edge))
        self._socket.send(b"".join(parts))
        self._await_answers(set(numbers[1:-1]))

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Return the payloads of all objects of a kind."""
        self._socket.send(_header(kind, NLM_F_REQUEST | NLM_F_DUMP, next(self._numbers), payload))
        found: list[bytes] = []
        while True:
            for answer, _number, body in _messages(self._socket.recv(1 << 18)):
                if answer == _NLMSG_DONE:
                    return found
                if answer == _NLMSG_ERROR:
                    _raise(body)
                found.append(body)

    def _await_answers(self, open_numbers: set[int]) -> None:
        while open_numbers:
            for answer, number, body in _messages(self._socket.recv(1 << 18)):
                if answer == _NLMSG_ERROR:
                    _raise(body)
                    open_numbers.discard(number)


def _raise(body: bytes) -> None:
    number = -struct.unpack_from("=i", body)[0]
    if number:
        raise OSError(number, os.strerror(number))


def _header(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    data = struct.pack("=IHHII", 16 + len(payload), kind, flags, number, 0) + payload
    return data + b"\0" * (-len(data) % 4)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _flags, number, _port = struct.unpack_from("=IHHII", data)
        yield kind, number, data[16:length]
        data = data[(length + 3) & ~3 :]


def attribute(kind: int, value: bytes) -> bytes:
    """Pack one attribute."""
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data + b"\0" * (-len(data) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """Pack an attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(values))


def text(kind: int, value: str) -> bytes:
    """Pack a string."""
    return attribute(kind, value.encode() + b"\0")


def native(kind: int, value: int) -> bytes:
    """Pack a number as rtnetlink has it."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Unpack attributes that do not repeat."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def link(index: int = 0, *, up: bool = False, family: int = 0) -> bytes:
    """Pack struct ifinfomsg."""
    return struct.pack("=BxHiII", family, 0, index, IFF_UP if up else 0, IFF_UP if up else 0)


def new_bridge(name: str) -> Message:
    """Make a bridge, up."""
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"))
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, link(up=True) + text(IFLA_IFNAME, name) + info


def new_veth(inside: str, index: int, outside: str, outside_namespace: int, mtu: int) -> Message:
    """Make a pair: one end here, with a chosen index, the other in a network namespace given by its open file."""
    size = native(IFLA_MTU, mtu)
    there = native(IFLA_NET_NS_FD, outside_namespace)
    peer = attribute(VETH_INFO_PEER, link() + text(IFLA_IFNAME, outside) + size + there)
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), nested(IFLA_INFO_DATA, peer))
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, link(index) + text(IFLA_IFNAME, inside) + size + info


def set_up(index: int) -> Message:
    """Bring a link up."""
    return RTM_NEWLINK, 0, link(index, up=True)


def join_bridge(index: int, bridge: int) -> Message:
    """Make a link a port of a bridge and bring it up."""
    return RTM_NEWLINK, 0, link(index, up=True) + native(IFLA_MASTER, bridge)


def isolate(index: int) -> Message:
    """Forbid a port of a bridge to speak with other isolated ones."""
    info = nested(IFLA_PROTINFO, attribute(IFLA_BRPORT_ISOLATED, b"\1"))
    return RTM_SETLINK, 0, link(index, family=socket.AF_BRIDGE) + info


def delete_link(name: str) -> Message:
    """Delete a link by name."""
    return RTM_DELLINK, 0, link() + text(IFLA_IFNAME, name)


def add_address(index: int, address: bytes, prefix: int, broadcast: bytes) -> Message:
    """Give a link an IPv4 address."""
    head = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, index)
    values = attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address) + attribute(IFA_BROADCAST, broadcast)
    return RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, head + values


def default_route(index: int, gateway: bytes) -> Message:
    """Send everything to a gateway."""
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0)
    return RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, head + attribute(RTA_GATEWAY, gateway) + native(RTA_OIF, index)
