"""Where jobs may connect to, when the configuration lists that, and what its names mean at present."""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from runstead.kit.targets import parse_target

# Addresses that a name had lately stay open: a job may have looked it up before it changed.
_KEPT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Opening:
    """What a firewall lets through: packets to this network, to one TCP or UDP port or to all (None)."""

    network: IPv4Network
    port: int | None


def _look_up(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


class Egress:
    """The list, with what its names mean at present. Looking names up blocks."""

    def __init__(self, entries: Sequence[str], look_up: Callable[[str], list[str]] = _look_up) -> None:
        """Raises ValueError for an entry that is none."""
        self._targets = [parse_target(entry) for entry in entries]
        self._look_up = look_up
        self._seen: dict[str, dict[str, float]] = {}  # name: its addresses, and when each was last told
        self._now: dict[str, list[str]] = {}

    @property
    def has_names(self) -> bool:
        """Whether there is anything to look up, now and then."""
        return any(isinstance(target.where, str) for target in self._targets)

    def refresh(self, now: float | None = None) -> list[str]:
        """Look all names up; return those that cannot be: nobody gets to them."""
        now = time.monotonic() if now is None else now
        unknown: list[str] = []
        for name in dict.fromkeys(target.where for target in self._targets if isinstance(target.where, str)):
            found = self._look_up(name)
            seen = self._seen.setdefault(name, {})
            seen.update(dict.fromkeys(found, now))
            self._seen[name] = {address: at for address, at in seen.items() if now - at < _KEPT_SECONDS}
            if found:
                self._now[name] = found
            elif not self._seen[name]:
                self._now.pop(name, None)
                unknown.append(name)
        return unknown

    def openings(self) -> list[Opening]:
        """Return what is let through."""
        found: list[Opening] = []
        for target in self._targets:
            if isinstance(target.where, str):
                addresses = self._seen.get(target.where, {})
                found.extend(Opening(IPv4Network(IPv4Address(one)), target.port) for one in sorted(addresses))
            else:
                found.append(Opening(target.where, target.port))
        return found

    def hosts(self) -> list[list[str]]:
        """Return [address, name] for a hosts file: jobs need not reach a name server, so they may not."""
        return [[addresses[0], name] for name, addresses in self._now.items()]
