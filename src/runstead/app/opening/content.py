"""Opens what a server stores."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from runstead.app.opening.database import opened_database
from runstead.app.storage import build_content, roots
from runstead.events.local import LocalEventBus
from runstead.kit.clock import Clock, SystemClock
from runstead.kit.settings import Settings
from runstead.services.buckets.keeping import Keeping
from runstead.services.content.checking import Checking
from runstead.services.content.collecting import Collecting
from runstead.services.content.service import StoredContent
from runstead.services.outputs import Outputs
from runstead.services.secrets import load_key
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore


@contextmanager
def _opened(settings: Settings, database: Database, clock: Clock) -> Generator[StoredContent]:
    content = build_content(settings, database, clock, load_key(settings.server.data_dir / "secret.key"))
    try:
        yield content
    finally:
        content.close()


@asynccontextmanager
async def open_keeping(settings: Settings) -> AsyncGenerator[Keeping]:
    """Open the history of a server's buckets, whether it runs or not."""
    clock = SystemClock()
    async with opened_database(settings) as database:
        with _opened(settings, database, clock) as content:
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
    async with opened_database(settings) as database:
        with _opened(settings, database, SystemClock()) as content:
            referring = roots(database)
            yield Storage(content.collecting(referring), content.checking(referring))


@asynccontextmanager
async def open_outputs(settings: Settings) -> AsyncGenerator[Outputs]:
    """Open the list of what a job wrote, whether the server runs or not."""
    async with opened_database(settings) as database:
        yield Outputs(SqlJobStore(database), SqlBucketLog(database))
