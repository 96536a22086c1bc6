"""Who is let in to a port, and how browsers are.

A token in `Authorization` lets in. A browser cannot send one of itself, so it signs in on the server's pages and gets
a *pass*: sealed, for one port, with the digest of the token it was given for. Where the port has a host for itself,
the pass is a cookie of that host. Where it shares the server's origin, the pass is part of the path: pages of jobs
run in a sandbox there, which sends no cookies. Programs whose clients cannot send headers (a WebSocket library deep
inside of an environment's client, for one) ask for such a path with their token.
"""

import base64
import binascii
import os
import struct
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runstead.kit.clock import Clock
from runstead.model.errors import Forbidden, Unauthenticated
from runstead.proxy import answers, cookies
from runstead.proxy.heads import RequestHead
from runstead.services.accounts import digest
from runstead.services.exposure import Exposure, Visit
from runstead.services.port_addresses import ADMISSION_WORD, PREFIX, WORD, PortAddress, PortAddresses

_PASS_SECONDS = 12 * 3600
_PROGRAM_PASS_SECONDS = 7 * 24 * 3600  # programs cannot sign in again; the token behind it is looked at each time
_TICKET_SECONDS = 60
_LAYOUT = struct.Struct(">Q32s")
_NONCE_BYTES = 12
_ENTRY = "host"
"""The word of a path that leads a browser in to the host of the port: the way there is through the server's login."""
_ENTER = "/.runstead-enter/"
_COOKIE = b"runstead-port"


class Sessions(Protocol):
    """Knows the cookies of those who signed in on the server's pages."""

    def token_digest(self, fields: list[tuple[bytes, bytes]], *, secure: bool) -> bytes | None:
        """Return the digest of the token that a browser signed in with, if the session holds."""
        ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that was let in."""

    visit: Visit
    authorized: bool  # its Authorization field was for us
    crossing: bool  # it comes from a page in the sandbox


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A request that is answered here, mostly by sending the browser on."""

    answer: bytes


