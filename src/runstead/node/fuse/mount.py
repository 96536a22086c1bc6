"""One volume as a mounted folder of this node: all its parts, put together.

<attempt>/<index>           where it is mounted
<attempt>/<index>.state/    journal and staged files; what is here when nothing is mounted is in no bucket yet
"""

import os
import threading
from collections.abc import Callable

from runstead.node.fuse import device, protocol
from runstead.node.fuse.cache import Cache
from runstead.node.fuse.carrier import Carrier
from runstead.node.fuse.device import Device
from runstead.node.fuse.files import Files
from runstead.node.fuse.filesystem import FileSystem
from runstead.node.fuse.hub import Hub
from runstead.node.fuse.journal import Journal
from runstead.node.fuse.nodelog import NodeLog
from runstead.node.fuse.refusals import Refusals
from runstead.node.fuse.reserve import Reserve
from runstead.node.fuse.session import Session
from runstead.node.fuse.staging import Staging
from runstead.node.fuse.tree import Tree
from runstead.node.fuse.uploads import Standing, Uploads
from runstead.node.fuse.workers import Workers
from runstead.node.fuse.written import Written

STATE = ".state"
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STACK_BYTES = 1 << 19
_REST_SECONDS = 0.5
_END_SECONDS = 5.0  # for the request that is being served
_WAITERS = 12  # threads per mount that wait for the store


class VolumeMount:
    """A bucket, or a folder of one, at a path of this node."""

    def __init__(
        self,
        path: str,
        hub: Hub,
        cache: Cache,
        carrier: Carrier,
        *,
        read_only: bool,
        owner: int,
        first_node: int = 2,
        passthrough: bool = True,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._passthrough = passthrough
        self._hub = hub
        self._carrier = carrier
        self._workers = Workers("wait", _WAITERS)
        self._lock = threading.RLock()
        state = path + STATE
        os.makedirs(state, 0o700, exist_ok=True)
        self._reserve = Reserve(os.path.join(state, "reserve"))
        self._journal = Journal(os.path.join(state, "journal"), self._reserve)
        staging = Staging(os.path.join(state, "staged"))
        self._staging = staging
        self._log = NodeLog(os.path.join(state, "nodes"))
        self._tree = Tree(self._journal, self._log, first_node, owner=owner, read_only=read_only)
        self._files = Files(
            hub, self._tree, self._journal, staging, cache, self._log, self._lock, self._wake, first_node
        )
        refusals = Refusals(os.path.join(state, "refused"))
        self._system = FileSystem(hub, self._tree, self._journal, staging, self._files, self._lock, refusals)
        self._uploads = Uploads(
            self._tree,
            self._journal,
            staging,
            self._files,
            self._lock,
            self._upload,
            hub.apply,
            Written(os.path.join(state, "written")),
            self._reserve,
            refusals,
            carrier.warm,
        )
        self._device: Device | None = None
        self._gone = threading.Event()
        self._serving: threading.Thread | None = None

    def begin(self, found: Device | None = None) -> Device:
        """Mount and serve, or go on serving a mount that another daemon served before. Raises OSError."""
        taken_over = found is not None
        if found is None:
            if not self.read_only:
                self._reserve.take()
            os.makedirs(self.path, 0o755, exist_ok=True)
            found = Device.mount(self.path, read_only=self.read_only, source="runstead", passthrough=self._passthrough)
            device.read_ahead(self.path)
        self._device = found
        if taken_over:
            self._files.attach(found)
            self._restore()
        self._log.snapshot = lambda: [*self._tree.records(), *self._files.records()]
        self._log.start()
        self._sweep()
        if taken_over:
            found.notify(protocol.NOTIFY_RESEND)  # what the other daemon had taken and not answered
        operations = self._system.operations(read_only=self.read_only)
        session = Session(
            found, operations, self._system.quick(), self._files.upcoming, self._workers.submit, self._files.attach
        )
        self._serving = _thread("mount", lambda: self._serve(session))
        _thread("events", lambda: self._hub.follow(self._changed, self._live, self._gone.is_set))
        if not self.read_only:
            self._uploads.start(_REST_SECONDS if taken_over else 0.0)
        return found

    def _restore(self) -> None:
        """Know what the kernel knows from the daemon before this one."""
        handles: dict[int, tuple[Any, ...]] = {}
        for record in self._log.read():
            if record[0] == "h":
                handles[record[1]] = record
            elif record[0] == "r":
                handles.pop(record[1], None)
            else:
                self._tree.restore(record)
        self._tree.reconcile()
        self._files.restore(list(handles.values()))

    def _sweep(self) -> None:
        """Remove staged files that nobody has, and let go of what nobody writes any more."""
        wanted = {i.stage for i in self._journal.intents.values() if i.stage is not None}
        wanted |= {node.stage for node in self._tree.nodes.values() if node.stage is not None}
        self._staging.sweep(wanted)
        writing = {node.stage for node in self._tree.nodes.values() if node.writers}
        for intent in list(self._journal.intents.values()):
            if intent.open and intent.stage is not None and intent.stage not in writing:
                self._journal.stage(intent.path, intent.stage, is_open=False)

    def is_alive(self) -> bool:
        """Whether the mount is served."""
        return not self._gone.is_set() and device.is_mounted(self.path)

    def recover(self) -> None:
        """Carry into the bucket what was left, with nothing mounted."""
        self._uploads.close_all()
        self._uploads.start()

    def renew(self, token: str) -> None:
        """Use another token from now on."""
        self._hub.renew(token)
        self._uploads.wake()

    def flush(self, until: float) -> Standing:
        """Return when everything that was closed is in the bucket, or at that instant of the monotonic clock."""
        return self._uploads.settle(until)

    def standing(self) -> Standing:
        """Say how far the uploads are."""
        return self._uploads.standing()

    def end(self) -> None:
        """Take the mount away. What is in no bucket yet stays in the state directory."""
        self._gone.set()
        device.abort(self.path)
        self._uploads.stop()
        if self._serving is not None:
            self._serving.join(_END_SECONDS)
            if not self._serving.is_alive():
                self._files.end()
        if self._device is not None:
            fd, self._device.fd = self._device.fd, -1
            os.close(fd)
            self._device = None
        self._journal.close()
        self._log.close()

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        finally:
            self._gone.set()

    def _wake(self) -> None:
        self._uploads.wake()

    def _upload(self, paths: list[str]) -> "list[tuple[bytes, int]]":
        return self._carrier.upload(self._hub.upload_token(), paths)

    def _changed(self, path: str | None, file_hash: bytes | None) -> None:
        with self._lock:
            self._tree.changed(path, file_hash)

    def _live(self, listening: bool) -> None:
        with self._lock:
            self._tree.live = listening


def _thread(name: str, run: Callable[[], None]) -> threading.Thread:
    threading.stack_size(_STACK_BYTES)
    started = threading.Thread(target=run, name=name, daemon=True)
    started.start()
    return started
