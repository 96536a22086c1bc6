"""Places in a network as people write them: a network, an address or a name, with or without a port."""

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Network

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class Target:
    """A network or a name, and a port of it or all (None)."""

    where: IPv4Network | str
    port: int | None


def parse_target(text: str) -> Target:
    """Read "10.0.0.0/8", "10.1.2.3:443", "pypi.org", "pypi.org:443". Raises ValueError."""
    where, colon, port = text.rpartition(":")
    if not colon:
        where, port = text, ""
    if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"should end in a port from 1 to 65535: {text!r}")
    number = int(port) if port else None
    try:
        return Target(ipaddress.IPv4Network(where), number)
    except ValueError as error:
        if _NAME.fullmatch(where) is None or where.replace(".", "").isdecimal() or "/" in where:
            example = '"10.0.0.0/8", "10.1.2.3:443" or "pypi.org:443"'
            raise ValueError(f"should be an IPv4 network, an address or a name, such as {example}: {text!r}") from error
        return Target(where.rstrip("."), number)
