"""Users, organizations and tokens: who is there, and who is calling."""

import getpass
import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from datetime import datetime

from runstead.kit.clock import Clock
from runstead.model.accounts import (
    Caller,
    Namespace,
    Organization,
    OrgRole,
    Permission,
    Token,
    TokenRole,
    User,
)
from runstead.model.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from runstead.model.ids import new_id
from runstead.stores.interface import AccountStore

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[-_.](?=[A-Za-z0-9])){0,95}")
_ALPHABET = string.ascii_letters + string.digits
_VALUE_CHARACTERS = 34
_SHORTEST_VALUE = 8
# Words that stand where a namespace could stand in a path of the API.
_RESERVED = frozenset(
    {"hardware", "me", "settings", "api", "models", "datasets", "spaces", "buckets", "jobs", "jobs-proxy"}
)


class Accounts:
    """Manages accounts and recognizes callers by their token."""

    def __init__(self, store: AccountStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def add_user(
        self, name: str, full_name: str | None = None, email: str | None = None, admin: bool = False
    ) -> User:
        """Add a user. Raises Invalid for a name that cannot be one, Conflict for one that is taken."""
        now = self._clock.now()
        user = User(new_id(now), _checked_name(name), full_name or name, admin, now, email)
        return await self._store.add_user(user)

    async def users(self) -> list[User]:
        """Return all users by name."""
        return await self._store.users()

    async def remove_user(self, name: str) -> None:
        """Remove a user and their tokens. Raises NotFound, or Conflict while they own jobs."""
        if not await self._store.remove_user(name):
            raise NotFound(f"there is no user {name!r}")

    async def add_org(self, name: str, full_name: str | None = None) -> Organization:
        """Add an organization. Raises Invalid or Conflict as `add_user` does."""
        now = self._clock.now()
        organization = Organization(new_id(now), _checked_name(name), full_name or name, now)
        return await self._store.add_organization(organization)

    async def orgs(self) -> list[Organization]:
        """Return all organizations by name."""
        return await self._store.organizations()

    async def remove_org(self, name: str) -> None:
        """Remove an organization. Raises NotFound, or Conflict while it owns jobs."""
        if not await self._store.remove_organization(name):
            raise NotFound(f"there is no organization {name!r}")

    async def set_member(self, org: str, user: str, role: OrgRole | None) -> None:
        """Give a user a role in an organization; None takes them out. Raises NotFound."""
        await self._store.set_member(org, user, role)

    async def members(self, org: str) -> list[tuple[User, OrgRole]]:
        """Return the members of an organization. Raises NotFound."""
        return await self._store.members(org)

    async def add_token(
        self,
        user: str,
        name: str,
        role: TokenRole,
        scopes: Iterable[tuple[str, Permission]] = (),
        expires_at: datetime | None = None,
        value: str | None = None,
    ) -> tuple[Token, str]:
        """Make a token and return it with its value, which is not stored and cannot be shown again.

        `value` brings along a token made elsewhere, so that one HF_TOKEN serves the Hub and this server.
        Raises NotFound for an unknown user or namespace, Invalid for scopes that do not fit the role,
        Conflict for a value that is in use.
        """
        owner = await self._store.user(user)
        if owner is None:
            raise NotFound(f"there is no user {user!r}: add one with `runstead user add {user}`")
        scopes = tuple(scopes)
        if (role is TokenRole.FINE_GRAINED) != bool(scopes):
            raise Invalid("a fine-grained token has one or more scopes, and only that kind has any", "scopes")
        for namespace, _ in scopes:
            if await self._store.namespace(namespace) is None:
                raise NotFound(f"there is no user or organization {namespace!r}")
        if value is None:
            value = "hf_" + "".join(secrets.choice(_ALPHABET) for _ in range(_VALUE_CHARACTERS))
        elif len(value) < _SHORTEST_VALUE or not value.isascii() or not value.isprintable() or " " in value:
            raise Invalid(f"a token has {_SHORTEST_VALUE} or more printable ASCII characters and no blanks", "value")
        now = self._clock.now()
        token = Token(new_id(now), owner.id, name, role, now, value[-4:], expires_at, scopes)
        return await self._store.add_token(token, digest(value)), value

    async def tokens(self, user: str | None = None) -> list[Token]:
        """Return the tokens of a user, or all of them, newest first."""
        return await self._store.tokens(user)

    async def revoke_token(self, which: str) -> Token:
        """Revoke the token with that id, or with that name if only one has it. Raises NotFound or Conflict."""
        tokens = await self._store.tokens()
        found = [t for t in tokens if t.id == which] or [t for t in tokens if t.name == which]
        if not found:
            raise NotFound(f"there is no token {which!r}: `runstead token list` shows them")
        if len(found) > 1:
            raise Conflict(f"{len(found)} tokens have that name; give the id instead of {which!r}")
        await self._store.revoke_token(found[0].id)
        return found[0]

    async def recognize(self, value: str | None) -> Caller:
        """Return who holds this token. Raises Unauthenticated."""
        if not value:
            raise Unauthenticated("this needs a token: set HF_TOKEN or run `hf auth login`")
        return await self.recognize_digest(digest(value))

    async def recognize_digest(self, token_digest: bytes) -> Caller:
        """Return who holds the token with this digest: what a session remembers of a token. Raises Unauthenticated."""
        caller = await self._store.caller(token_digest)
        if caller is None:
            raise Unauthenticated("Invalid credentials in Authorization header: no such token, or it was revoked")
        if caller.token.expires_at is not None and caller.token.expires_at <= self._clock.now():
            raise Unauthenticated("Invalid credentials in Authorization header: the token has expired")
        return caller

    async def ensure_owner(self) -> tuple[User, str | None]:
        """On the very first start make an owner account and a token for it; return them (the value only then)."""
        users = await self._store.users()
        if users:
            return next((u for u in users if u.is_admin), users[0]), None
        user = await self.add_user(_owner_name(), admin=True)
        _, value = await self.add_token(user.name, "first-start", TokenRole.WRITE)
        return user, value


def digest(value: str) -> bytes:
    """Return what is stored of a token. A plain hash suffices: the values are random and long."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def authorize(caller: Caller, permission: Permission, namespace: str) -> Namespace:
    """Return the namespace if the caller has the permission there. Raises Forbidden, the same for all reasons.

    A namespace that does not exist gets the same answer as one of strangers: nobody learns who is here.
    """
    found = caller.namespace(namespace)
    if found is None or not caller.may(permission, namespace):
        raise Forbidden(
            f"your token ({caller.token.role}, user {caller.user.name}) has no {permission} access to {namespace!r}"
        )
    return found


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise Invalid(
            "a name has 1 to 96 letters, digits, '-', '_' or '.', begins and ends with a letter or digit, "
            f"and is not a reserved word; not {name[:100]!r}",
            "name",
        )
    return name


def _owner_name() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = ""
    name = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:96]
    return name if name and name not in _RESERVED else "owner"
