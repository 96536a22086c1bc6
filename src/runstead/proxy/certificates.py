"""Certificates for https that are made here, by an authority of this server's own.

The authority is made once and lives in the data directory; whoever trusts its certificate trusts what this server
shows. The certificate of the server is made anew when its names change or its end comes near.
"""

import contextlib
import ipaddress
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runstead.kit.clock import Clock
from runstead.model.errors import Unavailable

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 365
_RENEW_DAYS = 30
_EARLIER = timedelta(hours=1)  # for clients whose clocks are late


class OwnCertificates:
    """The authority of one data directory, and the certificate of its server."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self.authority = folder / "ca.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"

    def ensure_authority(self) -> Path:
        """Return the file with the authority's certificate, which is made now if it is not there."""
        key_path = self._folder / "ca.key"
        if not (self.authority.exists() and key_path.exists()):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Runstead {os.urandom(4).hex()}")])
            made = (
                self._builder(name, name, key.public_key(), _AUTHORITY_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(key, hashes.SHA256())
            )
            _write_key(key_path, key)
            _write(self.authority, made.public_bytes(serialization.Encoding.PEM))
        return self.authority

    def ensure(self, names: Sequence[str]) -> None:
        """See to it that the server's certificate is there, holds for these names and for some time yet."""
        self.ensure_authority()
        if not self._is_good(names):
            self._make(names)

    def _is_good(self, names: Sequence[str]) -> bool:
        try:
            found = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
            found.verify_directly_issued_by(authority)
            held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
            return False
        ends = found.not_valid_after_utc - timedelta(days=_RENEW_DAYS)
        return self.key.exists() and list(held) == _general(names) and ends > self._clock.now()

    def _make(self, names: Sequence[str]) -> None:
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        loaded = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise Unavailable(f"this key was not made by this server: {self._folder / 'ca.key'}")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Runstead")])
        made = (
            self._builder(subject, authority.subject, key.public_key(), _SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName(_general(names)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(loaded.public_key()), critical=False)
            .sign(loaded, hashes.SHA256())
        )
        _write_key(self.key, key)
        _write(self.certificate, made.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
    ) -> x509.CertificateBuilder:
        now: datetime = self._clock.now()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + timedelta(days=days))
        )


def names_of(domain: str | None, *hosts: str) -> list[str]:
    """Return the names that a certificate of this server should hold for."""
    found = ["localhost", "*.localhost", "hf-jobs.localhost", "*.hf-jobs.localhost", "127.0.0.1", "::1"]
    found += [domain, f"*.{domain}"] if domain else []
    found += [host for host in hosts if host]
    return list(dict.fromkeys(found))


def _general(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            with contextlib.suppress(ValueError):  # a name that no certificate can hold
                found.append(x509.DNSName(name))
    return found


def _usage(**given: bool) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    rest = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: given.get(name, False) for name in (*every, *rest)})


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, text, 0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    spare = path.with_suffix(".new")
    spare.unlink(missing_ok=True)
    with os.fdopen(os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    spare.replace(path)
