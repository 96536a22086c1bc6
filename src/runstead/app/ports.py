"""What serves the exposed ports of jobs, and what https is spoken with."""

import socket
from urllib.parse import urlsplit

from runstead.api.context import Context
from runstead.kit.clock import Clock, SystemClock
from runstead.kit.settings import Settings
from runstead.proxy.certificates import OwnCertificates, ServerTls, names_of
from runstead.proxy.gate import Gate
from runstead.proxy.native import Native
from runstead.proxy.proxy import Proxy
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
    return Proxy(exposure, gate, addresses, settings.proxy.answer_seconds, native, own)


def build_tls(settings: Settings) -> ServerTls | None:
    """Return what https is spoken with, if it is. Raises Unavailable for certificates that cannot be used."""
    chosen = settings.proxy
    if chosen.certificate is not None and chosen.key is not None:
        return ServerTls(chosen.certificate, chosen.key)
    if chosen.tls == "off":
        return None
    own = OwnCertificates(settings.server.data_dir / "tls", SystemClock())
    domain = chosen.domain and urlsplit(chosen.domain if "://" in chosen.domain else f"//{chosen.domain}").hostname
    public = urlsplit(settings.server.public_url or "").hostname or ""
    host = settings.server.host
    names = names_of(domain, public, socket.gethostname(), "" if host in ("0.0.0.0", "::") else host)  # noqa: S104
    return ServerTls(own.certificate, own.key, (own, names))
