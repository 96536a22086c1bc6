"""Users, organizations and tokens in SQL."""

from typing import Any

from sqlalchemy import bindparam, delete, exists, select, text
from sqlalchemy.dialects.postgresql import insert

from runstead.model.accounts import (
    Caller,
    Membership,
    Namespace,
    NamespaceKind,
    Organization,
    OrgRole,
    Token,
    User,
)
from runstead.model.errors import Conflict, NotFound
from runstead.stores.bucket_tables import LIVE, buckets
from runstead.stores.database import Database, Transaction, reject_unstorable
from runstead.stores.interface import AccountStore
from runstead.stores.rows import (
    ACCOUNT_COLUMNS,
    TOKEN_COLUMNS,
    namespace_from,
    organization_from,
    organization_to,
    token_from,
    token_to,
    user_from,
    user_to,
)
from runstead.stores.schedule_tables import schedules
from runstead.stores.tables import accounts, jobs, memberships, tokens


class SqlAccountStore(AccountStore):
    """Accounts in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_user(self, user: User) -> User:
        """Store a user."""
        await self._add_account(user_to(user))
        return user

    async def users(self) -> list[User]:
        """Return all users by name."""
        rows = await self._database.read(lambda t: t.rows(_OF_KIND, {"kind": NamespaceKind.USER.value}))
        return [user_from(row) for row in rows]

    async def user(self, name: str) -> User | None:
        """Return the user of that name."""
        row = await self._database.read(lambda t: t.row(_NAMED, _named(name, NamespaceKind.USER)))
        return None if row is None else user_from(row)

    async def remove_user(self, name: str) -> bool:
        """Delete a user; the database deletes their tokens and memberships with them."""
        return await self._remove_account(name, NamespaceKind.USER)

    async def add_organization(self, organization: Organization) -> Organization:
        """Store an organization."""
        await self._add_account(organization_to(organization))
        return organization

    async def organizations(self) -> list[Organization]:
        """Return all organizations by name."""
        rows = await self._database.read(lambda t: t.rows(_OF_KIND, {"kind": NamespaceKind.ORG.value}))
        return [organization_from(row) for row in rows]

    async def remove_organization(self, name: str) -> bool:
        """Delete an organization; the database deletes its memberships with it."""
        return await self._remove_account(name, NamespaceKind.ORG)

    async def set_member(self, organization: str, user: str, role: OrgRole | None) -> None:
        """Give the user that role, or take them out."""

        def work(transaction: Transaction) -> None:
            ids = {
                "organization_id": _id_of(transaction, organization, NamespaceKind.ORG),
                "user_id": _id_of(transaction, user, NamespaceKind.USER),
            }
            if role is None:
                transaction.run(_TAKE_OUT, ids)
            else:
                transaction.run(_SET_MEMBER, {**ids, "role": role.value})

        await self._database.write(work)

    async def members(self, organization: str) -> list[tuple[User, OrgRole]]:
        """Return the members by name."""

        def work(transaction: Transaction) -> list[tuple[User, OrgRole]]:
            of = {"organization_id": _id_of(transaction, organization, NamespaceKind.ORG)}
            return [(user_from(row[1:]), OrgRole(row[0])) for row in transaction.rows(_MEMBERS, of)]

        return await self._database.read(work, consistent=True)

    async def memberships(self, user_id: str) -> list[Membership]:
        """Return the organizations a user is in."""
        rows = await self._database.read(lambda t: t.rows(_MEMBERSHIPS, {"user_id": user_id}))
        return [Membership(organization_from(row[1:]), OrgRole(row[0])) for row in rows]

    async def namespace(self, name: str) -> Namespace | None:
        """Return the user or organization of that name."""
        row = await self._database.read(lambda t: t.row(_ANY_NAMED, {"name": name}))
        return None if row is None else namespace_from(row)

    async def add_token(self, token: Token, digest: bytes) -> Token:
        """Store a token by the digest of its value."""
        row = token_to(token, digest)
        reject_unstorable(row)
        try:
            await self._database.write(lambda transaction: transaction.run(_ADD_TOKEN, row))
        except Conflict as error:
            raise Conflict("a token of that value, or of that id, is known already") from error
        except NotFound as error:
            raise NotFound(f"there is no user of that id: {token.user_id}") from error
        return token

    async def tokens(self, user: str | None = None) -> list[Token]:
        """Return tokens, newest first."""
        statement, parameters = (_TOKENS, {}) if user is None else (_TOKENS_OF, {"name": user})
        return [token_from(row) for row in await self._database.read(lambda t: t.rows(statement, parameters))]

    async def revoke_token(self, token_id: str) -> bool:
        """Delete a token."""
        return await self._database.write(lambda transaction: transaction.run(_REVOKE, {"id": token_id})) > 0

    async def caller(self, digest: bytes) -> Caller | None:
        """Return who holds the token with that digest."""
        rows = await self._database.look(lambda transaction: transaction.rows(_CALLER, {"digest": digest}))
        if not rows:
            return None
        user_at, organization_at = len(TOKEN_COLUMNS), len(TOKEN_COLUMNS) + len(ACCOUNT_COLUMNS)
        return Caller(
            user=user_from(rows[0][user_at:organization_at]),
            token=token_from(rows[0][:user_at]),
            memberships=tuple(
                Membership(organization_from(row[organization_at:-1]), OrgRole(row[-1]))
                for row in rows
                if row[-1] is not None
            ),
        )

    async def _add_account(self, row: dict[str, Any]) -> None:
        reject_unstorable(row)
        try:
            await self._database.write(lambda transaction: transaction.run(_ADD, row))
        except Conflict as error:
            raise Conflict(f"there is a user or organization of that name already: {row['name']}") from error

    async def _remove_account(self, name: str, kind: NamespaceKind) -> bool:
        def work(transaction: Transaction) -> bool:
            if transaction.row(_OWNS_JOBS, {"name": name}):
                raise Conflict(f"this account owns jobs; delete them, or wait until they have expired: {name}")
            if transaction.row(_OWNS_BUCKETS, {"name": name}):
                raise Conflict(f"this account owns buckets; delete them, or move them to another: {name}")
            if transaction.row(_OWNS_SCHEDULES, {"name": name}):
                raise Conflict(f"this account owns schedules; delete them with `hf jobs scheduled delete`: {name}")
            return transaction.run(_REMOVE, _named(name, kind)) > 0

        return await self._database.write(work)


def _named(name: str, kind: NamespaceKind) -> dict[str, Any]:
    return {"name": name, "kind": kind.value}


def _id_of(transaction: Transaction, name: str, kind: NamespaceKind) -> str:
    row = transaction.row(_NAMED, _named(name, kind))
    if row is None:
        what = "user" if kind is NamespaceKind.USER else "organization"
        raise NotFound(f"there is no {what} of that name: {name}")
    return row[0]


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_organization = accounts.alias("organization")

_ADD = insert(accounts).values(_binds(*accounts.c.keys()))
_REMOVE = delete(accounts).where(accounts.c.name == bindparam("name"), accounts.c.kind == bindparam("kind"))
_OWNS_JOBS = (
    select(accounts.c.id)
    .where(accounts.c.name == bindparam("name"))
    .where(exists().where(jobs.c.namespace == accounts.c.name))
)
_OWNS_BUCKETS = (
    select(accounts.c.id)
    .where(accounts.c.name == bindparam("name"))
    .where(exists().where(buckets.c.namespace == accounts.c.name, text(LIVE)))
)
_OWNS_SCHEDULES = (
    select(accounts.c.id)
    .where(accounts.c.name == bindparam("name"))
    .where(exists().where(schedules.c.namespace == accounts.c.name))
)
_OF_KIND = select(*ACCOUNT_COLUMNS).where(accounts.c.kind == bindparam("kind")).order_by(accounts.c.name)
_ANY_NAMED = select(*ACCOUNT_COLUMNS).where(accounts.c.name == bindparam("name"))
_NAMED = _ANY_NAMED.where(accounts.c.kind == bindparam("kind"))

_NEW_MEMBER = insert(memberships).values(_binds("user_id", "organization_id", "role"))
_SET_MEMBER = _NEW_MEMBER.on_conflict_do_update(
    index_elements=[memberships.c.user_id, memberships.c.organization_id], set_={"role": _NEW_MEMBER.excluded.role}
)
_TAKE_OUT = delete(memberships).where(
    memberships.c.user_id == bindparam("user_id"), memberships.c.organization_id == bindparam("organization_id")
)
_MEMBERS = (
    select(memberships.c.role, *ACCOUNT_COLUMNS)
    .join(accounts, memberships.c.user_id == accounts.c.id)
    .where(memberships.c.organization_id == bindparam("organization_id"))
    .order_by(accounts.c.name)
)
_MEMBERSHIPS = (
    select(memberships.c.role, *ACCOUNT_COLUMNS)
    .join(accounts, memberships.c.organization_id == accounts.c.id)
    .where(memberships.c.user_id == bindparam("user_id"))
    .order_by(accounts.c.name)
)

_ADD_TOKEN = insert(tokens).values(_binds(*tokens.c.keys()))
_REVOKE = delete(tokens).where(tokens.c.id == bindparam("id"))
_TOKENS = select(*TOKEN_COLUMNS).order_by(tokens.c.created_at.desc(), tokens.c.id.desc())
_TOKENS_OF = _TOKENS.join(accounts, tokens.c.user_id == accounts.c.id).where(accounts.c.name == bindparam("name"))
# Asked with every request, so it is one statement: one row per membership, or one without any.
_CALLER = (
    select(*TOKEN_COLUMNS, *accounts.c, *_organization.c, memberships.c.role)
    .join(accounts, tokens.c.user_id == accounts.c.id)
    .outerjoin(memberships, memberships.c.user_id == accounts.c.id)
    .outerjoin(_organization, memberships.c.organization_id == _organization.c.id)
    .where(tokens.c.digest == bindparam("digest"))
    .order_by(_organization.c.name)
)
