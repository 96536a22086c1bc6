"""Buckets as their users see them: made, found, listed, moved, deleted; their files looked at and their tokens."""

from collections.abc import Collection

from runstead.events.interface import BUCKETS, EventBus
from runstead.kit.clock import Clock
from runstead.model.accounts import Caller, Permission
from runstead.model.buckets import Bucket, BucketFile, Folder, is_bucket_name, path_problem, place_behind
from runstead.model.content import CasToken
from runstead.model.errors import EntryNotFound, Invalid, RepoNotFound, TooLarge
from runstead.model.ids import new_id
from runstead.services.accounts import authorize
from runstead.services.buckets.access import ME, Asker, admit, known
from runstead.services.content.content import Content
from runstead.stores.interface import BucketStore

_BUCKETS_PER_PAGE = 100
_ENTRIES_PER_PAGE = 1000
_MOST_ENTRIES_PER_PAGE = 10_000
_MOST_PATHS = 1000

Page = tuple[list[BucketFile | Folder], str | None]


class Buckets:
    """Every method takes who asks; None is somebody without a token, who sees what is public."""

    def __init__(self, store: BucketStore, content: Content, events: EventBus, clock: Clock) -> None:
        self._store = store
        self._content = content
        self._events = events
        self._clock = clock

    async def create(
        self,
        caller: Caller,
        namespace: str,
        name: str,
        *,
        private: bool = False,
        resource_group_id: str | None = None,
        region: str | None = None,
    ) -> Bucket:
        """Make an empty bucket; the namespace "me" is the caller's. Raises Forbidden, Invalid or Conflict."""
        owner = authorize(caller, Permission.WRITE, caller.user.name if namespace == ME else namespace)
        now = self._clock.now()
        bucket = Bucket(
            seq=0,
            id=new_id(now),
            namespace=owner,
            name=_checked_name(name),
            private=private,
            created_at=now,
            updated_at=now,
            resource_group_id=resource_group_id,
            region=region,
        )
        return await self._store.add(bucket)

    async def get(self, caller: Asker, namespace: str, name: str, permission: Permission = Permission.READ) -> Bucket:
        """Return a bucket on which the caller has that permission. Raises as `admit` does."""
        bucket = await self._store.find(namespace, name) if _may_exist(namespace, name) else None
        return admit(bucket, caller, permission, f"{namespace}/{name}")

    async def page(
        self, caller: Caller | None, namespace: str, search: str, after: str
    ) -> tuple[list[Bucket], str | None]:
        """Return the buckets of a namespace that the caller may see, by name, and behind which there are more.

        A namespace of which the caller sees nothing is as one that does not exist: RepoNotFound.
        """
        if namespace == ME:
            namespace = known(caller).user.name
        if not is_bucket_name(namespace):
            raise _no_namespace(namespace)
        if "\0" in search:
            return [], None
        with_private = caller is not None and caller.may(Permission.READ, namespace)
        found = await self._store.page(namespace, search, after, _BUCKETS_PER_PAGE + 1, with_private=with_private)
        is_own = caller is not None and caller.namespace(namespace) is not None
        if not found and not is_own and not await self._store.page(namespace, "", "", 1, with_private=False):
            raise _no_namespace(namespace)
        more = len(found) > _BUCKETS_PER_PAGE
        return found[:_BUCKETS_PER_PAGE], found[_BUCKETS_PER_PAGE - 1].name if more else None

    async def set_private(self, caller: Caller, namespace: str, name: str, private: bool) -> Bucket:
        """Set whether only the namespace sees the bucket."""
        bucket = await self.get(caller, namespace, name, Permission.WRITE)
        await self._store.set_private(bucket.id, private)
        self._events.publish(BUCKETS, bucket.id)
        return await self.get(caller, namespace, name)

    async def move(self, caller: Caller, source: tuple[str, str], target: tuple[str, str]) -> Bucket:
        """Give the bucket another name, in its namespace or another that the caller may write. Raises Conflict."""
        bucket = await self.get(caller, *source, Permission.WRITE)
        namespace, name = target
        owner = authorize(caller, Permission.WRITE, namespace)
        if not await self._store.move(bucket.id, owner, _checked_name(name)):
            raise RepoNotFound(f"the bucket was deleted meanwhile: {bucket.path}")
        self._events.publish(BUCKETS, bucket.id)
        return await self.get(caller, namespace, name)

    async def delete(self, caller: Caller, namespace: str, name: str) -> None:
        """Take the bucket away; for a while it can be restored on the server."""
        bucket = await self.get(caller, namespace, name, Permission.WRITE)
        await self._store.delete(bucket.id, self._clock.now())
        self._events.publish(BUCKETS, bucket.id)

    async def token(self, caller: Asker, namespace: str, name: str, permission: Permission, base_url: str) -> CasToken:
        """Return a token for the bucket's content."""
        bucket = await self.get(caller, namespace, name, permission)
        return await self._content.cas_token(bucket.scope, permission, base_url)

    async def entries(
        self,
        caller: Asker,
        namespace: str,
        name: str,
        prefix: str,
        *,
        recursive: bool,
        start: str = "",
        limit: int | None = None,
    ) -> Page:
        """Return entries at or below a prefix from a place on, and the place where they go on.

        All files in the order of paths if `recursive`, else the files and folders of the level under the prefix.
        """
        bucket = await self.get(caller, namespace, name)
        limit = min(limit or _ENTRIES_PER_PAGE, _MOST_ENTRIES_PER_PAGE)
        prefix = prefix.rstrip("/")
        if prefix and path_problem(prefix) is not None:
            return [], None
        if recursive:
            found: list[BucketFile | Folder] = list(await self._store.tree(bucket.seq, prefix, start, limit + 1))
        else:
            found = await self._store.level(bucket.seq, prefix, start, limit + 1)
        more = len(found) > limit
        return found[:limit], place_behind(found[limit - 1]) if more else None

    async def files(self, caller: Asker, namespace: str, name: str, paths: Collection[str]) -> list[BucketFile]:
        """Return those of these paths that are files, in the order asked for."""
        bucket = await self.get(caller, namespace, name)
        if len(paths) > _MOST_PATHS:
            raise TooLarge(f"at most {_MOST_PATHS} paths can be asked for at once, not {len(paths)}", "paths")
        wanted = dict.fromkeys(path for path in paths if path_problem(path) is None)
        found = {file.path: file for file in await self._store.files(bucket.seq, wanted)} if wanted else {}
        return [found[path] for path in wanted if path in found]

    async def file(self, caller: Asker, namespace: str, name: str, path: str) -> tuple[Bucket, BucketFile]:
        """Return a file with its bucket. Raises EntryNotFound without the file."""
        wanted = path if path_problem(path) is None else ""  # which no file has
        found = await self._store.find_file(namespace, name, wanted) if _may_exist(namespace, name) else None
        bucket = admit(found and found[0], caller, Permission.READ, f"{namespace}/{name}")
        file = found[1] if found else None
        if file is None:
            raise EntryNotFound(f"there is no such file in {bucket.path}: {path[:200]}")
        return bucket, file


def _no_namespace(namespace: str) -> RepoNotFound:
    return RepoNotFound(f"there is no namespace of that name with buckets: {namespace[:200]}")


def _may_exist(namespace: str, name: str) -> bool:
    return is_bucket_name(namespace) and is_bucket_name(name)


def _checked_name(name: str) -> str:
    if not is_bucket_name(name):
        raise Invalid(
            "a bucket's name has 1 to 96 letters, digits, '-', '_' or '.', begins and ends with a letter, a digit "
            f"or '_', has neither '--' nor '..' and does not end with '.git': {name[:100]!r}",
            "name",
        )
    return name
