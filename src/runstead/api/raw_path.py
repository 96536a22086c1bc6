"""The end of a request's path as the client wrote it."""

from urllib.parse import unquote_to_bytes

from fastapi import Request

from runstead.model.errors import Invalid


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
