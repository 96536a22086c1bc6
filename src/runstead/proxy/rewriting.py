"""What changes in the heads of messages on their way into a job and back."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from runstead.proxy import cookies
from runstead.proxy.heads import HOP_BY_HOP, AnswerHead, Field, Framing, RequestHead

# A page of a job that shares its origin with this server's own pages gets an origin of its own instead: it can
# neither read them nor act with the login of whoever looks at it. What a page usually does is still allowed.
SANDBOX = (
    b"sandbox allow-downloads allow-forms allow-modals allow-orientation-lock allow-pointer-lock allow-popups "
    b"allow-presentation allow-scripts"
)

_ESSENTIAL = frozenset(
    (b"host", b"content-length", b"content-type", b"expect", b"trailer", b"cookie", b"authorization")
)
# Who sends a request is for us to say.
_OURS = frozenset((b"forwarded", b"x-real-ip"))
_OUR_PREFIXES = (b"x-forwarded-", b"x-runstead-")
# They would hold for other ports and for the server too, on the same host or origin.
_BEYOND_THE_JOB = frozenset(
    {
        b"alt-svc",
        b"clear-site-data",
        b"nel",
        b"public-key-pins",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"strict-transport-security",
    }
)


@dataclass(frozen=True, slots=True)
class Passage:
    """What of a request decides how heads are rewritten."""

    prefix: bytes  # the path of the port; empty where it has a host for itself
    host: bytes
    scheme: bytes
    client: bytes  # the address it came from
    authorized: bool  # the Authorization field was for this server
    without: frozenset[bytes] = frozenset()  # further fields that stay behind
    crossing: bool = False  # it comes from a page of this port in its sandbox, to which every request crosses origins


def for_job(head: RequestHead, passage: Passage, framing: Framing) -> list[Field]:
    """Return the fields of a request as the job gets them."""
    options = head.options
    fields: list[Field] = []
    for field in head.fields:
        name = field[0].lower()
        if name in HOP_BY_HOP or name in _OURS or name.startswith(_OUR_PREFIXES) or name in passage.without:
            continue
        if name in options and name not in _ESSENTIAL:
            continue
        if name == b"cookie":
            kept = cookies.for_job(field[1])
            if kept is not None:
                fields.append((field[0], kept))
        elif name == b"host":
            fields.append((field[0], passage.host))
        elif name != b"authorization" or not (passage.authorized or is_hub_token(field[1])):
            fields.append(field)
    if framing is Framing.CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
    upgrade = head.upgrade
    wants_trailers = any(b"trailers" in value.lower() for value in head.all(b"te"))
    if upgrade is not None and upgrade.lower() != b"h2c":  # whose requests nobody could check
        fields += ((b"Connection", b"Upgrade"), (b"Upgrade", upgrade))
    elif wants_trailers:
        fields += ((b"Connection", b"TE"), (b"TE", b"trailers"))
    fields += (
        (b"X-Forwarded-For", passage.client),
        (b"X-Forwarded-Proto", passage.scheme),
        (b"X-Forwarded-Host", passage.host),
    )
    if passage.prefix:
        fields.append((b"X-Forwarded-Prefix", passage.prefix))
    return fields


def is_hub_token(authorization: bytes) -> bool:
    """Say whether a field holds what looks like a token of the Hub or of this server; jobs never get one."""
    return authorization[:7].lower() == b"bearer " and authorization[7:].lstrip().startswith(b"hf_")


def for_client(head: AnswerHead, passage: Passage, framing: Framing) -> list[Field]:
    """Return the fields of an answer as the client gets them, but for `Connection`."""
    options = head.options
    prefix = passage.prefix
    fields: list[Field] = []
    for field in head.fields:
        name = field[0].lower()
        if name in HOP_BY_HOP or name in _BEYOND_THE_JOB or name.startswith(b"x-runstead-"):
            continue
        if name in options and name not in _ESSENTIAL:
            continue
        if name == b"set-cookie":
            cookie = cookies.from_job(field[1], prefix)
            if cookie is not None:
                fields.append((field[0], cookie))
        elif prefix and name in (b"location", b"content-location"):
            fields.append((field[0], _moved(field[1], passage)))
        elif not (passage.crossing and name.startswith(b"access-control-")):
            fields.append(field)
    if framing is Framing.CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if prefix:
        fields.append((b"Content-Security-Policy", SANDBOX))
    if passage.crossing:
        fields += CROSSING
    return fields


CROSSING: tuple[Field, ...] = (
    (b"Access-Control-Allow-Origin", b"null"),
    (b"Access-Control-Allow-Credentials", b"true"),
    (b"Access-Control-Expose-Headers", b"*"),
    (b"Referrer-Policy", b"same-origin"),
)


def _moved(location: bytes, passage: Passage) -> bytes:
    """Return a redirection of a program that thinks it has the whole host, as it is under its prefix."""
    prefix = passage.prefix
    if location.startswith(b"/") and not location.startswith(b"//"):
        path = location
    else:
        try:
            parts = urlsplit(location)
        except ValueError:
            return location
        if parts.scheme.lower() not in (b"http", b"https", b"") or parts.netloc.lower() != passage.host.lower():
            return location
        path = location.partition(b"//")[2].partition(b"/")
        path = b"/" + path[2] if path[1] else b"/"
    if path == prefix or path.startswith((prefix + b"/", prefix + b"?")):
        return path
    return prefix + path
