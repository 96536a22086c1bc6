"""Opens parts of a server for one command, whether the server runs or not."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from runstead.app.addresses import URL_FILE
from runstead.app.data_directory import make_private
from runstead.app.storage import build_content, roots
from runstead.app.volumes import build_volumes
from runstead.events.local import LocalEventBus
from runstead.images.library import ImageLibrary
from runstead.kit.clock import Clock, SystemClock
from runstead.kit.settings import Settings
from runstead.model.errors import Unavailable
from runstead.services.accounts import Accounts
from runstead.services.buckets.keeping import Keeping
from runstead.services.content.checking import Checking
from runstead.services.content.collecting import Collecting
from runstead.services.content.service import StoredContent
from runstead.services.mount_tokens import MountTokens
from runstead.services.outputs import Outputs
from runstead.services.recovery import Recovery
from runstead.services.secrets import load_key
from runstead.services.usage import Usage
from runstead.services.volumes import MountRequests
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.usage import SqlUsageStore


@asynccontextmanager
async def _open_database(settings: Settings) -> AsyncGenerator[Database]:
    make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        yield database
    finally:
        await database.close()


@contextmanager
def _content(settings: Settings, database: Database, clock: Clock) -> Generator[StoredContent]:
    content = build_content(settings, database, clock, load_key(settings.server.data_dir / "secret.key"))
    try:
        yield content
    finally:
        content.close()


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncGenerator[Accounts]:
    """Open the accounts of a server, whether it runs or not."""
    async with _open_database(settings) as database:
        yield Accounts(SqlAccountStore(database), SystemClock())


@asynccontextmanager
async def open_usage(settings: Settings) -> AsyncGenerator[Usage]:
    """Open what jobs used and what they may cost, whether the server runs or not."""
    async with _open_database(settings) as database:
        yield Usage(SqlUsageStore(database), SqlAccountStore(database), SystemClock())


@asynccontextmanager
async def open_keeping(settings: Settings) -> AsyncGenerator[Keeping]:
    """Open the history of a server's buckets, whether it runs or not."""
    clock = SystemClock()
    async with _open_database(settings) as database:
        with _content(settings, database, clock) as content:
            stores = SqlBucketStore(database), SqlBucketLog(database)
            yield Keeping(*stores, content, LocalEventBus(), clock, settings.storage.history_days)


@dataclass(frozen=True, slots=True)
class Storage:
    """What looks after stored content."""

    collecting: Collecting
    checking: Checking


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncGenerator[Storage]:
    """Open the stored content of a server, whether it runs or not."""
    async with _open_database(settings) as database:
        with _content(settings, database, SystemClock()) as content:
            referring = roots(database)
            yield Storage(content.collecting(referring), content.checking(referring))


@asynccontextmanager
async def open_images(settings: Settings) -> AsyncGenerator[ImageLibrary]:
    """Open the images of this machine, whether the server runs or not."""
    make_private(settings.server.data_dir)
    library = ImageLibrary(settings.server.data_dir / "images", settings.images)
    await library.open()
    try:
        yield library
    finally:
        await library.close()


@asynccontextmanager
async def open_recovery(settings: Settings) -> AsyncGenerator[Recovery]:
    """Open what jobs of a running server wrote and could not be saved. Raises Unavailable when it does not run."""
    data_dir = settings.server.data_dir
    try:
        endpoint = (data_dir / URL_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"no server has run on this data directory; start it first: {data_dir}") from error
    async with _open_database(settings) as database:
        clock, store = SystemClock(), SqlJobStore(database)
        tokens = MountTokens(load_key(data_dir / "secret.key"), store, clock)
        requests = MountRequests(store, SqlBucketStore(database), tokens, clock, endpoint, recovery=True)
        provider = build_volumes(settings, requests, private_ids=False)
        await provider.open()
        try:
            yield Recovery(store, provider, settings.jobs.flush_seconds)
        finally:
            await provider.close()


@asynccontextmanager
async def open_outputs(settings: Settings) -> AsyncGenerator[Outputs]:
    """Open the list of what a job wrote, whether the server runs or not."""
    async with _open_database(settings) as database:
        yield Outputs(SqlJobStore(database), SqlBucketLog(database))
