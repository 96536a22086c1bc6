"""What the routes work with: the services, and the few facts of this server that show on the wire."""

from dataclasses import dataclass

from fastapi import Request

from runstead.kit.clock import Clock
from runstead.services.accounts import Accounts
from runstead.services.buckets.batches import Batches
from runstead.services.buckets.buckets import Buckets
from runstead.services.buckets.following import Following
from runstead.services.content.service import StoredContent
from runstead.services.exposure import Exposure
from runstead.services.hardware import Hardware
from runstead.services.jobs import Jobs
from runstead.services.logs import Logs
from runstead.services.metrics import JobMetrics
from runstead.services.mount_tokens import MountTokens
from runstead.services.outputs import Outputs
from runstead.services.port_addresses import PortAddresses
from runstead.services.sandbox_forks import Forking
from runstead.services.schedules import Schedules


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to the application once; a route gets it by `context(request)`."""

    accounts: Accounts
    jobs: Jobs
    schedules: Schedules
    logs: Logs
    metrics: JobMetrics
    hardware: Hardware
    content: StoredContent
    buckets: Buckets
    batches: Batches
    following: Following
    outputs: Outputs
    mount_tokens: MountTokens
    exposure: Exposure
    forking: Forking
    port_addresses: PortAddresses
    clock: Clock
    cursor_key: bytes
    public_url: str | None
    max_body_bytes: int


def context(request: Request) -> Context:
    """Return the context of the application that serves this request."""
    return request.app.state.context


def base_url(request: Request) -> str:
    """Return the URL the client reached this server by; absolute links must carry it (wire-jobs §8)."""
    public = context(request).public_url
    return public if public is not None else f"{request.url.scheme}://{request.url.netloc}"
