"""Whether clients on other machines can reach the server: its certificate, and the names it has for them."""

import socket
from datetime import UTC, datetime
from urllib.parse import urlsplit

from runstead.cli.findings import Finding, Level
from runstead.kit.settings import Settings
from runstead.model.errors import Unavailable

_A_JOB = "0" * 24


def certificate(settings: Settings) -> list[Finding]:
    """Read the certificate and the key as `serve` would, and say what clients will think of them."""
    chosen = settings.proxy
    if chosen.tls == "own":
        text = "with a certificate of the server's own authority"
        return [Finding(Level.OK, "https", text, "clients trust it by SSL_CERT_FILE=$(runstead tls ca)")]
    if chosen.certificate is None or chosen.key is None:
        return _by_a_proxy(settings)

    from runstead.app.ports import public_names
    from runstead.proxy.certificate_files import held_names, load, shortcomings

    try:
        _, chain = load(chosen.certificate, chosen.key)
    except Unavailable as error:
        remedy = "proxy.certificate and proxy.key should name a pair that was issued together"
        return [Finding(Level.FAILED, "https", error.message, remedy)]
    until = f"{chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    found = [Finding(Level.OK, "https", f"a certificate for {', '.join(held_names(chain))} until {until}")]
    found += [
        Finding(Level.MISSING if one.certain else Level.NOTE, "https", one.text, one.remedy)
        for one in shortcomings(chosen.certificate, chain, public_names(settings), datetime.now(UTC))
    ]
    if chosen.key.stat().st_mode & 0o004:
        text = f"every user of this machine can read the key {chosen.key}"
        found.append(Finding(Level.MISSING, "https", text, f"chmod o-r {chosen.key}"))
    return found


def _by_a_proxy(settings: Settings) -> list[Finding]:
    server = settings.server
    if server.public_url is None or not server.public_url.startswith("https://"):
        if settings.proxy.domain is None:
            return []
        text = "clients use pools of sandboxes by https alone, and there is none"
        return [Finding(Level.NOTE, "https", text, 'proxy.tls, or a proxy and server.public_url = "https://..."')]
    if server.trusted_proxies:
        return [Finding(Level.OK, "https", f"by a proxy at {', '.join(server.trusted_proxies)}")]
    text = "by a proxy that is not named: jobs are told that its address sent everything, by http"
    return [Finding(Level.NOTE, "https", text, "name it in server.trusted_proxies")]


def names(settings: Settings) -> list[Finding]:
    """Ask the name service for the names that clients use."""
    from runstead.app.ports import public_names

    asked = {name.replace("*", f"{_A_JOB}--1"): name for name in public_names(settings)}
    found: list[Finding] = []
    for host, name in asked.items():
        if host.endswith("localhost"):  # no name service knows it: browsers do, and this server as a proxy
            continue
        try:
            addresses = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)})
        except OSError as error:
            where = urlsplit(settings.server.public_url or "").hostname or "this server"
            remedy = f"add a record for {name} to the name service, with the address of {where}"
            if name == where:
                remedy = f"add a record for {name} to the name service"
            text = f"{name} is not known on this machine: {error.strerror}"
            found.append(Finding(Level.MISSING, "names", text, remedy))
        else:
            found.append(Finding(Level.OK, "names", f"{name} is {', '.join(addresses)}"))
    return found
