"""A certificate and its key, as an operator gives them: whether they can be used, and what clients will say to them."""

import contextlib
import ipaddress
import itertools
import ssl
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from runstead.model.errors import Unavailable

_END = b"-----END CERTIFICATE-----"
_LATE = 10  # the part of its time, one in so many, that is left to a certificate which should have been renewed


@dataclass(frozen=True, slots=True)
class Shortcoming:
    """Why some clients will refuse a certificate that can be used, and what to do."""

    text: str
    remedy: str
    certain: bool = True  # otherwise it depends on the clients


def read(certificate: Path, key: Path) -> list[x509.Certificate]:
    """Return the certificate of the server and those above it. Raises Unavailable where the two cannot be used."""
    try:
        chain = x509.load_pem_x509_certificates(_content(certificate))
    except ValueError as error:
        raise Unavailable(f"{certificate} holds no certificate in PEM") from error
    private = _private(key)
    if _public(private.public_key()) != _public(chain[0].public_key()):
        if any(_public(one.public_key()) == _public(private.public_key()) for one in chain):
            raise Unavailable(f"the first certificate in {certificate} is not the server's own: it comes first")
        said = "they are a pair that was issued together, and one of them was replaced without the other"
        raise Unavailable(f"the key {key} does not belong to the certificate {certificate}: {said}")
    return chain


def load(certificate: Path, key: Path) -> tuple[ssl.SSLContext, list[x509.Certificate]]:
    """Return what https is spoken with, and the certificates it shows. Raises Unavailable."""
    chain = read(certificate, key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # nobody is asked at a terminal
    except (OSError, ValueError) as error:
        raise Unavailable(f"the certificate {certificate} and the key {key} cannot be used: {error}") from error
    return context, chain


def shortcomings(
    certificate: Path, chain: Sequence[x509.Certificate], names: Sequence[str], now: datetime
) -> list[Shortcoming]:
    """Return why clients will refuse a certificate, that shall hold for all these names, now or soon."""
    own = chain[0]
    starts, ends = own.not_valid_before_utc, own.not_valid_after_utc
    found: list[Shortcoming] = []
    renew = "renew it; the files are read again without a restart"
    if now >= ends:
        found.append(Shortcoming(f"{certificate} ended on {ends:%Y-%m-%d %H:%M} UTC: clients refuse it", renew))
    elif now < starts:
        text = f"{certificate} begins on {starts:%Y-%m-%d %H:%M} UTC: until then clients refuse it"
        found.append(Shortcoming(text, "look at the clock of this machine, or at the certificate"))
    elif ends - now < (ends - starts) / _LATE:
        text = f"{certificate} ends on {ends:%Y-%m-%d %H:%M} UTC, and was not renewed"
        found.append(Shortcoming(text, "look after what renews it; the files are read again without a restart"))
    held = _held(own)
    lacking = [name for name in names if not _holds(held, name)]
    if lacking:
        text = f"{certificate} is for {', '.join(held) or 'no name at all'}, and not for {', '.join(lacking)}"
        if any(name.startswith("*.") for name in lacking):
            text += ": clients refuse the hosts of ports and of sandbox pools"
        found.append(Shortcoming(text, f"have it issued for {', '.join(names)}"))
    broken = _broken_link(certificate, chain)
    return [*found, broken] if broken else found


def held_names(chain: Sequence[x509.Certificate]) -> list[str]:
    """Return the names that the certificate of the server holds for."""
    return _held(chain[0])


def _broken_link(certificate: Path, chain: Sequence[x509.Certificate]) -> Shortcoming | None:
    """Say where the way from the server's certificate to an authority is broken, as far as the file shows."""
    for below, above in itertools.pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            text = f"{certificate} is no chain: {_called(below.subject)} was not issued by {_called(above.subject)}"
            return Shortcoming(text, "put the server's certificate first, then each that issued the one before")
    last = chain[-1]
    if last.issuer == last.subject or last.issuer.public_bytes() in _trusted_here():
        return None
    text = f"{certificate} leads to {_called(last.issuer)}, which programs on this machine do not know"
    remedy = "fine if clients do; else take the file with the whole chain, which ACME clients call fullchain.pem"
    return Shortcoming(text, remedy, certain=False)


def _trusted_here() -> set[bytes]:
    file = ssl.get_default_verify_paths().cafile
    try:
        parts = Path(file).read_bytes().split(_END) if file else []
    except OSError:
        return set()
    found: set[bytes] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these authorities are older than the rules
        for part in parts[:-1]:
            with contextlib.suppress(ValueError):
                found.add(x509.load_pem_x509_certificate(part + _END).subject.public_bytes())
    return found


def _held(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)] + addresses


def _holds(held: Sequence[str], name: str) -> bool:
    name = name.lower()
    if name in held:
        return True
    if name.startswith("*.") or _is_address(name):
        return False
    return f"*.{name.partition('.')[2]}" in held  # as clients have it: a star is one label


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _called(name: x509.Name) -> str:
    return f'"{name.rfc4514_string()}"'


def _private(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(_content(path), None)
    except TypeError as error:
        raise Unavailable(f"the key {path} is locked with a password: store it without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unavailable(f"{path} holds no private key in PEM") from error


def _public(key: object) -> bytes:
    written = getattr(key, "public_bytes")  # noqa: B009 - each kind of key has it, and no common type
    return written(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
