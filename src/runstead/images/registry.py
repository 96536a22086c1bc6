"""Speaks the registry protocol (OCI distribution specification 1.1, Docker registry HTTP API V2) to one registry.

Synchronous, for a program of its own. Errors are ImageFailure with the registry's own words.
"""

import contextlib
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib import request
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from runstead import __version__
from runstead.images.credentials import Credentials
from runstead.images.references import DOCKER_HUB, Reference
from runstead.model.errors import ImageFailure

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_HUB_HOST = "registry-1.docker.io"
_LARGEST_MANIFEST = 4 << 20
_LARGEST_WORD = 64 << 10
_PIECE = 256 << 10
_TRIES = 6
_FIRST_REST_SECONDS = 0.5
_LONGEST_REST_SECONDS = 30.0
_CONNECT_SECONDS = 20.0
_CHALLENGE = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_CERTIFICATES = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?")


class Refused(ImageFailure):
    """The registry answered, with an error. `status` is HTTP's."""

    def __init__(self, message: str, status: int, *, again: bool = False) -> None:
        super().__init__(message, again=again)
        self.status = status


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or an index as the registry gave it."""

    body: bytes
    media_type: str


class Registry:
    """One repository on one host: the registry itself, or a mirror of it."""

    def __init__(
        self, wanted: Reference, host: str, credentials: Credentials | None, *, insecure: bool, stall_seconds: float
    ) -> None:
        self._wanted = wanted
        self.host = host
        self._address = _HUB_HOST if host == DOCKER_HUB else host
        self._credentials = credentials
        self._lax = insecure or _LOOPBACK.fullmatch(host) is not None
        self._schemes = ["https", "http"] if self._lax else ["https"]
        self._timeout = urllib3.Timeout(connect=min(_CONNECT_SECONDS, stall_seconds), read=stall_seconds)
        self._pools: dict[tuple[int, str], urllib3.PoolManager] = {}
        self._context: ssl.SSLContext | None = None
        self._authorization: str | None = None

    def manifest(self, wanted: str) -> Manifest:
        """Return what is under a tag or a digest; its hash is the caller's to check."""
        path = f"manifests/{quote(wanted, safe=':')}"
        response = self._ask(path, {"Accept": ", ".join(MANIFEST_TYPES)})
        with contextlib.closing(response):
            body = self._body(response, _LARGEST_MANIFEST)
        return Manifest(body, response.headers.get("Content-Type", "").partition(";")[0].strip())

    def blob(self, digest: str, size: int | None) -> Iterator[bytes]:
        """Yield the bytes of a blob. After a cut it goes on where it was; its hash is the caller's to check."""
        position = 0
        fruitless = 0
        while True:
            before = position
            response: BaseHTTPResponse | None = None
            try:
                response = self._blob_from(digest, position)
                skip = position if position and response.status == 200 else 0
                while True:
                    piece = response.read(_PIECE, decode_content=False)
                    if not piece:
                        break
                    if skip:  # a registry that knows no ranges begins anew
                        skip, piece = max(0, skip - len(piece)), piece[skip:]
                    if piece:
                        position += len(piece)
                        if size is not None and position > size:
                            raise ImageFailure(
                                f"the registry sends more than the {size:,} bytes it spoke of for a part: {digest}"
                            )
                        yield piece
                if size is None or position == size:
                    return
                reason = f"the connection was closed after {position:,} of {size:,} bytes"
            except HTTPError as error:
                reason = self._reason(error)
            finally:
                if response is not None:
                    response.close()
            fruitless = 0 if position > before else fruitless + 1
            if fruitless >= _TRIES:
                raise ImageFailure(
                    f"the image could not be fetched from {self.host}: {reason}; try again when the connection is "
                    f"better: {self._wanted.familiar}",
                    again=True,
                )
            _rest(fruitless)

    def _blob_from(self, digest: str, position: int) -> BaseHTTPResponse:
        wanted = {"Range": f"bytes={position}-"} if position else {}
        response = self._ask(f"blobs/{digest}", wanted)
        if position and response.status == 206:
            said = response.headers.get("Content-Range", "")
            if not said.startswith(f"bytes {position}-"):
                response.close()
                raise ImageFailure(
                    f"the registry sent another part than it was asked for ({said}): {digest}", again=True
                )
        return response

    def _ask(self, path: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Return a successful answer, the body of which is still to be read. Raises Refused, ImageFailure."""
        renewed = False
        tries = 0
        while True:
            try:
                response = self._send(path, headers)
            except HTTPError as error:
                tries += 1
                if tries >= _TRIES or not _may_pass(error):
                    raise self._unreachable(error) from error
                _rest(tries)
                continue
            if response.status in (200, 206):
                return response
            with contextlib.closing(response):
                if response.status == 401 and not renewed:
                    renewed = True
                    challenge = response.headers.get("WWW-Authenticate", "")
                    if self._answer_challenge(challenge):
                        continue
                tries += 1
                pause = _pause(response, tries)
                if tries < _TRIES and pause is not None:
                    time.sleep(pause)
                    continue
                raise self._refusal(response)

    def _send(self, path: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """Send one request; learn on the way whether a lax registry speaks TLS."""
        while True:
            scheme = self._schemes[0]
            url = f"{scheme}://{self._address}/v2/{self._wanted.repository}/{path}"
            try:
                return self._get(url, {**headers, **self._own_headers()})
            except HTTPError as error:
                if len(self._schemes) == 1 or not _speaks_no_tls(error):
                    raise
                self._schemes.pop(0)

    def _own_headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        return headers | ({"Authorization": self._authorization} if self._authorization else {})

    def _get(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        return self._request("GET", url, headers)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> BaseHTTPResponse:
        # Authorization is not sent on to another host, as urllib3 has it by default.
        retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5)
        return self._pool(url).request(
            method,
            url,
            body=body,
            headers={"User-Agent": f"runstead/{__version__}", **headers},
            timeout=self._timeout,
            retries=retries,
            preload_content=False,
        )

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxies = request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy is None or request.proxy_bypass(parts.netloc.rpartition("@")[2]):
            proxy = ""
        # Connections belong to the process that made them: after a fork two would talk on one.
        key = (os.getpid(), proxy)
        if key not in self._pools:
            self._pools[key] = self._make_pool(proxy)
        return self._pools[key]

    def _make_pool(self, proxy: str) -> urllib3.PoolManager:
        context = self._trusting()
        if not proxy:
            return urllib3.PoolManager(ssl_context=context)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = f"{parts.username}:{parts.password or ''}" if parts.username else None
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return urllib3.ProxyManager(where, proxy_headers=headers, ssl_context=context)

    def _trusting(self) -> ssl.SSLContext:
        """Return what this registry's certificate is judged by; made once, reading a machine's authorities is slow."""
        if self._context is None:
            self._context = ssl.create_default_context()
            _trust(self._context, self._address)
            if self._lax:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        return self._context

    def _answer_challenge(self, challenge: str) -> bool:
        """Get what a registry wants to see; False when there is nothing to show."""
        kind, _, rest = challenge.partition(" ")
        asked = {name.lower(): quoted or plain for name, quoted, plain in _CHALLENGE.findall(rest)}
        if kind.lower() == "basic" and self._credentials is not None:
            self._authorization = _basic(self._credentials)
            return True
        if kind.lower() != "bearer" or "realm" not in asked:
            return False
        self._authorization = f"Bearer {self._token(asked)}"
        return True

    def _token(self, asked: Mapping[str, str]) -> str:
        realm = asked["realm"]
        if not realm.startswith("https://") and not (self._lax and realm.startswith("http://")):
            raise ImageFailure(f"the registry {self.host} sends credentials where they are not safe: {realm[:200]}")
        wanted = {"scope": asked.get("scope") or f"repository:{self._wanted.repository}:pull"}
        if "service" in asked:
            wanted["service"] = asked["service"]
        known = self._credentials
        tries = 0
        while True:
            try:
                if known is not None and known.identity_token is not None:
                    form = {**wanted, "grant_type": "refresh_token", "client_id": "runstead"}
                    form["refresh_token"] = known.identity_token
                    kind = {"Content-Type": "application/x-www-form-urlencoded"}
                    response = self._request("POST", realm, kind, urlencode(form).encode())
                else:
                    headers = {"Authorization": _basic(known)} if known is not None else {}
                    joint = "&" if "?" in realm else "?"
                    response = self._get(f"{realm}{joint}{urlencode(wanted)}", headers)
            except HTTPError as error:
                tries += 1
                if tries >= _TRIES or not _may_pass(error):
                    raise self._unreachable(error) from error
                _rest(tries)
                continue
            with contextlib.closing(response):
                if response.status != 200:
                    tries += 1
                    pause = _pause(response, tries)
                    if tries < _TRIES and pause is not None:
                        time.sleep(pause)
                        continue
                    raise self._refusal(response)
                answer = _json(self._body(response, 1 << 20))
            token = answer.get("token") or answer.get("access_token")
            if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
                raise ImageFailure(f"the registry {self.host} gave no token when it was asked for one", again=True)
            return token

    def _body(self, response: BaseHTTPResponse, limit: int) -> bytes:
        try:
            body = response.read(limit + 1, decode_content=False)
        except HTTPError as error:
            raise self._unreachable(error) from error
        if len(body) > limit:
            raise ImageFailure(f"the registry {self.host} answers with more than {limit:,} bytes")
        return body

    def _refusal(self, response: BaseHTTPResponse) -> Refused:
        """Make an error of an answer: the registry's own words, and what to do next."""
        status = response.status
        try:
            body = response.read(_LARGEST_WORD, decode_content=False)
        except HTTPError:
            body = b""
        said = _said(body) or f"HTTP {status} {response.reason or ''}".strip()
        name = self._wanted.familiar
        login = "no credentials were shown" if self._credentials is None else "with the credentials that are configured"
        match status:
            case 401 | 403:
                text = (
                    f"the registry {self.host} refuses the image ({login}): {said}; check its name, or let the "
                    f"server's operator log in with `podman login {self.host}` or `docker login {self.host}`: {name}"
                )
            case 404:
                text = f"the registry {self.host} does not have the image: {said}; check its name and tag: {name}"
            case 429:
                more = " log in to have more," if self._credentials is None else ""
                text = f"the registry {self.host} has had enough requests: {said};{more} or try again later: {name}"
            case _:
                text = f"the registry {self.host} failed: {said}; try again later: {name}"
        return Refused(text, status, again=status == 429 or status >= 500)

    def _unreachable(self, error: HTTPError) -> ImageFailure:
        again = not isinstance(_cause(error), SSLError | LocationParseError)
        return ImageFailure(
            f"the registry {self.host} cannot be reached: {self._reason(error)}: {self._wanted.familiar}", again=again
        )

    def _reason(self, error: HTTPError) -> str:
        cause = _cause(error)
        match cause:
            case NameResolutionError():
                return f"there is no address for the name {urlsplit(f'//{self._address}').hostname}; check it, and DNS"
            case SSLError():
                return (
                    f"TLS: {_plain(cause)}; make the registry's certificate known to the server's machine "
                    f"(/etc/containers/certs.d/{self._address}/ca.crt), or name it in images.insecure"
                )
            case ProxyError():
                return f"the proxy does not let us through: {_plain(cause)}"
            case ReadTimeoutError():
                return f"it was silent for {self._timeout.read_timeout or 0:.0f} s"
            case NewConnectionError():
                return _plain(cause)
            case ConnectTimeoutError():  # of which the one above is a kind
                return "it does not answer to connections"
            case _:
                return f"the connection broke: {_plain(cause)}"


def _trust(context: ssl.SSLContext, address: str) -> None:
    """Add the certificates that the machine's other tools use for this registry (containers-certs.d(5))."""
    for folder in (root / address for root in _CERTIFICATES):
        with contextlib.suppress(OSError, ssl.SSLError):
            for authority in sorted(folder.glob("*.crt")):
                context.load_verify_locations(authority)
            for certificate in sorted(folder.glob("*.cert")):
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))


