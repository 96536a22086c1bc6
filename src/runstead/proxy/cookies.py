"""Cookies on their way through: jobs see none of this server's, and set none that reach beyond their own address."""

from runstead.proxy.heads import Field

OWN = b"runstead-"
"""With this the names of all cookies of this server begin, behind the prefix that browsers enforce."""
_PREFIXES = (b"__Host-", b"__Secure-")


def is_own(name: bytes) -> bool:
    """Say whether a cookie of that name is this server's."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name.startswith(OWN)


def find(fields: list[Field], name: bytes) -> bytes | None:
    """Return the value of a cookie that the client sent."""
    for field, value in fields:
        if field.lower() == b"cookie":
            for pair in value.split(b";"):
                found, _, content = pair.strip().partition(b"=")
                if found == name:
                    return content
    return None


def for_job(value: bytes) -> bytes | None:
    """Return a `Cookie` field without this server's cookies; None if nothing is left."""
    if OWN not in value:
        return value
    pairs = [pair.strip() for pair in value.split(b";")]
    return b"; ".join(pair for pair in pairs if not is_own(pair.partition(b"=")[0])) or None


def from_job(value: bytes, prefix: bytes) -> bytes | None:
    """Return a `Set-Cookie` field bound to the address of the port; None for a cookie that jobs may not set.

    `prefix` is the path of the port, empty where it has a host for itself.
    """
    pair, *attributes = value.split(b";")
    name = pair.partition(b"=")[0].strip()
    if is_own(name) or (prefix and name.startswith(b"__Host-")):  # which would have to be for the whole host
        return None
    kept = [pair]
    path = b""
    for attribute in attributes:
        key, _, content = attribute.partition(b"=")
        match key.strip().lower():
            case b"domain":
                continue
            case b"path":
                path = content.strip()
            case _:
                kept.append(attribute)
    path = path if path.startswith(b"/") else b""
    if prefix:
        inside = path if path == prefix or path.startswith(prefix + b"/") else prefix + path.rstrip(b"/")
        kept.append(b" Path=" + inside)
    elif path:
        kept.append(b" Path=" + path)
    return b";".join(kept)
