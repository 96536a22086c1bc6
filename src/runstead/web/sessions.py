"""Sessions of browsers: what the cookie says, sealed so that only this server can read or write it.

A cookie carries the digest of the token it was opened with, never the token. Who holds that token is looked up
at every request, so a session ends when the token is revoked, expires, or its user is removed. No other state is
kept: signing out makes the browser forget its cookie.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from datetime import datetime
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runstead.kit.clock import Clock

LIFETIME_SECONDS = 12 * 3600

_NONCE_BYTES = 12
_LAYOUT = struct.Struct(">Q16s32s")  # the second it ends, its id, the digest of the token
_VERSION = b"runstead session 1"


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that somebody signed in with."""

    id: bytes
    token_digest: bytes
    expires_at: int  # unix seconds


class SessionBox:
    """Seals and opens sessions."""

    def __init__(self, key: bytes) -> None:
        derived = HKDF(SHA256(), 64, None, _VERSION).derive(key)
        self._cipher = AESGCM(derived[:32])
        self._form_key = derived[32:]
        # Cookies know no ports: two servers on one host must not overwrite each other's.
        self.name = f"runstead-{hashlib.sha256(derived).hexdigest()[:8]}"

    def begin(self, token_digest: bytes, now: datetime) -> tuple[Session, str]:
        """Return a new session and the value of its cookie."""
        session = Session(token_bytes(16), token_digest, int(now.timestamp()) + LIFETIME_SECONDS)
        nonce = token_bytes(_NONCE_BYTES)
        text = _LAYOUT.pack(session.expires_at, session.id, session.token_digest)
        return session, base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, text, _VERSION)).decode()

    def open(self, cookie: str, now: datetime) -> Session | None:
        """Return the session of a cookie, or None for one that is over or that this server did not write."""
        try:
            sealed = base64.b64decode(cookie.encode("ascii"), b"-_", validate=True)
            text = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _VERSION)
        except (ValueError, binascii.Error, InvalidTag):
            return None
        expires_at, session_id, token_digest = _LAYOUT.unpack(text)
        return Session(session_id, token_digest, expires_at) if expires_at > now.timestamp() else None

    def form_token(self, session: Session) -> str:
        """Return what every form of this session carries."""
        return hmac.new(self._form_key, session.id, hashlib.sha256).hexdigest()

    def is_form_token(self, session: Session, text: str) -> bool:
        """Say whether a form was made for this session."""
        return hmac.compare_digest(self.form_token(session).encode(), text.encode("utf-8", "replace"))


class BrowserSessions:
    """Finds out who signed in with a browser, for faces that have no pages of their own."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._box = SessionBox(key)
        self._clock = clock

    def token_digest(self, fields: list[tuple[bytes, bytes]], *, secure: bool) -> bytes | None:
        """Return the digest of the token that a browser signed in with, if its cookie holds.

        Behind a proxy that takes TLS off, the cookie of https is the one that browsers send by plain http.
        """
        cookies: dict[str, str] = {}
        for name, value in fields:
            if name.lower() == b"cookie":
                pairs = (pair.strip().partition("=") for pair in value.decode("latin-1").split(";"))
                cookies.update({key: text for key, _, text in pairs})
        secured = cookies.get(f"__Host-{self._box.name}")
        cookie = secured if secured is not None or secure else cookies.get(self._box.name)
        session = self._box.open(cookie, self._clock.now()) if cookie else None
        return session.token_digest if session is not None else None
