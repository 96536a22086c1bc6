"""Under which addresses clients, jobs and the programs beside jobs reach a server."""

from urllib.parse import urlsplit

from runstead.executors.interface import Capabilities
from runstead.kit.settings import Settings

# In the data directory: where the programs beside jobs reach the server that runs, or ran last.
URL_FILE = "server.url"


def node_endpoint(settings: Settings, port: int) -> str:
    """Return where the programs beside jobs reach this server: they run on its machine."""
    return f"http://{reachable(settings.server.host)}:{port}"


def ports_url(settings: Settings, port: int) -> str | None:
    """Return the URL under whose name each port of a job has a host; None where they are reached by path."""
    domain = settings.proxy.domain
    if domain is None or "://" in domain:
        return domain
    public = urlsplit(settings.server.public_url) if settings.server.public_url else None
    scheme = "https" if settings.proxy.tls != "off" or (public and public.scheme == "https") else "http"
    if ":" in domain:
        return f"{scheme}://{domain}"
    shown = public.port if public else port
    return f"{scheme}://{domain}:{shown}" if shown else f"{scheme}://{domain}"


def job_endpoint(settings: Settings, capabilities: Capabilities, port: int) -> str | None:
    """Return where jobs reach this server, as HF_ENDPOINT; None where they shall not, or cannot."""
    match settings.jobs.endpoint:
        case "off":
            return None
        case "auto":
            return f"http://{capabilities.host_address}:{port}" if capabilities.host_address else None
        case url:
            return url


def reachable(host: str) -> str:
    """Return the address by which this machine itself reaches a server that listens at `host`."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
