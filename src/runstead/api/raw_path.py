"""Paths of files inside the paths of requests: as the client wrote them, whatever they contain."""

from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.convertors import Convertor, register_url_convertor

from runstead.model.errors import Invalid


class _Tail(Convertor[str]):
    """All the rest of a path. Unlike the framework's own, it has room for line ends."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def install() -> None:
    """Let routes have `{name:tail}` in their patterns."""
    register_url_convertor("tail", _Tail())


def path_tail(request: Request, segments: int) -> str:
    """Return what follows that many segments of the path, percent signs decoded once, quoted slashes or plain ones.

    Raises Invalid for what is not UTF-8: the framework would put replacement characters into it.
    """
    raw: bytes = request.scope["raw_path"]
    parts = raw.split(b"/", segments + 1)
    tail = parts[segments + 1] if len(parts) > segments + 1 else b""
    try:
        return unquote_to_bytes(tail).decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"the path is not UTF-8: {tail[:200].decode('latin-1')}", "path") from error
