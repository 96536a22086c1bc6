"""Who sent a request and how, where a trusted proxy passed it on.

Anybody can write `X-Forwarded-For`. It is believed from the right to the left, as far as those who wrote it are trusted
(RFC 7239 section 5.2 has the same order); of `X-Forwarded-Proto` the last word counts, which is that of the nearest
proxy. `Forwarded` and `X-Forwarded-Host` are not read: proxies pass `Host` on.
"""

import ipaddress
from collections.abc import Sequence

from runstead.proxy.heads import Field

_SCHEMES = {b"https": True, b"http": False}


class TrustedProxies:
    """The addresses of proxies in front of this server."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        """Say whether what comes from an address comes from a trusted proxy."""
        if not self._networks:
            return False
        found = _address(address)
        return found is not None and any(found in network for network in self._networks)

    def origin(self, fields: Sequence[Field], proxy: str, *, secure: bool) -> tuple[str, bool]:
        """Return the address of the client, and whether it spoke https, by what a trusted proxy says.

        `proxy` and `secure` are those of the connection; they hold for what the proxy does not say.
        """
        chain: list[bytes] = []
        for name, value in fields:
            match name.lower():
                case b"x-forwarded-for":
                    chain += value.split(b",")
                case b"x-forwarded-proto":
                    secure = _SCHEMES.get(value.rpartition(b",")[2].strip().lower(), secure)
                case _:
                    pass
        client = proxy
        for text in reversed(chain):
            found = _address(text.strip().decode("latin-1"))
            if found is None:
                break
            client = str(found)
            if client not in self:
                break
        return client, secure


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
