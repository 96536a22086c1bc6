"""Buckets: which there are, and what is in them."""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode

from starlette.responses import Response

from runstead.model.buckets import BucketFile, Folder
from runstead.web.visit import Visit, see

_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class Row:
    """A file or a folder as it is listed."""

    name: str
    href: str
    is_folder: bool
    size: int
    at: datetime


async def start(visit: Visit) -> Response:
    """Lead to the buckets of the first namespace the caller may look at."""
    namespaces = visit.namespaces
    return see(f"/buckets/{quote(namespaces[0], safe='')}") if namespaces else visit.page("no_namespace.html")


async def bucket_list(visit: Visit) -> Response:
    """Show the buckets of a namespace."""
    request = visit.request
    namespace: str = request.path_params["namespace"]
    search = request.query_params.get("search", "").strip()[:200]
    after = request.query_params.get("after", "")[:200]
    buckets, more = await visit.context.buckets.page(visit.caller, namespace, search, after)
    return visit.page(
        "bucket_list.html",
        namespace=namespace,
        buckets=buckets,
        search=search,
        more=f"?{urlencode({'search': search, 'after': more})}" if more is not None else None,
    )


async def bucket_page(visit: Visit) -> Response:
    """Show one level of a bucket."""
    request, buckets = visit.request, visit.context.buckets
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    prefix: str = request.path_params.get("path", "").strip("/")
    bucket = await buckets.get(visit.caller, namespace, name)
    start_at = request.query_params.get("from", "")[:2000]
    entries, more = await buckets.entries(
        visit.caller, namespace, name, prefix, recursive=False, start=start_at, limit=_ENTRIES
    )
    address = f"/buckets/{quote(namespace, safe='')}/{quote(name, safe='')}"
    return visit.page(
        "bucket.html",
        namespace=namespace,
        bucket=bucket,
        address=address,
        prefix=prefix,
        crumbs=_crumbs(address, prefix),
        rows=[_row(address, prefix, entry) for entry in entries],
        more=f"?{urlencode({'from': more})}" if more is not None else None,
        base_url=visit.base_url,
    )


def _crumbs(address: str, prefix: str) -> list[tuple[str, str]]:
    parts = prefix.split("/") if prefix else []
    return [(part, f"{address}/tree/{quote('/'.join(parts[: i + 1]))}") for i, part in enumerate(parts)]


def _row(address: str, prefix: str, entry: BucketFile | Folder) -> Row:
    name = entry.path[len(prefix) + 1 :] if prefix and entry.path.startswith(prefix + "/") else entry.path
    if isinstance(entry, Folder):
        return Row(name.rstrip("/"), f"{address}/tree/{quote(entry.path)}", True, 0, entry.uploaded_at)
    return Row(name, f"{address}/download/{quote(entry.path)}", False, entry.size, entry.uploaded_at)
