"""Who is calling: the Bearer token of a request."""

from typing import Annotated

from fastapi import Depends, Request

from runstead.api.context import context
from runstead.model.accounts import Caller
from runstead.model.volumes import MountCaller
from runstead.services import mount_tokens


def bearer_token(request: Request) -> str | None:
    """Return the token of the Authorization header, if it has one."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() or None if scheme.lower() == "bearer" else None


async def _caller(request: Request) -> Caller:
    return await context(request).accounts.recognize(bearer_token(request))


async def _maybe_caller(request: Request) -> Caller | None:
    token = bearer_token(request)
    return None if token is None else await context(request).accounts.recognize(token)


async def _bucket_caller(request: Request) -> Caller | MountCaller | None:
    token = bearer_token(request)
    if token is not None and token.startswith(mount_tokens.PREFIX):
        return await context(request).mount_tokens.recognize(token)
    return await _maybe_caller(request)


CallerOf = Annotated[Caller, Depends(_caller)]
MaybeCallerOf = Annotated[Caller | None, Depends(_maybe_caller)]
"""None without a token; a token that is not valid is refused all the same."""

BucketCallerOf = Annotated[Caller | MountCaller | None, Depends(_bucket_caller)]
"""The same, or whoever serves the volumes of a job: only the routes for the files of a bucket know them."""
