"""What serves the exposed ports of jobs, and what https is spoken with."""

import socket
from urllib.parse import urlsplit

from runstead.api.context import Context
from runstead.kit.clock import Clock
from runstead.kit.settings import Settings
from runstead.proxy.certificates import OwnCertificates, names_of
from runstead.proxy.forwarding import TrustedProxies
from runstead.proxy.gate import Gate
from runstead.proxy.native import Native
from runstead.proxy.proxy import Proxy
from runstead.proxy.tls import ServerTls
from runstead.services.exposure import Exposure
from runstead.web.sessions import BrowserSessions


def build_proxy(
    settings: Settings, context: Context, exposure: Exposure, key: bytes, clock: Clock, native: Native
) -> Proxy:
    """Return what serves the exposed ports of jobs."""
    public_url = settings.server.public_url
    addresses = context.port_addresses
    gate = Gate(exposure, addresses, BrowserSessions(key, clock), key, clock, public_url)
    own = frozenset({urlsplit(public_url).netloc.lower()}) if public_url else frozenset[str]()
    trusted = TrustedProxies(settings.server.trusted_proxies)
    return Proxy(exposure, gate, addresses, settings.proxy.answer_seconds, native, own, trusted)


def build_tls(settings: Settings, clock: Clock) -> ServerTls | None:
    """Return what https is spoken with, if it is. Raises Unavailable for certificates that cannot be used."""
    chosen = settings.proxy
    if chosen.certificate is not None and chosen.key is not None:
        return ServerTls(chosen.certificate, chosen.key, clock, public_names(settings))
    if chosen.tls == "off":
        return None
    own = OwnCertificates(settings.server.data_dir / "tls", clock)
    public = urlsplit(settings.server.public_url or "").hostname or ""
    host = settings.server.host
    listens = "" if host in ("0.0.0.0", "::") else host  # noqa: S104
    names = names_of(_domain(settings), public, socket.gethostname(), listens)
    return ServerTls(own.certificate, own.key, clock, names, own)


def public_names(settings: Settings) -> list[str]:
    """Return the names that clients on other machines have for this server and its ports."""
    public = urlsplit(settings.server.public_url or "").hostname
    domain = _domain(settings)
    return [*([public] if public else []), *([f"*.{domain}"] if domain else [])]


def _domain(settings: Settings) -> str | None:
    chosen = settings.proxy.domain
    return chosen and urlsplit(chosen if "://" in chosen else f"//{chosen}").hostname
