"""How jobs resolve names: their hosts file and their resolv.conf."""

import os
from functools import lru_cache
from pathlib import Path

_RESOLVERS, _UPSTREAM_RESOLVERS = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
# Replaced for each job, in the text of its files.
_HOST_NAME, _HOST_ADDRESS, _MORE_HOSTS = "@hostname@", "@address@", "@hosts@"


def network_files(private_network: bool) -> list[list[str]]:
    """Return [path, text] of the files by which programs find names.

    For each attempt that starts: this only looks whether the machine's own have changed.
    """
    files = _network_files(private_network, _stamp(_RESOLVERS), _stamp(_UPSTREAM_RESOLVERS))
    return [list(file) for file in files]


@lru_cache(maxsize=4)
def _network_files(private_network: bool, *_stamps: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    hosts += f"{_HOST_ADDRESS if private_network else '127.0.1.1'} {_HOST_NAME}\n{_MORE_HOSTS}"
    return (
        ("/etc/hosts", hosts),
        ("/etc/hostname", f"{_HOST_NAME}\n"),
        ("/etc/resolv.conf", resolver_text(private_network)),
    )


def resolver_text(private_network: bool) -> str:
    """Return a resolv.conf that works for jobs: a resolver on the machine's loopback is out of a network's reach."""
    text = _read(Path(_RESOLVERS))
    if not private_network or any(not _is_loopback(server) for server in nameservers(text)):
        return text
    upstream = _read(Path(_UPSTREAM_RESOLVERS))
    return upstream if nameservers(upstream) else text


def missing_name_service() -> list[str]:
    """Say so when jobs in a network of their own cannot reach any name server of this machine's."""
    servers = nameservers(resolver_text(private_network=True))
    if any(not _is_loopback(server) for server in servers):
        return []
    found = ", ".join(servers) or "none"
    return [f"jobs cannot resolve names: name a server in /etc/resolv.conf that is not on loopback ({found})"]


def nameservers(text: str) -> list[str]:
    """Return the addresses in a resolv.conf."""
    lines = (line.split() for line in text.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _stamp(path: str) -> tuple[int, ...]:
    """Return what is another when a file has changed."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a string)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
