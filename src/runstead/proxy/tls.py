"""What https is spoken with, kept up to date while the server runs."""

import ssl
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import structlog

from runstead.kit.clock import Clock
from runstead.model.errors import Unavailable
from runstead.proxy.certificate_files import Shortcoming, held_names, load, shortcomings
from runstead.proxy.certificates import OwnCertificates

log = structlog.get_logger()

_OWN_CHECK = timedelta(hours=1)
_REMINDER = timedelta(days=1)

_Signature = tuple[tuple[int, int, int, int], ...]


class ServerTls:
    """The certificate and key of the server, read again when their files change.

    Connections take what is current when they begin. It is replaced as a whole, so a pair that cannot be used, or is
    only half there, leaves the one before in use.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        clock: Clock,
        names: Sequence[str] = (),
        own: OwnCertificates | None = None,
    ) -> None:
        """Read the files, whose certificate shall hold for `names`; with `own` they are those of its authority.

        Raises Unavailable for files that cannot be used.
        """
        self._files = certificate, key
        self._clock = clock
        self._names = names
        self._own = own
        self._own_next = clock.now()
        self._ensure_own()
        self._seen = self._signature()
        self._bad: _Signature | None = None  # what could not be used
        self._told: _Signature | None = None  # ... and was said so
        try:
            self._context, self._chain = load(*self._files)
        except Unavailable as error:
            raise Unavailable(f"the certificate cannot be used, so there is no https: {error.message}") from error
        self._remind_next = clock.now() + _REMINDER

    def current(self) -> ssl.SSLContext:
        """Return what a connection that begins now shall speak with."""
        return self._context

    @property
    def shortcomings(self) -> list[Shortcoming]:
        """Why clients refuse this certificate, now or soon."""
        if self._own is not None:
            return []
        return shortcomings(self._files[0], self._chain, self._names, self._clock.now())

    def refresh(self) -> None:
        """Read files that changed, and make the server's own certificate anew if need be. To be called often."""
        now = self._clock.now()
        self._ensure_own()
        seen = self._signature()
        if seen != self._seen:
            self._read(seen)
        if now >= self._remind_next:
            self._remind()

    def _read(self, seen: _Signature) -> None:
        try:
            context, chain = load(*self._files)
        except Unavailable as error:
            # Most likely one of two files is replaced already: that is worth a word if it stays so.
            if seen == self._bad and seen != self._told:
                self._told = seen
                log.error("the certificate cannot be read again; the one before stays in use", error=error.message)
            self._bad = seen
            return
        self._context, self._chain, self._seen = context, chain, seen
        self._bad = self._told = None
        ends = f"{chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        log.info("the certificate was read again", file=str(self._files[0]), names=held_names(chain), ends=ends)
        self._remind()

    def _remind(self) -> None:
        self._remind_next = self._clock.now() + _REMINDER
        for one in self.shortcomings:
            if one.certain:
                log.warning("clients will not be content with the certificate", because=one.text, to_do=one.remedy)

    def _ensure_own(self) -> None:
        if self._own is not None and self._clock.now() >= self._own_next:
            try:
                self._own.ensure(self._names)
            except (OSError, ValueError) as error:
                raise Unavailable(f"the server's own certificate cannot be made: {error}: {self._files[0]}") from error
            self._own_next = self._clock.now() + _OWN_CHECK

    def _signature(self) -> _Signature:
        """Return what tells that a file was changed or replaced."""
        found: list[tuple[int, int, int, int]] = []
        for path in self._files:
            try:
                about = path.stat()
                found.append((about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
            except OSError:
                found.append((0, 0, 0, 0))
        return tuple(found)
