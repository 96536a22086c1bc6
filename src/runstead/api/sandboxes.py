"""What this server does with sandboxes beyond the Hub: forks. Their own protocol is spoken elsewhere, at their port."""

from typing import Annotated

from fastapi import Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from runstead.api.auth import CallerOf
from runstead.api.context import context
from runstead.api.jobs import Namespace, jobs_json
from runstead.services.sandbox_forks import MOST_FORKS

SandboxId = Annotated[str, Path(max_length=200)]


class ForkRequest(BaseModel):
    """The body of `POST /api/jobs/{namespace}/{id}/fork`."""

    model_config = ConfigDict(extra="ignore")

    count: Annotated[int, Field(strict=True, ge=1, le=MOST_FORKS)] = 1


async def fork(
    request: Request, namespace: Namespace, job_id: SandboxId, caller: CallerOf, body: ForkRequest
) -> Response:
    """Make sandboxes that begin with the files of this one, as they are now. Not a route of the Hub."""
    made = await context(request).forking.fork(caller, namespace, job_id, body.count)
    return JSONResponse({"jobs": jobs_json(request, made)})
