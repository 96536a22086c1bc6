"""Tokens of volumes: true without being stored, good for the buckets of one attempt while its job is not over.

They are for the programs that serve volumes beside a job; the job itself never has one. Only the routes of buckets
take them (`runstead.api.auth.BucketCallerOf`), so that everywhere else they are unknown.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from runstead.kit.clock import Clock
from runstead.model.accounts import Permission
from runstead.model.errors import Unauthenticated
from runstead.model.jobs import Phase
from runstead.model.volumes import MountCaller
from runstead.stores.interface import JobStore

PREFIX = "rsv1."
_TAG_BYTES = 32
_LONGEST = 8000
# To bring what a job wrote to its bucket after the job is over: somebody with the server's key asked for it.
_RECOVERY_FOR = timedelta(hours=12)


class MountTokens:
    """Makes these tokens and recognizes them, also those made before a restart: the key is the server's."""

    def __init__(self, key: bytes, store: JobStore, clock: Clock) -> None:
        self._key = hmac.digest(key, b"runstead volumes: tokens", hashlib.sha256)
        self._store = store
        self._clock = clock

    def mint(self, caller: MountCaller, expires_at: datetime) -> str:
        """Return a token that holds until `expires_at`, or until the job is over if that is earlier."""
        return self._seal(caller, expires_at, recovery=False)

    def mint_for_recovery(self, caller: MountCaller) -> str:
        """Return a token that holds for some hours, whatever became of the job."""
        return self._seal(caller, self._clock.now() + _RECOVERY_FOR, recovery=True)

    async def recognize(self, token: str) -> MountCaller:
        """Return who a token speaks for. Raises Unauthenticated if it is foreign or expired, or the job is over."""
        said = self._opened(token)
        if said is None:
            raise Unauthenticated("this is no token of a volume of this server")
        if datetime.fromtimestamp(said["exp"], UTC) <= self._clock.now():
            raise Unauthenticated("this token of a volume has expired")
        caller = MountCaller(said["job"], said["try"], {id_: Permission(word) for id_, word in said["may"].items()})
        if not said["recovery"]:
            job = await self._store.get(caller.job_id)
            if job is None or job.attempt != caller.attempt or job.phase in (Phase.WAITING, Phase.DONE):
                raise Unauthenticated("this token of a volume is no longer valid: the attempt it was for is over")
        return caller

    def _seal(self, caller: MountCaller, expires_at: datetime, *, recovery: bool) -> str:
        said = {
            "job": caller.job_id,
            "try": caller.attempt,
            "may": dict(caller.grants),
            "exp": expires_at.timestamp(),
            "recovery": recovery,
        }
        text = json.dumps(said, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(self._tag(text) + text).decode().rstrip("=")

    def _opened(self, token: str) -> Mapping[str, Any] | None:
        if len(token) > _LONGEST or not token.startswith(PREFIX):
            return None
        text = token.removeprefix(PREFIX)
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        stated, message = data[:_TAG_BYTES], data[_TAG_BYTES:]
        return json.loads(message) if hmac.compare_digest(self._tag(message), stated) else None

    def _tag(self, message: bytes) -> bytes:
        return hmac.digest(self._key, message, hashlib.sha256)
