"""The names and nodes of one mount: what the store lists, with what is intended laid over it. No I/O.

A node is what the kernel knows by number. A file's node stands for one version: when another writer replaces the
file, its name gets a new node, as if by a rename, and who has the old one open keeps it. Whoever calls has the
mount's lock.
"""

import errno
import math
import stat
import time

from runstead.node.fuse.hidden import Hidden
from runstead.node.fuse.journal import Intent, Journal
from runstead.node.fuse.nodelog import NodeLog
from runstead.node.fuse.source import EMPTY, Content

FOLDER_MODE, FILE_MODE = 0o777, 0o666
READ_ONLY_FOLDER_MODE, READ_ONLY_FILE_MODE = 0o555, 0o444
_SECONDS_UNSEEN = 1.0  # how long a listing holds when nobody tells of changes
_SECONDS_LIVE = 60.0
_SECONDS_WITHOUT = 3.0  # how long an old one is used before a store that fails is asked again
_MOST_LISTED = 200_000
_MOST_MARKED = 50_000  # of half a kilobyte each
_NEVER_FORGOTTEN = 1 << 60  # of nodes of another daemon: how often the kernel knows them is not known
_MILLISECOND = 1_000_000  # what the store keeps of a time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runstead.node.fuse.backing import Backing


class Node:
    """A file or a folder."""

    __slots__ = (
        "atime_ns",
        "backing",
        "changed_ns",
        "children",
        "content",
        "epoch",
        "gid",
        "id",
        "is_folder",
        "kept",
        "known",
        "listed_at",
        "listing",
        "lookups",
        "made_by",
        "marked",
        "mode",
        "mtime_ns",
        "name",
        "orphan",
        "parent",
        "stage",
        "stale",
        "uid",
        "writers",
    )

    def __init__(
        self, number: int, parent: "Node | None", name: str, *, is_folder: bool, mode: int, uid: int, gid: int
    ) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        self.is_folder = is_folder
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.made_by = 0  # the number of the request that made it
        self.marked = False  # mode or owner were set, and are remembered for as long as that is possible
        self.atime_ns: int | None = None  # if it was set
        self.mtime_ns = self.changed_ns = time.time_ns()
        self.lookups = 0  # how often the kernel was told of it and has not forgotten
        self.orphan = False  # has no name any more
        # Of files.
        self.content: Content | None = None  # what it has, unless it is staged
        self.stage: str | None = None  # name of its staged file
        self.backing: Backing | None = None  # while it is open
        self.writers = 0
        # Of folders.
        self.children: dict[str, Node] = {}
        self.listing: dict[str, Content | None] = {}
        self.listed_at = 0.0  # when the store was asked for the listing
        self.known = False  # it has a listing, be it an old one
        self.stale = False  # others have changed something since
        self.epoch = 0  # grows with every change of others
        self.kept = False  # made here: it is there even if it is empty


class Listing:
    """A listing that is on its way: what the bucket is told meanwhile, the list may have or lack."""

    __slots__ = ("asked_at", "epoch", "folder", "path", "told")

    def __init__(self, folder: Node, path: str, told: "dict[str, Content | None]") -> None:
        self.folder = folder
        self.path = path
        self.epoch = folder.epoch
        self.asked_at = time.monotonic()
        self.told = told

    def merge(self, found: "dict[str, Content | None]") -> "set[str]":
        """Lay what the bucket was told over what it listed; return the names below which files were removed."""
        emptied: set[str] = set()
        prefix = self.path + "/" if self.path else ""
        for path, content in self.told.items():
            if not path.startswith(prefix):
                continue
            name, _, rest = path[len(prefix) :].partition("/")
            if content is not None:
                found[name] = None if rest else content
            elif rest:
                emptied.add(name)
            elif found.get(name) is not None:
                del found[name]
        return emptied


