"""Secrets at rest: AES-256-GCM under a key that lives in a file, not in the database."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runstead.model.errors import BackendFailure

_KEY_BYTES = 32
_NONCE_BYTES = 12
_LAYOUT = b"\x01"


class SecretBox:
    """Seals and opens the secrets of jobs. A sealed box opens only for the job it was sealed for."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, job_id: str, secrets: Mapping[str, str]) -> bytes:
        """Encrypt; the same secrets give another text every time."""
        nonce = token_bytes(_NONCE_BYTES)
        text = json.dumps(dict(secrets), separators=(",", ":")).encode()
        return _LAYOUT + nonce + self._cipher.encrypt(nonce, text, job_id.encode())

    def open(self, job_id: str, sealed: bytes) -> dict[str, str]:
        """Decrypt. Raises BackendFailure when the key file is not the one the secrets were sealed with."""
        nonce, text = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return json.loads(self._cipher.decrypt(nonce, text, job_id.encode()))
        except InvalidTag as error:
            raise BackendFailure(
                f"the stored secrets cannot be opened with the present key file; restore it from a backup: {job_id}"
            ) from error


def load_key(path: Path) -> bytes:
    """Return the key in `path`, making one on the first call. Readable by the server's user alone."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = token_bytes(_KEY_BYTES)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails if another process was first: theirs is the key
        except FileExistsError:
            key = path.read_bytes()
        finally:
            temporary.unlink()
    if len(key) != _KEY_BYTES:
        raise BackendFailure(f"the key file does not hold {_KEY_BYTES} bytes; restore it from a backup: {path}")
    return key
