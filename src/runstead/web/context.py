"""What the pages work with: the services, and the few facts of this server that they show."""

from dataclasses import dataclass

from runstead.kit.clock import Clock
from runstead.services.accounts import Accounts
from runstead.services.buckets.buckets import Buckets
from runstead.services.content.service import StoredContent
from runstead.services.hardware import Hardware
from runstead.services.jobs import Jobs
from runstead.services.logs import Logs
from runstead.services.metrics import JobMetrics
from runstead.services.port_addresses import PortAddresses
from runstead.services.schedules import Schedules


@dataclass(frozen=True, slots=True)
class WebContext:
    """Handed to `with_pages` once."""

    accounts: Accounts
    jobs: Jobs
    schedules: Schedules
    logs: Logs
    metrics: JobMetrics
    hardware: Hardware
    buckets: Buckets
    content: StoredContent
    clock: Clock
    key: bytes  # the server's; sessions use keys derived from it
    public_url: str | None
    port_addresses: PortAddresses
