"""Addresses of the Hub that this server does not serve yet: a clear 501, never a fake success."""

from fastapi import Request

from runstead.api.auth import CallerOf
from runstead.model.errors import Unsupported

# Prefix of the path, and what users call it.
FEATURES = (
    ("/api/settings/webhooks", "webhooks"),
    ("/api/repos", "repositories"),
    ("/api/models", "model repositories"),
    ("/api/datasets", "dataset repositories"),
    ("/api/spaces", "Space repositories"),
    ("/oauth", "login through a browser; use a token: `runstead token add`, then `hf auth login --token`"),
)


async def unbuilt(request: Request, _: CallerOf) -> None:
    """Refuse, saying what is missing."""
    path = request.url.path
    feature = next(name for prefix, name in FEATURES if path == prefix or path.startswith(prefix + "/"))
    raise Unsupported(f"this version of Runstead does not have {feature}")
