"""A container made before there is a job for it: its root directory, disk and network are there, and nothing runs.

Made and held by a supervisor at the wish of a server, which stays connected to it. The same connection then brings the
request of a job that fits; that a job needs a volume, a device or anything else that must be there before the root is
made is for the server to see. Its end, also by the server's death, is the end of the container.

    <data_dir>/node/ahead/<process id>/     where the job's own files will go from; moved into its attempt
"""

import os
import select
import socket

from runstead.node import framing, places, processes, removal
from runstead.node.disks import Disk
from runstead.node.request import NO_NETWORK, Request
from runstead.node.seed import Seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = "ahead"


class NotMade(Exception):
    """The container cannot be made."""


class Site:
    """What a root directory is made on: the ids of the job's users, its network, its disk, and where these are open."""

    def __init__(self, request: Request, data_dir: str, seed: Seed) -> None:
        """Raises OSError."""
        private = request.isolation == "root" and (request.container is None or request.container.private_ids)
        self.owner = places.first_id(data_dir, request.namespace) if private else None
        self.shared = places.prepare_shared(data_dir, request.namespace, self.owner)
        self.disk: Disk | None = None
        self.fds: dict[str, int] = {}
        if self.owner is not None and seed.users is not None:
            seed.users.map(self.owner, places.IDS)
            self.fds["users"] = seed.users.take()
        if request.network is not None and request.network != NO_NETWORK:
            self.fds["network"] = os.open(request.network, os.O_RDONLY | os.O_CLOEXEC)
        if request.container is not None and request.container.disk is not None:
            self.disk = Disk(request.container.disk)
            self.fds["disk"] = self.disk.fd

    def close_handed(self) -> None:
        """Let go of what process 1 has by now; the disk is held on to."""
        for name, fd in self.fds.items():
            if name != "disk":
                os.close(fd)
        self.fds = {}


class Ahead:
    """A container that is made, or about to be, behind process 1 of a job to come."""

    def __init__(self, request: Request, data_dir: str, seed: Seed) -> None:
        """Have it made. Raises NotMade, OSError."""
        node = os.path.join(data_dir, "node")
        self.folder = os.path.join(node, FOLDER, str(os.getpid()))
        removal.delete_tree(self.folder)
        self.site = Site(request, data_dir, seed)
        seed.ahead = self
        order = first_order(request, self.site, self.folder, node, seed)
        seed.order(order, list(self.site.fds.values()), last=False)
        self.site.close_handed()
        answer = seed.talk.recv(65536)
        if answer != b"P":
            raise NotMade(answer[1:].decode("utf-8", "replace") or "its first process died")

    def discard(self) -> None:
        """Give back what it holds; process 1 is gone."""
        if self.site.disk is not None:
            self.site.disk.discard()
        removal.delete_tree(self.folder)


def first_order(request: Request, site: Site, folder: str, node: str, seed: Seed) -> "dict[str, Any]":
    """Return what process 1 has to know to make the root directory: nothing of that is secret."""
    return {
        "request": {**request.to_message(), "environment": None},
        "environment": {},
        "folder": folder,
        "mount_point": os.path.join(node, "root"),
        "shared": site.shared,
        "empty": os.path.join(node, "empty"),
        "owner": site.owner,
        "groups": seed.group.paths,
        "handed": list(site.fds),
    }


def await_request(connection: socket.socket, seed: Seed) -> "dict[str, Any] | None":
    """Return the request of a job that gets the container; None when there will be none."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(seed.talk, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != connection.fileno():  # process 1 is dead
                return None
            return framing.receive(connection)


def sweep(node: str) -> None:
    """Delete the folders of containers whose supervisors were killed."""
    folder = os.path.join(node, FOLDER)
    os.makedirs(folder, 0o700, exist_ok=True)
    for name in os.listdir(folder):
        if not (name.isdigit() and processes.is_ours(int(name))):
            removal.delete_tree(os.path.join(folder, name))
