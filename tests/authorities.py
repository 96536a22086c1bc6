"""A certificate authority that is not the server's: a root that clients trust, and one below it that issues."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate, with those above it, and its key, as files."""

    certificate: Path
    key: Path

    def put(self, source: "Pair") -> None:
        """Become another pair as a client of ACME does it: each file is replaced, one after the other."""
        for mine, theirs in ((self.certificate, source.certificate), (self.key, source.key)):
            fresh = mine.with_suffix(".fresh")
            shutil.copy2(theirs, fresh)
            fresh.replace(mine)


class Authority:
    """Issues certificates below one root."""

    def __init__(self, folder: Path, name: str = "Example Trust") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._count = 0
        root_key, self._key = _key(), _key()
        root_name = _named(f"{name} Root")
        root = _sign(root_name, root_key, root_name, root_key, timedelta(days=-1), timedelta(days=30), authority=1)
        self._name = _named(f"{name} R3")
        self._between = _sign(
            self._name, self._key, root_name, root_key, timedelta(days=-1), timedelta(days=30), authority=0
        )
        self.root = folder / "root.pem"
        self.root.write_bytes(root.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names: str, starts: float = -1, ends: float = 20, whole: bool = True) -> Pair:
        """Issue a certificate that holds for names from one day to another, both counted from now."""
        self._count += 1
        key = _key()
        made = _sign(
            *(_named(names[0]), key, self._name, self._key),
            *(timedelta(days=starts), timedelta(days=ends)),
            names=names,
        )
        pair = Pair(self._folder / f"{self._count}.pem", self._folder / f"{self._count}.key")
        chain = [made, self._between] if whole else [made]
        pair.certificate.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        pair.key.chmod(0o600)
        return pair


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _sign(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    by: ec.EllipticCurvePrivateKey,
    starts: timedelta,
    ends: timedelta,
    names: tuple[str, ...] = (),
    authority: int | None = None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(
            issuer, subject, key.public_key(), x509.random_serial_number(), now + starts, now + ends
        )
        .add_extension(x509.BasicConstraints(authority is not None, authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if authority is not None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    if names:
        held = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(held, critical=False)
    return builder.sign(by, hashes.SHA256())
