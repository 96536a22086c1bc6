"""Where a server keeps content."""

from datetime import timedelta

from runstead.kit.clock import Clock
from runstead.kit.settings import Settings
from runstead.objects.disk import DiskObjectStore
from runstead.objects.interface import ObjectStore
from runstead.services.buckets.keeping import BucketRoots
from runstead.services.content.content import FileRoots
from runstead.services.content.service import ContentLimits, StoredContent
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.content import SqlContentStore
from runstead.stores.database import Database


def build_content(settings: Settings, database: Database, clock: Clock, key: bytes) -> StoredContent:
    """Return the stored content of a server."""
    limits = ContentLimits(url_seconds=settings.storage.url_seconds, grace=timedelta(days=settings.storage.grace_days))
    return StoredContent(SqlContentStore(database), build_objects(settings), clock, key, limits)


def build_objects(settings: Settings) -> ObjectStore:
    """Return the store of objects that the settings name."""
    directory = settings.server.data_dir / "content"
    storage = settings.storage
    if storage.url is None:
        return DiskObjectStore(directory)
    # Its library holds 7 MB, which a server that keeps its content in a directory need not.
    from runstead.objects.s3 import S3ObjectStore

    return S3ObjectStore(storage.url, directory / "staging", endpoint=storage.endpoint, region=storage.region)


def roots(database: Database) -> list[FileRoots]:
    """Return all that refers to stored content: what is missing here is garbage."""
    return [BucketRoots(SqlBucketLog(database))]
