"""Styles, scripts and images: a handful of files of this package, held in memory.

Their addresses carry a digest of all of them, so browsers keep them for good and still get new ones with a new
version of the server. They hold nothing of anybody, hence need no session.
"""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from runstead.model.errors import NotFound
from runstead.web.headers import secure

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD = "public, max-age=31536000, immutable"
_FOR_AN_HOUR = "public, max-age=3600"


class StaticFiles:
    """Serves the files."""

    def __init__(self) -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
        digest = hashlib.sha256()
        for name, data in self._files.items():
            digest.update(name.encode() + b"\0" + data)
        self._version = digest.hexdigest()[:16]

    def address(self, name: str) -> str:
        """Return the path of a file."""
        if name not in self._files:
            raise KeyError(name)
        return f"/static/{self._version}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answer for `/static/{version}/{name}`."""
        fresh = request.path_params["version"] == self._version
        return self._answer(request.path_params["name"], _FOR_GOOD if fresh else "no-cache")

    async def icon(self, request: Request) -> Response:
        """Answer for an image at the top of the site."""
        return self._answer(request.url.path.removeprefix("/"), _FOR_AN_HOUR)

    def _answer(self, name: str, cache: str) -> Response:
        data = self._files.get(name)
        if data is None:
            raise NotFound(f"there is no such file: {name[:100]!r}")
        kind = _TYPES[Path(name).suffix]
        headers = {"Cache-Control": cache, "Cross-Origin-Resource-Policy": "cross-origin"}
        return secure(Response(data, media_type=kind, headers=headers))
