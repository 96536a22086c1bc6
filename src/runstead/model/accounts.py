"""Users, organizations, tokens, and what a caller may do.

A *namespace* is the name of a user or an organization; jobs and buckets belong to one.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class NamespaceKind(StrEnum):
    """Whether a namespace is a person or a group of people."""

    USER = "user"
    ORG = "org"


class OrgRole(StrEnum):
    """What a member may do in an organization; the Hub's words, weakest first."""

    READ = "read"
    CONTRIBUTOR = "contributor"
    WRITE = "write"
    ADMIN = "admin"


class TokenRole(StrEnum):
    """How far a token reaches: everywhere its user may read, read and write, or per namespace."""

    READ = "read"
    WRITE = "write"
    FINE_GRAINED = "fineGrained"


class Permission(StrEnum):
    """What a fine-grained token may do in one namespace."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A user or organization as the owner of things."""

    id: str
    name: str
    kind: NamespaceKind


@dataclass(frozen=True, slots=True)
class User:
    """An account a person or a machine signs in with."""

    id: str
    name: str
    full_name: str
    is_admin: bool  # may manage accounts on this server
    created_at: datetime
    email: str | None = None

    @property
    def namespace(self) -> Namespace:
        """The namespace of the same name."""
        return Namespace(self.id, self.name, NamespaceKind.USER)


@dataclass(frozen=True, slots=True)
class Organization:
    """A namespace shared by several users."""

    id: str
    name: str
    full_name: str
    created_at: datetime

    @property
    def namespace(self) -> Namespace:
        """The namespace of the same name."""
        return Namespace(self.id, self.name, NamespaceKind.ORG)


@dataclass(frozen=True, slots=True)
class Membership:
    """One user's place in one organization."""

    organization: Organization
    role: OrgRole


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it may be listed: never its value, of which only a hash is stored."""

    id: str
    user_id: str
    name: str
    role: TokenRole
    created_at: datetime
    hint: str  # the last four characters, so that people can tell their tokens apart
    expires_at: datetime | None = None
    scopes: tuple[tuple[str, Permission], ...] = ()  # fine-grained: (namespace name, permission)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: a user, the token used, and the organizations the user is in."""

    user: User
    token: Token
    memberships: tuple[Membership, ...] = field(default=())

    def namespace(self, name: str) -> Namespace | None:
        """Return the caller's own view of namespace `name`: their account or one of their organizations."""
        if name == self.user.name:
            return self.user.namespace
        for membership in self.memberships:
            if membership.organization.name == name:
                return membership.organization.namespace
        return None

    def may(self, permission: Permission, namespace: str) -> bool:
        """Say whether this caller, with this token, has `permission` in `namespace`."""
        return self._user_may(permission, namespace) and self._token_may(permission, namespace)

    def _user_may(self, permission: Permission, namespace: str) -> bool:
        if namespace == self.user.name:
            return True
        for membership in self.memberships:
            if membership.organization.name == namespace:
                return permission is Permission.READ or membership.role is not OrgRole.READ
        return False

    def _token_may(self, permission: Permission, namespace: str) -> bool:
        if self.token.role is TokenRole.WRITE:
            return True
        if self.token.role is TokenRole.READ:
            return permission is Permission.READ
        granted = [p for name, p in self.token.scopes if name == namespace]
        return Permission.WRITE in granted or (permission is Permission.READ and bool(granted))
