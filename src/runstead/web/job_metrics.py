"""What a running job uses, once a second."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from runstead.model.jobs import Job
from runstead.services.metrics import Metrics
from runstead.web.job_page import find_job
from runstead.web.streams import Events, event
from runstead.web.visit import Visit


async def metrics(visit: Visit) -> Response:
    """Send samples until the job no longer runs."""
    return Events(visit, _samples(visit, await find_job(visit)))


async def _samples(visit: Visit, job: Job) -> AsyncGenerator[bytes]:
    async with aclosing(visit.context.metrics.stream(job)) as samples:
        async for sample in samples:
            yield event("sample", _json(sample))
    yield event("end", b"null")


def _json(sample: Metrics) -> bytes:
    found = {
        "cpu_percent": sample.cpu_percent,
        "cpu_cores": sample.cpu_millicores / 1000,
        "memory_used": sample.memory_used_bytes,
        "memory_total": sample.memory_total_bytes,
        "received": sample.rx_bytes_per_second,
        "sent": sample.tx_bytes_per_second,
        "gpus": [
            {
                "name": name,
                "percent": gpu.utilization_percent,
                "memory_used": gpu.memory_used_bytes,
                "memory_total": gpu.memory_total_bytes,
            }
            for name, gpu in sample.gpus.items()
        ],
    }
    return json.dumps(found, separators=(",", ":")).encode()
