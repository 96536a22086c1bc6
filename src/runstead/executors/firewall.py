"""The nftables rules around the bridge of the jobs, packed by hand: one table, made and removed as a whole.

Out of the bridge: the rest of the world through masquerading, but not the machine's other addresses, not other
jobs, and of link-local addresses (a cloud's credentials live there) only name service; or, where the configuration
lists what jobs may reach, that and nothing else. Into it: answers, and what this machine itself begins.
"""

import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from runstead.executors.egress import Opening
from runstead.executors.netlink import (
    NETLINK_NETFILTER,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    NetlinkSocket,
    attribute,
    nested,
    text,
)

_SUBSYSTEM = 10
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_LOCAL_IN, _FORWARD, _LOCAL_OUT, _POST_ROUTING = 1, 2, 3, 4
_DROP, _ACCEPT = 0, 1
_EQUAL, _DIFFERENT = 0, 1
_REGISTER = 1
_IIFNAME, _OIFNAME, _L4PROTO = 6, 7, 16
_NETWORK, _TRANSPORT = 1, 2
_ANSWERS = 2 | 4  # established, related
_NEWSET, _NEWSETELEM = 9, 12
_MAP = 8
_ADDRESS_TYPE, _MARK_TYPE = 7, 19  # as nft shows them
_R0, _R1, _R8 = 8, 9, 16  # registers of four bytes, side by side
_GROUP_OF, _MEMBERS = "group_of", "members"
_AT_ONCE = 500  # elements in a message, whose size is limited