def _basic(known: Credentials) -> str:
    return str(urllib3.make_headers(basic_auth=f"{known.username}:{known.password}")["authorization"])


def _cause(error: Exception) -> Exception:
    """Return what an error of the library is about, without its wrappers."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return _cause(error.reason)
    if isinstance(error, ProxyError):
        inner = _cause(error.original_error) if isinstance(error.original_error, HTTPError) else error
        return inner if isinstance(inner, SSLError) else error
    return error


def _plain(error: Exception) -> str:
    inner = error.args[-1] if error.args else error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return inner.verify_message
    text = str(inner)
    return (
        re.sub(r"^.*?(?:object at 0x[0-9a-f]+>[,:]? ?|HTTPS?Connection\([^)]*\): )", "", text) or type(error).__name__
    )


def _speaks_no_tls(error: HTTPError) -> bool:
    cause = _cause(error)
    # A plain HTTP server either answers in its own words or hangs up on what it cannot read.
    return not isinstance(cause, NameResolutionError | ConnectTimeoutError | NewConnectionError)


def _may_pass(error: HTTPError) -> bool:
    cause = _cause(error)
    if isinstance(cause, NewConnectionError) and not isinstance(cause, NameResolutionError):
        return "refused" not in str(cause)
    return not isinstance(cause, NameResolutionError | SSLError | LocationParseError)


def _pause(response: BaseHTTPResponse, tries: int) -> float | None:
    """Return how long to wait before the same is asked again; None when that does not help."""
    if response.status not in (408, 425, 429, 500, 502, 503, 504):
        return None
    said = response.headers.get("Retry-After", "")
    if not said.isdigit():
        # A limit that says no time lasts hours: Docker Hub counts pulls over six.
        return None if response.status == 429 else _FIRST_REST_SECONDS * 2 ** (tries - 1)
    return float(said) if int(said) <= _LONGEST_REST_SECONDS else None


def _rest(tries: int) -> None:
    if tries:
        time.sleep(_FIRST_REST_SECONDS * 2 ** (tries - 1))


def _said(body: bytes) -> str | None:
    """Return a registry's own words: `errors` with code and message, or what else it wrote."""
    answer = _json(body)
    errors = answer.get("errors")
    words: list[str] = []
    for one in cast("list[Any]", errors) if isinstance(errors, list) else []:
        if isinstance(one, dict):
            error = cast("dict[str, Any]", one)
            words.append(str(error.get("message") or error.get("code") or "").strip())
    if not words:
        words = [str(answer.get(key)) for key in ("message", "details", "error") if answer.get(key)][:1]
    text = "; ".join(word for word in words if word)
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)[:500] or None


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
