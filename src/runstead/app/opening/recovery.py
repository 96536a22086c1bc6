"""Opens what jobs wrote and could not be saved."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runstead.app.addresses import URL_FILE
from runstead.app.opening.database import opened_database
from runstead.app.volumes import build_volumes
from runstead.kit.clock import SystemClock
from runstead.kit.settings import Settings
from runstead.model.errors import Unavailable
from runstead.services.mount_tokens import MountTokens
from runstead.services.recovery import Recovery
from runstead.services.secrets import load_key
from runstead.services.volumes import MountRequests
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.jobs import SqlJobStore


@asynccontextmanager
async def open_recovery(settings: Settings) -> AsyncGenerator[Recovery]:
    """Open what jobs of a running server wrote and could not be saved. Raises Unavailable when it does not run."""
    data_dir = settings.server.data_dir
    try:
        endpoint = (data_dir / URL_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"no server has run on this data directory; start it first: {data_dir}") from error
    async with opened_database(settings) as database:
        clock, store = SystemClock(), SqlJobStore(database)
        tokens = MountTokens(load_key(data_dir / "secret.key"), store, clock)
        requests = MountRequests(store, SqlBucketStore(database), tokens, clock, endpoint, recovery=True)
        provider = build_volumes(settings, requests, private_ids=False)
        await provider.open()
        try:
            yield Recovery(store, provider, settings.jobs.flush_seconds)
        finally:
            await provider.close()