class Gate:
    """Lets requests in."""

    def __init__(
        self,
        exposure: Exposure,
        addresses: PortAddresses,
        sessions: Sessions,
        key: bytes,
        clock: Clock,
        public_url: str | None,
    ) -> None:
        self._exposure = exposure
        self._addresses = addresses
        self._sessions = sessions
        self._cipher = AESGCM(HKDF(SHA256(), 32, None, b"runstead pass to a port 1").derive(key))
        self._clock = clock
        self._public_url = public_url

    async def admit(self, head: RequestHead, address: PortAddress, *, secure: bool) -> Admitted | Elsewhere:
        """Let a request in, or say what to do with it. Raises as `Exposure.visit`, and Forbidden."""
        preflight = self._preflight(head, address)
        if preflight is not None:
            return preflight
        pass_digest, by_cookie = self._pass(head, address, secure)
        if pass_digest is not None:
            if by_cookie:
                _check_origin(head)
            visit = await self._exposure.visit(address.job_id, address.port, pass_digest, patient=True)
            # Who sends the token as well means it for us.
            bearer = _bearer(head)
            ours = bearer is not None and digest(bearer) == pass_digest
            return self._with_slash(head, address) or Admitted(visit, authorized=ours, crossing=not by_cookie)
        if address.by_host and address.target.startswith(_ENTER):
            return self._enter(address, secure)
        bearer = _bearer(head)
        try:
            shown = digest(bearer) if bearer else None
            visit = await self._exposure.visit(address.job_id, address.port, shown, patient=True)
        except Unauthenticated:
            if not answers.wants_page(head) or bearer:
                raise
            return await self._lead_in(head, address, secure)
        if address.word == ADMISSION_WORD and bearer:
            return self._hand_out(head, address, digest(bearer))
        if address.word == _ENTRY and visit.caller is None:  # a public port: nobody needs to sign in
            return Elsewhere(_redirect(f"{self._host_url(head, address, secure)}{address.target}"))
        crossing = not address.by_host and head.first(b"origin") == b"null"
        return self._with_slash(head, address) or Admitted(visit, visit.caller is not None, crossing)

    # Passes

    def _seal(self, address: PortAddress, token_digest: bytes, seconds: int, kind: bytes) -> str:
        ends = int(self._clock.now().timestamp()) + seconds
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, _LAYOUT.pack(ends, token_digest), kind + _name(address))
        return base64.urlsafe_b64encode(nonce + sealed).rstrip(b"=").decode()

    def _open(self, address: PortAddress, text: str, kind: bytes) -> bytes | None:
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
            opened = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], kind + _name(address))
        except (ValueError, binascii.Error, InvalidTag):
            return None
        ends, token_digest = _LAYOUT.unpack(opened)
        return token_digest if ends > self._clock.now().timestamp() else None

    def _pass(self, head: RequestHead, address: PortAddress, secure: bool) -> tuple[bytes | None, bool]:
        """Return the digest of the token behind a pass, and whether it came as a cookie."""
        if not address.by_host:
            return (
                (None, False)
                if address.word in (WORD, _ENTRY, ADMISSION_WORD)
                else (self._open(address, address.word, b"p"), False)
            )
        value = cookies.find(head.fields, _cookie_name(secure))
        return (self._open(address, value.decode("latin-1"), b"p") if value else None), True

    def _hand_out(self, head: RequestHead, address: PortAddress, token_digest: bytes) -> Elsewhere:
        """Give a program a path to the port that lets in whoever has it."""
        sealed = self._seal(address, token_digest, _PROGRAM_PASS_SECONDS, b"p")
        said = {"path": _path(address, sealed), "expiresInSeconds": _PROGRAM_PASS_SECONDS}
        return Elsewhere(answers.told(said, head))

    # Browsers

    def _preflight(self, head: RequestHead, address: PortAddress) -> Elsewhere | None:
        """Answer for a page in the sandbox, whose browser asks before each unusual request whether it may."""
        if head.method != b"OPTIONS" or address.by_host or head.first(b"origin") != b"null":
            return None
        wanted = head.first(b"access-control-request-method")
        if wanted is None:
            return None
        fields = [
            (b"Access-Control-Allow-Origin", b"null"),
            (b"Access-Control-Allow-Credentials", b"true"),
            (b"Access-Control-Allow-Methods", wanted),
            (b"Access-Control-Allow-Headers", head.first(b"access-control-request-headers") or b"*"),
            (b"Access-Control-Max-Age", b"600"),
        ]
        return Elsewhere(answers.bare(204, fields))

    async def _lead_in(self, head: RequestHead, address: PortAddress, secure: bool) -> Elsewhere:
        """Send a browser without a pass to where it gets one."""
        if address.by_host:
            base = self._server_url(head, secure)
            return Elsewhere(_redirect(f"{base}{_path(address, _ENTRY)}{address.target}"))
        token_digest = self._sessions.token_digest(head.fields, secure=secure)
        if token_digest is None:
            word = address.word if address.word in (WORD, _ENTRY) else WORD
            here = f"{_path(address, word)}{address.target}"
            return Elsewhere(_redirect(f"/login?next={quote(here, safe='')}"))
        await self._exposure.visit(address.job_id, address.port, token_digest)
        if address.word == _ENTRY:
            ticket = self._seal(address, token_digest, _TICKET_SECONDS, b"t")
            url = f"{self._host_url(head, address, secure)}{_ENTER}{ticket}{address.target}"
            return Elsewhere(answers.page_to(_quoted(url), head))
        sealed = self._seal(address, token_digest, _PASS_SECONDS, b"p")
        return Elsewhere(_redirect(f"{_path(address, sealed)}{address.target}"))

    def _enter(self, address: PortAddress, secure: bool) -> Elsewhere:
        """Give the browser the pass for this host, and send it on."""
        ticket, slash, rest = address.target[len(_ENTER) :].partition("/")
        token_digest = self._open(address, ticket, b"t")
        if token_digest is None:
            raise Unauthenticated("this way in has expired; open the address of the port again")
        value = self._seal(address, token_digest, _PASS_SECONDS, b"p").encode()
        cookie = b"%b=%b; Path=/; HttpOnly; SameSite=Lax; Max-Age=%d" % (_cookie_name(secure), value, _PASS_SECONDS)
        if secure:
            cookie += b"; Secure"
        # Not "//name", which would be another host.
        return Elsewhere(_redirect(slash + rest.lstrip("/\\") or "/", (b"Set-Cookie", cookie)))

    def _with_slash(self, head: RequestHead, address: PortAddress) -> Elsewhere | None:
        """Send a browser on that left out the slash: the links of the page would lead elsewhere."""
        if address.by_host or not answers.wants_page(head):
            return None
        written = head.target.decode("latin-1")
        if "//" in written[:8]:
            written = "/" + written.partition("//")[2].partition("/")[2]
        if written.startswith(address.prefix + "/"):
            return None
        return Elsewhere(_redirect(f"{address.prefix}{address.target}"))

    def _server_url(self, head: RequestHead, secure: bool) -> str:
        """Return the URL of the server's own pages, for a browser that is at the host of a port."""
        host = head.host.decode("latin-1").lower()
        suffix = host.partition(".")[2]
        if self._public_url is not None and not suffix.partition(":")[0].endswith("localhost"):
            return self._public_url
        return f"{'https' if secure else 'http'}://{suffix}"

    def _host_url(self, head: RequestHead, address: PortAddress, secure: bool) -> str:
        host = head.host.decode("latin-1").lower()
        url = self._addresses.url(address.job_id, address.port, "")
        name = host.partition(":")[0]
        if (name == "localhost" or name.endswith(".localhost")) or not url.startswith("http"):
            return f"{'https' if secure else 'http'}://{address.job_id}--{address.port}.{host}"
        return url


def _bearer(head: RequestHead) -> str | None:
    values = head.all(b"authorization")
    if len(values) != 1:
        return None
    scheme, _, value = values[0].decode("latin-1").partition(" ")
    return value.strip() or None if scheme.lower() == "bearer" else None


def _check_origin(head: RequestHead) -> None:
    """Refuse what a page of another site sends with the cookie of this one. Raises Forbidden."""
    site = head.first(b"sec-fetch-site")
    origin = head.first(b"origin")
    navigates = head.method in (b"GET", b"HEAD") and head.first(b"sec-fetch-mode") == b"navigate"
    if site not in (None, b"same-origin", b"none") and not navigates:
        raise Forbidden("this request was sent by a page of another site, so it was not passed on")
    if origin is not None and urlsplit(origin).netloc != head.host and not navigates:
        raise Forbidden("this request was sent by a page of another site, so it was not passed on")


def _cookie_name(secure: bool) -> bytes:
    return b"__Host-" + _COOKIE if secure else _COOKIE


def _name(address: PortAddress) -> bytes:
    return f"{address.job_id}--{address.port}".encode()


def _path(address: PortAddress, word: str) -> str:
    return f"{PREFIX}{address.job_id}--{address.port}.{word}"


def _quoted(location: str) -> str:
    return quote(location, safe="%/:?#[]@!$&'()*+,;=~")


def _redirect(location: str, *fields: tuple[bytes, bytes]) -> bytes:
    where = _quoted(location).encode()
    return answers.bare(303, [(b"Location", where), *fields, (b"Referrer-Policy", b"no-referrer")])
