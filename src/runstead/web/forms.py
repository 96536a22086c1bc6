"""Reading the small forms that browsers send."""

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request

from runstead.model.errors import Invalid, TooLarge

_MOST_BYTES = 64 * 1024
_MOST_FIELDS = 20


async def read_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form. Raises Invalid or TooLarge for what none of ours sends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Invalid(f"a form is sent as application/x-www-form-urlencoded, not {kind[:100]!r}")
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > _MOST_BYTES:
            raise TooLarge(f"a form has at most {_MOST_BYTES} bytes")
    try:
        return dict(parse_qsl(data.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError as error:
        raise Invalid("the form cannot be read") from error