@dataclass(frozen=True, slots=True)
class Firewall:
    """What the rules are about."""

    table: str
    bridge: str
    subnet: IPv4Network
    address: IPv4Address  # of the bridge
    port: int | None  # of the server, the one service of this machine that jobs may reach
    openings: tuple[Opening, ...] | None = None  # all of the outside that jobs may reach; None: everything
    groups: Mapping[str, int] = field(default_factory=dict[str, int])  # address: number of its group

    def apply(self) -> None:
        """Put the rules in place, over those of an earlier run. All at once or not at all."""
        table = text(1, self.table)
        messages: list[Message] = [
            _message(_NEWTABLE, NLM_F_CREATE, table),
            _message(_DELTABLE, 0, table),
            _message(_NEWTABLE, NLM_F_CREATE, table),
            self._chain("input", "filter", _LOCAL_IN, 0),
            self._chain("forward", "filter", _FORWARD, 0),
            self._chain("postrouting", "nat", _POST_ROUTING, 100),
            *(self._sets() if self.groups else ()),
            *(self._rule("input", rule) for rule in self._input()),
            *(self._rule("forward", rule) for rule in self._forward()),
            self._rule("postrouting", self._masquerade()),
        ]
        with NetlinkSocket(NETLINK_NETFILTER) as kernel:
            kernel.do_batch(_SUBSYSTEM, messages)

    def remove(self) -> None:
        """Take the rules away."""
        table = text(1, self.table)
        with NetlinkSocket(NETLINK_NETFILTER) as kernel:
            kernel.do_batch(_SUBSYSTEM, [_message(_NEWTABLE, NLM_F_CREATE, table), _message(_DELTABLE, 0, table)])

    def allow_in_iptables(self) -> None:
        """Make an exception where another program's policy drops what is forwarded or comes in (Docker, ufw).

        Rules of ours in nftables cannot: a packet must pass every table.
        """
        for chain in ("FORWARD", "INPUT"):
            if "-P " + chain + " DROP" in _iptables("-S", chain):
                for rule in self._exceptions(chain):
                    if _iptables("-C", chain, *rule) == _FAILED:
                        _iptables("-I", chain, "1", *rule)

    def forget_in_iptables(self) -> None:
        """Take the exceptions away."""
        for chain in ("FORWARD", "INPUT"):
            for rule in self._exceptions(chain):
                _iptables("-D", chain, *rule)

    def _exceptions(self, chain: str) -> list[list[str]]:
        answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]
        if chain == "FORWARD":
            return [["-i", self.bridge, "-j", "ACCEPT"], ["-o", self.bridge, *answers]]
        service = ["-d", str(self.address), "-p", "tcp", "--dport", str(self.port), "-j", "ACCEPT"]
        return [["-i", self.bridge, *answers], *([["-i", self.bridge, *service]] if self.port else [])]

    def _input(self) -> list[list[bytes]]:
        mine = _name(_IIFNAME, self.bridge)
        rules = [[*mine, *_is_answer(), _verdict(_ACCEPT)]]
        if self.port is not None:
            rules.append([*mine, *_to(self.address, 32), *_to_port(socket.IPPROTO_TCP, self.port), _verdict(_ACCEPT)])
        return [*rules, [*mine, _verdict(_DROP)]]

    def _forward(self) -> list[list[bytes]]:
        out, into = _name(_IIFNAME, self.bridge), _name(_OIFNAME, self.bridge)
        within = [[*out, *into, *_same_group(), _verdict(_ACCEPT)]] if self.groups else []
        return [*within, *self._forward_others(out, into)]

    def _forward_others(self, out: list[bytes], into: list[bytes]) -> list[list[bytes]]:
        link_local = _to(IPv4Address("169.254.0.0"), 16)
        inwards = [[*into, *_is_answer(), _verdict(_ACCEPT)], [*into, _verdict(_DROP)]]
        if self.openings is not None:
            accepted = [[*out, *rule, _verdict(_ACCEPT)] for one in self.openings for rule in _opening(one)]
            return [[*out, *into, _verdict(_DROP)], *accepted, [*out, _verdict(_DROP)], *inwards]
        return [
            [*out, *into, _verdict(_DROP)],
            [*out, *link_local, *_to_port(socket.IPPROTO_UDP, 53), _verdict(_ACCEPT)],
            [*out, *link_local, *_to_port(socket.IPPROTO_TCP, 53), _verdict(_ACCEPT)],
            [*out, *link_local, _verdict(_DROP)],
            *inwards,
        ]

    def _masquerade(self) -> list[bytes]:
        source = _address(12, self.subnet.network_address, self.subnet.prefixlen)
        return [*source, *_name(_OIFNAME, self.bridge, _DIFFERENT), _expression("masq")]

    def _sets(self) -> list[Message]:
        """Make the map from address to group, and the set of pairs of both, which the rules look into."""
        pairs = [(IPv4Address(address).packed, struct.pack("=I", number)) for address, number in self.groups.items()]
        messages = [
            self._set(_GROUP_OF, 1, _ADDRESS_TYPE, 4, _number(3, _MAP) + _number(6, _MARK_TYPE) + _number(7, 4)),
            self._set(_MEMBERS, 2, _ADDRESS_TYPE << 6 | _MARK_TYPE, 8, _number(3, 0)),
        ]
        for first in range(0, len(pairs), _AT_ONCE):
            some = pairs[first : first + _AT_ONCE]
            mapped = [nested(1, nested(1, attribute(1, key)), nested(2, attribute(1, group))) for key, group in some]
            joined = [nested(1, nested(1, attribute(1, key + group))) for key, group in some]
            messages += [self._elements(_GROUP_OF, mapped), self._elements(_MEMBERS, joined)]
        return messages

    def _set(self, name: str, number: int, key_type: int, key_bytes: int, more: bytes) -> Message:
        key = _number(4, key_type) + _number(5, key_bytes)
        return _message(_NEWSET, NLM_F_CREATE, text(1, self.table) + text(2, name) + more + key + _number(10, number))

    def _elements(self, name: str, elements: list[bytes]) -> Message:
        body = text(1, self.table) + text(2, name) + nested(3, *elements)
        return _message(_NEWSETELEM, NLM_F_CREATE, body)

    def _chain(self, name: str, kind: str, hook: int, priority: int) -> Message:
        return _chain(self.table, name, kind, hook, priority)

    def _rule(self, chain: str, expressions: list[bytes]) -> Message:
        return _rule(self.table, chain, expressions)