class Tree:
    """All nodes."""

    def __init__(self, journal: Journal, log: NodeLog, first_node: int, *, owner: int, read_only: bool) -> None:
        self._journal = journal
        self.log = log
        self._folder_mode = READ_ONLY_FOLDER_MODE if read_only else FOLDER_MODE
        self._file_mode = READ_ONLY_FILE_MODE if read_only else FILE_MODE
        self._next = first_node
        self._owner = owner
        self._marked = 0
        self.root = Node(1, None, "", is_folder=True, mode=self._folder_mode, uid=owner, gid=owner)
        self.root.kept = True
        self.root.lookups = 1
        self.nodes: dict[int, Node] = {1: self.root}
        self.live = False  # somebody tells of changes
        self._listed = 0
        self.moving: tuple[str, str] | None = None  # a folder that is being moved, and where to
        self._watches: list[dict[str, Content | None]] = []
        self._hidden = Hidden()  # folders removed here that the store may still list

    def get(self, number: int) -> Node:
        """Return a node. Raises ESTALE when there is none."""
        node = self.nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "no such node")
        return node

    def folder(self, number: int) -> Node:
        """Return a folder."""
        node = self.get(number)
        if not node.is_folder:
            raise OSError(errno.ENOTDIR, "not a folder")
        return node

    def path(self, node: Node) -> str:
        """Return the path of a node below the mount's root."""
        names: list[str] = []
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return "/".join(reversed(names))

    def at(self, path: str) -> Node | None:
        """Return the node that has this path, should there be one."""
        folder, name = self._known_folder(path)
        return folder.children.get(name) if folder is not None else None

    def has(self, path: str, content: Content) -> bool:
        """Whether the store surely has these bytes at the path."""
        folder, name = self._known_folder(path)
        if folder is None or not self.live or not self.is_fresh(folder):
            return False
        there = folder.listing.get(name)
        return there is not None and there.file_hash == content.file_hash

    def child_path(self, folder: Node, name: str) -> str:
        """Return the path of a name in a folder."""
        path = self.path(folder)
        return f"{path}/{name}" if path else name

    # Listings

    def is_fresh(self, folder: Node, since: float = math.inf) -> bool:
        """Whether the folder's listing may be used by who asks since an instant of the monotonic clock.

        A listing that was asked for later is good enough for him, however much others change meanwhile.
        """
        if folder.orphan:
            return True
        if not folder.known:
            return False
        age = time.monotonic() - folder.listed_at
        return folder.listed_at >= since or (
            not folder.stale and age < (_SECONDS_LIVE if self.live else _SECONDS_UNSEEN)
        )

    def begin_listing(self, folder: Node) -> Listing:
        """The store is about to be asked for a folder; `set_listing` and `end_listing` follow."""
        return Listing(folder, self.path(folder), self.watch())

    def end_listing(self, listing: Listing) -> None:
        """It was taken, or there is none."""
        self.unwatch(listing.told)

    def set_listing(self, begun: Listing, found: "dict[str, Content | None]") -> None:
        """Take what the store has listed, unless the folder was given another listing, or another name, meanwhile."""
        folder = begun.folder
        if folder.orphan or (folder.known and folder.listed_at > begun.asked_at):
            return
        emptied = begun.merge(found)
        self._listed += len(found) - len(folder.listing)
        folder.listing = found
        folder.known = True
        folder.listed_at = begun.asked_at
        folder.stale = folder.epoch != begun.epoch
        for name in self._hidden.inside(begun.path):
            path = f"{begun.path}/{name}" if begun.path else name
            # While anything below is intended, what is listed is what was removed here, or is still on its way.
            if not self._journal.intends_below(path) and not (name in emptied and found.get(name, _FILE) is None):
                self._show(path)
        if self._listed > _MOST_LISTED:
            self._drop_listings(folder)

    def _drop_listings(self, but: Node) -> None:
        """Forget the listings of folders, those first that were fetched first."""
        folders = sorted((n for n in self.nodes.values() if n.listing and n is not but), key=lambda n: n.listed_at)
        for folder in folders:
            if self._listed <= _MOST_LISTED // 2:
                return
            self._listed -= len(folder.listing)
            folder.listing, folder.known = {}, False

    def make_do(self, folder: Node) -> bool:
        """The store cannot be asked: use the listing there is for a while; False if there is none."""
        if folder.known:
            life = _SECONDS_LIVE if self.live else _SECONDS_UNSEEN
            folder.listed_at = time.monotonic() - life + _SECONDS_WITHOUT
            folder.stale = False
        return folder.known

    def changed(self, path: str | None, file_hash: bytes | None) -> None:
        """The store has this at the path now, nothing for None; without a path, anything may have changed."""
        if path is None:
            for node in self.nodes.values():
                _age(node)
            return
        intent = self._journal.get(path)
        if intent is not None and file_hash in intent.sent:
            return  # what we are about to hear ourselves, or have replaced by now
        folder, name = self._known_folder(path)
        if folder is not None:
            there = folder.listing.get(name)
            if (there.file_hash if there is not None else None) == file_hash:
                return  # it is what we have put there ourselves
        way = ""
        for above, part in zip(self._folders_along(path), path.split("/"), strict=False):
            way = f"{way}/{part}" if way else part
            # A file that comes to a folder changes nothing in those that list and show the folder already.
            is_shown = above.listing.get(part, _FILE) is None and way not in self._hidden
            if above is folder or file_hash is None or not is_shown:
                _age(above)

    def watch(self) -> "dict[str, Content | None]":
        """Return what is filled with all that the bucket is told from now on, until `unwatch`."""
        watch: dict[str, Content | None] = {}
        self._watches.append(watch)
        return watch

    def unwatch(self, watch: "dict[str, Content | None]") -> None:
        """Fill it no more."""
        self._watches = [other for other in self._watches if other is not watch]

    def settled(self, path: str, content: Content | None) -> None:
        """The bucket has at this path what was intended."""
        for watch in self._watches:
            watch[path] = content
        intent = self._journal.get(path)
        if content is not None and self._hidden and intent is not None and not intent.is_absence:
            for folder in folders_of(path):
                self._show(folder)
        if content is not None:
            for folder in self._folders_along(path):
                if folder.known:
                    self._note(folder, path, content)
            return
        # A folder that is empty by now was touched here, and stays; or it was removed here, and is hidden.
        folder, name = self._known_folder(path)
        if folder is not None and folder.listing.get(name) is not None:
            del folder.listing[name]
            self._listed -= 1

    def _note(self, folder: Node, path: str, content: Content) -> None:
        own = self.path(folder)
        name, _, rest = path[len(own) + 1 if own else 0 :].partition("/")
        if name not in folder.listing:
            self._listed += 1
            folder.listing[name] = None if rest else content
        elif not rest:
            folder.listing[name] = content

    def _folders_along(self, path: str) -> "list[Node]":
        found = [self.root]
        for part in path.split("/")[:-1]:
            folder = found[-1].children.get(part)
            if folder is None or not folder.is_folder:
                break
            found.append(folder)
        return found

    def _known_folder(self, path: str) -> "tuple[Node | None, str]":
        depth, name = path.count("/"), path.rpartition("/")[2]
        found = self._folders_along(path)
        return (found[-1] if len(found) == depth + 1 else None), name

    # Names

    def find_here(self, folder: Node, name: str) -> Node | None:
        """Return what a name stands for if that can be said without the store."""
        node = folder.children.get(name)
        if node is not None and (node.kept if node.is_folder else node.stage is not None):
            return node
        intent = self._journal.folder(self.path(folder)).get(name) if self._journal.intents else None
        if intent is None or intent.is_absence:
            if not self._journal.intents or not self._journal.makes_folder(self.child_path(folder, name)):
                return None
            if node is None or not node.is_folder:
                node = self._replace(folder, name, node, is_folder=True)
            return node
        if node is None or node.is_folder or node.stage != intent.stage or not _are_same(node.content, intent.content):
            node = self._replace(folder, name, node)
        if node.content != intent.content or node.stage != intent.stage:
            self._fill(node, intent)
        return node

    def find(self, folder: Node, name: str) -> Node | None:
        """Return what a name stands for; the folder's listing is fresh."""
        node = self.find_here(folder, name)
        if node is not None:
            return node
        node = folder.children.get(name)
        if name not in folder.listing:
            if node is not None:
                self.detach(node)
            return None
        content = folder.listing[name]
        if content is None:
            if self.child_path(folder, name) in self._hidden:
                return None
            if node is None or not node.is_folder:
                node = self._replace(folder, name, node, is_folder=True)
            return node
        if self._journal.intents and name in self._journal.folder(self.path(folder)):
            return None  # removed here
        known = node.content if node is not None else None
        if node is not None and known is not None and known.file_hash == content.file_hash:
            if known.mtime_ns // _MILLISECOND != content.mtime_ns // _MILLISECOND:
                node.content, node.mtime_ns = content, content.mtime_ns
            return node
        node = self._replace(folder, name, node)
        node.content, node.mtime_ns, node.changed_ns = content, content.mtime_ns, content.mtime_ns
        return node

    def names(self, folder: Node) -> "dict[str, bool]":
        """Return all names of a folder, and whether each is a folder; its listing is fresh."""
        path = self.path(folder)
        found = {name: content is None for name, content in folder.listing.items()}
        if self._hidden or self._journal.intents:
            # A folder that was removed here may still be listed, until the store has been told.
            prefix = path + "/" if path else ""
            for name in [n for n, is_folder in found.items() if is_folder and prefix + n in self._hidden]:
                del found[name]
            found.update(dict.fromkeys(self._journal.subfolders(path), True))
        for name, intent in self._journal.folder(path).items():
            if not intent.is_absence:
                found[name] = False
            elif not found.get(name, True):
                del found[name]
        for name, node in folder.children.items():
            if node.is_folder and node.kept:
                found[name] = True
        return found

    def add(self, folder: Node, name: str, *, is_folder: bool, mode: int, uid: int, gid: int) -> Node:
        """Make a node for a name that stands for nothing. A folder may hand its group on, as everywhere."""
        node = self._replace(folder, name, folder.children.get(name), is_folder=is_folder)
        if folder.mode & stat.S_ISGID:
            gid = folder.gid
            mode |= stat.S_ISGID if is_folder else 0
        node.mode, node.uid, node.gid = mode, uid, gid
        if uid != self._owner or gid != self._owner or (not is_folder and mode & 0o111):
            self.mark(node)
        if is_folder:
            node.kept = node.known = True
            node.listed_at = time.monotonic()
            self._show_all(self.path(node))
        self.touch(folder)
        return node

    def mark(self, node: Node) -> None:
        """Mode or owner of a node were set."""
        if not node.marked and self._marked < _MOST_MARKED:
            node.marked = True
            self._marked += 1
        self.log.write("p", node.id, node.mode, node.uid, node.gid, node.marked)

    def renew(self, node: Node) -> Node:
        """Give the name of a file that stays with those who have it open to a new node for the same content."""
        assert node.parent is not None
        content, marked = node.content, node.marked
        fresh = self._replace(node.parent, node.name, node)
        fresh.content, fresh.mtime_ns, fresh.changed_ns = content, node.mtime_ns, node.changed_ns
        fresh.mode, fresh.uid, fresh.gid = node.mode, node.uid, node.gid
        if marked:
            self.mark(fresh)
        return fresh

    def touch(self, folder: Node) -> None:
        """A name was added to or removed from a folder here: it stays, with those it is in, even if empty."""
        folder.mtime_ns = folder.changed_ns = time.time_ns()
        above: Node | None = folder
        while above is not None:
            if not above.kept:
                above.kept = True
                self.log.write("k", above.id)
            above = above.parent

    def detach(self, node: Node) -> None:
        """Take a node's name from it; who has it open keeps it."""
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        node.orphan = True
        node.kept = False
        self._unmark(node)
        node.changed_ns = time.time_ns()
        self.log.write("x", node.id)
        self.drop_unused(node)

    def _unmark(self, node: Node) -> None:
        self._marked -= node.marked
        node.marked = False

    def hide(self, path: str) -> None:
        """A folder was removed or renamed here, and the store does not know yet."""
        self._hidden.add(path)
        self.log.write("y", path)

    def _show(self, path: str) -> None:
        if self._hidden.discard(path):
            self.log.write("z", path)

    def _show_all(self, path: str) -> None:
        """A folder is there, with those in it that are known or will have files."""
        self._show(path)
        for hidden in self._hidden.below(path) if self._hidden else ():
            there = self.at(hidden)
            if self._journal.makes_folder(hidden) or (there is not None and there.is_folder):
                self._show(hidden)

    def begin_move(self, old: str, new: str) -> None:
        """What is in a folder is about to be moved, one path after the other."""
        self.moving = old, new
        self.log.write("b", old, new)

    def move(self, node: Node, folder: Node, name: str) -> None:
        """Give a node another name; whatever had that is gone already."""
        if node.parent is not None:
            del node.parent.children[node.name]
        node.parent, node.name = folder, name
        folder.children[name] = node
        self.moving = None
        node.changed_ns = time.time_ns()
        self.log.write("m", node.id, folder.id, name)
        if node.is_folder:
            node.kept = True
            self.log.write("k", node.id)
            self._show_all(self.path(node))
            self._moved(node)

    def _moved(self, node: Node) -> None:
        """A folder has another path: all that it has is intended, and the store has nothing there."""
        self._listed -= len(node.listing)
        node.listing, node.listed_at, node.known, node.stale = {}, time.monotonic(), True, False
        for child in node.children.values():
            if child.is_folder:
                child.kept = True
                self.log.write("k", child.id)
                self._moved(child)

    def listed_below(self, folder: Node) -> "dict[str, Content] | None":
        """Return every file that the store has below a folder, None if that cannot be said without the store."""
        found: dict[str, Content] = {}
        waiting = [(folder, self.path(folder))]
        for above, path in waiting:
            if not self.is_fresh(above):
                return None
            for name, content in above.listing.items():
                full = f"{path}/{name}"
                if content is not None:
                    found[full] = content
                elif full not in self._hidden:
                    child = above.children.get(name)
                    if child is None or not child.is_folder:
                        return None
                    waiting.append((child, full))
        return found

    def tell(self, node: Node) -> None:
        """The kernel is told of a node."""
        node.lookups += 1
        if node.lookups == 1:
            self.log.write(*self._record(node))

    @staticmethod
    def _record(node: Node) -> "tuple[object, ...]":
        parent = node.parent.id if node.parent is not None else 0
        content = None if node.content is None else tuple(node.content)
        flags = node.is_folder, node.kept, node.orphan, node.marked
        owner = node.uid, node.gid
        return "n", node.id, parent, node.name, content, node.stage, flags, node.mode, owner, node.made_by

    def records(self) -> "list[tuple[object, ...]]":
        """Return all that the next daemon must know of nodes, parents first."""
        found: list[tuple[object, ...]] = [("y", path) for path in self._hidden]
        found += [("b", *self.moving)] if self.moving is not None else []
        waiting = [self.root]
        for folder in waiting:
            found += [self._record(node) for node in folder.children.values()]
            waiting += [node for node in folder.children.values() if node.is_folder]
        return found + [self._record(node) for node in self.nodes.values() if node.orphan]

    def restore(self, record: "tuple[Any, ...]") -> None:
        """Know what the daemon before this one has written of a node."""
        kind, number = record[0], record[1]
        if kind == "n":
            _, _, parent, name, content, stage, flags, mode, (uid, gid), made_by = record
            is_folder, kept, orphan, marked = flags
            above, before = self.nodes.get(parent, self.root), self.nodes.get(number)
            if before is not None:
                self._unname(before)
            node = Node(number, above, name, is_folder=is_folder, mode=mode, uid=uid, gid=gid)
            if before is not None:  # the kernel had forgotten it, and asked again
                node.children = before.children
                for child in node.children.values():
                    child.parent = node
            node.stage, node.kept, node.orphan, node.marked, node.made_by = stage, kept, orphan, marked, made_by
            node.content = None if content is None else Content(*content)
            if node.content is not None:
                node.mtime_ns = node.content.mtime_ns
            node.lookups = _NEVER_FORGOTTEN
            self.nodes[number] = node
            self._rename(node, node.parent, name)
            return
        if kind == "y":
            self._hidden.add(number)
        elif kind == "z":
            self._hidden.discard(number)
        elif kind == "b":
            self.moving = record[1], record[2]
        found = self.nodes.get(number)
        if found is None:
            return
        if kind == "m":
            self.moving = None
            self._rename(found, self.nodes.get(record[2], self.root), record[3])
        elif kind == "x":
            found.orphan, found.kept = True, False
            self._unname(found)
        elif kind == "k":
            found.kept = True
        elif kind == "p":
            _, _, found.mode, found.uid, found.gid, found.marked = record
        elif kind == "s":
            found.stage, found.content = record[2], None
        elif kind == "u":
            found.stage, found.content = None, Content(*record[2])
        elif kind == "f":
            self._unname(found)
            del self.nodes[number]

    def reconcile(self) -> None:
        """Believe the journal, where the daemon before this one died between two words."""
        self._marked = sum(node.marked for node in self.nodes.values())
        for node in list(self.nodes.values()):
            if node.stage is None or node.orphan:
                continue
            path = self._journal.needs(node.stage)
            if path == self.path(node):
                continue
            folder, name = (None, "") if path is None else self._known_folder(path)
            if folder is None:
                node.orphan = True
                self._unname(node)
            else:
                self._rename(node, folder, name)

    def _rename(self, node: Node, parent: Node | None, name: str) -> None:
        self._unname(node)
        node.parent, node.name = parent, name
        if parent is not None and not node.orphan:
            parent.children[name] = node

    @staticmethod
    def _unname(node: Node) -> None:
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]

    def forget(self, number: int, times: int) -> None:
        """The kernel has forgotten a node so many times."""
        node = self.nodes.get(number)
        if node is not None:
            node.lookups -= times
            self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """Forget a node that neither the kernel nor anything here needs, and then perhaps its parent."""
        while (
            node.parent is not None
            and node.lookups <= 0
            and not node.kept
            and not node.marked
            and not node.children
            and node.backing is None
            and self.nodes.pop(node.id, None) is not None
        ):
            self._listed -= len(node.listing)
            self.log.write("f", node.id)
            parent = node.parent
            if parent.children.get(node.name) is node:
                del parent.children[node.name]
            node = parent

    def _replace(self, folder: Node, name: str, before: Node | None, *, is_folder: bool = False) -> Node:
        if before is not None:
            self.detach(before)
        mode = self._folder_mode if is_folder else self._file_mode
        node = Node(self._next, folder, name, is_folder=is_folder, mode=mode, uid=self._owner, gid=self._owner)
        self._next += 1
        self.nodes[node.id] = node
        folder.children[name] = node
        return node

    @staticmethod
    def _fill(node: Node, intent: Intent) -> None:
        node.stage, node.content = intent.stage, intent.content
        if intent.content is not None:
            node.mtime_ns = intent.content.mtime_ns


_FILE = Content(EMPTY, 0, 0)


def _age(folder: Node) -> None:
    folder.stale = True
    folder.epoch += 1


def _are_same(one: Content | None, other: Content | None) -> bool:
    """Whether it is one version of a file; a time that was set is no other version."""
    return one is other or (one is not None and other is not None and one.file_hash == other.file_hash)


def folders_of(path: str) -> "list[str]":
    """Return the folders that a path is in, the innermost first."""
    found: list[str] = []
    while path := path.rpartition("/")[0]:
        found.append(path)
    return found


def empty_content(mtime_ns: int) -> Content:
    """Return what an empty file has."""
    return Content(EMPTY, 0, mtime_ns)
