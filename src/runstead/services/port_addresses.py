"""By which addresses the ports of jobs are reached: how they are written, and how they are read.

By path, on the server's own origin: `/jobs-proxy/<job>--<port>.<word>/...`; it needs no name service. By host:
`<job>--<port>.<domain>`, where a domain is configured, and always under `localhost`, which browsers resolve to
their own machine. The form of the name is the Hub's (wire-jobs §14); clients look for `--<port>.` in it.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

PREFIX = "/jobs-proxy/"
WORD = "port"
"""What stands behind the port in a path when there is nothing to say; else what a browser was let in with."""
ADMISSION_WORD = "pass"
"""Stands there to ask, with a token, for an address of the port that lets in without one."""
LOOPBACK_DOMAIN = "localhost"

_LABEL = r"([0-9a-f]{24})--([1-9][0-9]{0,4})"
_HOST = re.compile(rf"{_LABEL}\.([a-z0-9.-]+)(?::[0-9]{{1,5}})?", re.ASCII)
_PATH = re.compile(rf"{re.escape(PREFIX)}{_LABEL}\.([A-Za-z0-9_-]+)(?=[/?]|$)(.*)", re.ASCII | re.DOTALL)
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class PortAddress:
    """A port of a job as a request named it."""

    job_id: str
    port: int
    prefix: str  # the part of the path that is the address; empty when it was named by host
    word: str  # the last part of that; empty when it was named by host
    target: str  # what is left for the job: path and query

    @property
    def by_host(self) -> bool:
        """Whether the job has this host for itself."""
        return not self.prefix


class PortAddresses:
    """The addresses of one server. `domain` is a URL such as `https://jobs.example.com:8443`."""

    def __init__(self, domain: str | None = None) -> None:
        self._domain = urlsplit(domain) if domain else None
        name = self._domain.hostname if self._domain else None
        self._suffixes = (LOOPBACK_DOMAIN, *([name] if name else []))

    @property
    def domains(self) -> tuple[str, ...]:
        """The names under which each port has a host of its own."""
        return self._suffixes

    def url(self, job_id: str, port: int, base_url: str) -> str:
        """Return the URL of a port, without a slash at its end: clients append one."""
        if self._domain is not None:
            return f"{self._domain.scheme}://{job_id}--{port}.{self._domain.netloc}"
        return f"{base_url}{PREFIX}{job_id}--{port}.{WORD}"

    def of_host(self, host: str, target: str) -> PortAddress | None:
        """Return the port that a host (and port of the server) names, if it names one."""
        found = _HOST.fullmatch(host.lower())
        if found is None or not self._is_ours(found[3]) or int(found[2]) > _HIGHEST_PORT:
            return None
        return PortAddress(found[1], int(found[2]), "", "", target)

    def of_target(self, target: str) -> PortAddress | None:
        """Return the port that the path of a request names, if it names one."""
        found = _PATH.fullmatch(target)
        if found is None or int(found[2]) > _HIGHEST_PORT:
            return None
        rest = found[4]
        prefix = target[: len(target) - len(rest)] if rest else target
        return PortAddress(found[1], int(found[2]), prefix, found[3], rest if rest[:1] == "/" else "/" + rest)

    def _is_ours(self, suffix: str) -> bool:
        return suffix in self._suffixes or suffix.endswith("." + LOOPBACK_DOMAIN)