@dataclass(frozen=True, slots=True)
class Confinement:
    """The rules inside of one job's network namespace, where the job itself may change nothing.

    They let out what is listed and nothing else, on top of what the rules around the bridge say.
    """

    server: IPv4Address
    port: int | None  # of the server, which stays in reach
    openings: tuple[Opening, ...]

    def apply(self) -> None:
        """Put the rules in place in the namespace that this thread is in, over earlier ones. All or none."""
        table, chain = "confinement", "output"
        name = text(1, table)
        messages: list[Message] = [
            _message(_NEWTABLE, NLM_F_CREATE, name),
            _message(_DELTABLE, 0, name),
            _message(_NEWTABLE, NLM_F_CREATE, name),
            _chain(table, chain, "filter", _LOCAL_OUT, 0),
            *(_rule(table, chain, rule) for rule in self._output()),
        ]
        with NetlinkSocket(NETLINK_NETFILTER) as kernel:
            kernel.do_batch(_SUBSYSTEM, messages)

    def _output(self) -> list[list[bytes]]:
        allowed = [_name(_OIFNAME, "lo"), _is_answer()]
        if self.port is not None:
            allowed.append([*_to(self.server, 32), *_to_port(socket.IPPROTO_TCP, self.port)])
        allowed += [rule for one in self.openings for rule in _opening(one)]
        return [*([*rule, _verdict(_ACCEPT)] for rule in allowed), [_verdict(_DROP)]]


def _chain(table: str, name: str, kind: str, hook: int, priority: int) -> Message:
    place = nested(4, _number(1, hook), _number(2, priority))
    return _message(_NEWCHAIN, NLM_F_CREATE, text(1, table) + text(3, name) + place + text(7, kind))


def _rule(table: str, chain: str, expressions: list[bytes]) -> Message:
    body = text(1, table) + text(2, chain) + nested(4, *expressions)
    return _message(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)


_FAILED = ""


def _iptables(*arguments: str) -> str:
    """Run iptables where there is one; what it says, or _FAILED."""
    program = shutil.which("iptables")
    if program is None:
        return _FAILED
    try:
        done = subprocess.run([program, "-w", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return _FAILED
    return _FAILED if done.returncode else done.stdout or "done"


def _message(kind: int, flags: int, body: bytes) -> Message:
    return kind, flags, struct.pack(">BBH", socket.AF_INET, 0, 0) + body


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _expression(name: str, *values: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *values))


def _compare(value: bytes, operation: int = _EQUAL) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, operation), nested(3, attribute(1, value)))


def _name(key: int, name: str, operation: int = _EQUAL) -> list[bytes]:
    """The interface has this name."""
    load = _expression("meta", _number(1, _REGISTER), _number(2, key))
    return [load, _compare(name.encode().ljust(16, b"\0"), operation)]


def _is_answer() -> list[bytes]:
    """The packet belongs to a conversation that was allowed when it began."""
    load = _expression("ct", _number(1, _REGISTER), _number(2, 0))
    return [load, _mask(struct.pack("=I", _ANSWERS)), _compare(struct.pack("=I", 0), _DIFFERENT)]


def _mask(mask: bytes) -> bytes:
    values = (_number(1, _REGISTER), _number(2, _REGISTER), _number(3, len(mask)))
    return _expression("bitwise", *values, nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(len(mask)))))


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, _REGISTER), _number(2, base), _number(3, offset), _number(4, length))


def _address(offset: int, address: IPv4Address, prefix: int) -> list[bytes]:
    mask = IPv4Network((0, prefix)).netmask.packed
    return [_load(_NETWORK, offset, 4), _mask(mask), _compare(address.packed)]


def _to(address: IPv4Address, prefix: int) -> list[bytes]:
    """The packet goes to this address or network."""
    return _address(16, address, prefix)


def _same_group() -> list[bytes]:
    """Source and destination are in one group: the destination is found together with the group of the source."""
    source = _expression("payload", _number(1, _R8), _number(2, _NETWORK), _number(3, 12), _number(4, 4))
    group = _expression("lookup", text(1, _GROUP_OF), _number(2, _R8), _number(3, _R1))
    target = _expression("payload", _number(1, _R0), _number(2, _NETWORK), _number(3, 16), _number(4, 4))
    return [source, group, target, _expression("lookup", text(1, _MEMBERS), _number(2, _R0))]


def _to_port(protocol: int, port: int) -> list[bytes]:
    load = _expression("meta", _number(1, _REGISTER), _number(2, _L4PROTO))
    return [load, _compare(bytes([protocol])), _load(_TRANSPORT, 2, 2), _compare(struct.pack(">H", port))]


def _opening(opening: Opening) -> list[list[bytes]]:
    """Return the conditions under which a packet goes to what is open, each of them enough."""
    there = _to(opening.network.network_address, opening.network.prefixlen)
    if opening.port is None:
        return [there]
    return [[*there, *_to_port(protocol, opening.port)] for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)]


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, 0), nested(2, nested(2, _number(1, code))))
