"""The messages of the kernel's file system protocol (7.31 to 7.44), as bytes: no I/O here.

Layouts are those of `linux/fuse.h`. Numbers are native: kernel and daemon share a machine.
"""

import struct

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 17, 18, 20, 21, 22, 23, 24
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BMAP, DESTROY = 31, 32, 33, 34, 35, 36, 37, 38
IOCTL, POLL, NOTIFY_REPLY, BATCH_FORGET, FALLOCATE, READDIRPLUS = 39, 40, 41, 42, 43, 44
RENAME2, LSEEK, COPY_FILE_RANGE, SYNCFS, TMPFILE, STATX = 45, 46, 47, 50, 51, 52

# Of INIT.
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
FLOCK_LOCKS = 1 << 10
POSIX_LOCKS = 1 << 1
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
ABORT_ERROR = 1 << 21
MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39

# Of the answers to OPEN and CREATE.
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NOFLUSH = 1 << 5
FOPEN_PASSTHROUGH = 1 << 7

# Of SETATTR.
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
SET_FH, SET_ATIME_NOW, SET_MTIME_NOW, SET_CTIME = 64, 128, 256, 1024

NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY, NOTIFY_RESEND = 2, 3, 7
RESENT = 1 << 63  # in the unique number of a request that another daemon had taken before

HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, extensions
HEADER_HEAD = struct.Struct("=IIQQ")
ANSWER = struct.Struct("=IiQ")  # length, minus errno, unique
INIT_IN = struct.Struct("=IIII")  # major, minor, readahead, flags; then flags2
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
ATTR = struct.Struct("=6Q10I")
ENTRY_HEAD = struct.Struct("=QQQQII")
ATTR_HEAD = struct.Struct("=QII")
OPEN_IN = struct.Struct("=II")
OPEN_OUT = struct.Struct("=QIi")
CREATE_IN = struct.Struct("=IIII")
MKDIR_IN = struct.Struct("=II")
MKNOD_IN = struct.Struct("=IIII")
RENAME2_IN = struct.Struct("=QII")
SETATTR_IN = struct.Struct("=II6Q8I")
READ_IN = struct.Struct("=QQIIQII")
RELEASE_IN = struct.Struct("=QIIQ")
FSYNC_IN = struct.Struct("=QII")
FALLOCATE_IN = struct.Struct("=QQQII")
FORGET_ONE = struct.Struct("=QQ")
U64 = struct.Struct("=Q")
U32_PAIR = struct.Struct("=II")
STATFS_OUT = struct.Struct("=5Q10I")
DIRENT = struct.Struct("=QQII")
INVAL_ENTRY_OUT = struct.Struct("=QII")
BACKING_MAP = struct.Struct("=iIQ")
LOCK_IN = struct.Struct("=QQQQIIII")  # handle, owner, start, end, type, pid, flags
LOCK_OUT = struct.Struct("=QQII")

BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502

ROOT = 1
MAJOR, OLDEST_MINOR, MINOR = 7, 31, 41
MAX_WRITE = 1 << 20
READ_BYTES = MAX_WRITE + 8192  # what one request may have at most
READAHEAD = 1 << 20

_SECOND = 1_000_000_000


def pack_attr(
    ino: int, size: int, blocks: int, times_ns: tuple[int, int, int], mode: int, links: int, uid: int, gid: int
) -> bytes:
    """Return `struct fuse_attr`; the times are those of access, change of content, change of anything."""
    (read, read_rest), (written, written_rest), (changed, changed_rest) = (divmod(t, _SECOND) for t in times_ns)
    times = (read & _MASK, written & _MASK, changed & _MASK, read_rest, written_rest, changed_rest)
    return ATTR.pack(ino, size, blocks, *times, mode, links, uid, gid, 0, 4096, 0)


_MASK = (1 << 64) - 1


def pack_entry(node: int, attr: bytes, valid_ms: int) -> bytes:
    """Return `struct fuse_entry_out`; node 0 says that there is nothing of that name."""
    seconds, rest = divmod(valid_ms, 1000)
    return ENTRY_HEAD.pack(node, 0, seconds, seconds, rest * 1_000_000, rest * 1_000_000) + attr


NO_ATTR = bytes(ATTR.size)


def pack_attr_answer(attr: bytes, valid_ms: int) -> bytes:
    """Return `struct fuse_attr_out`."""
    seconds, rest = divmod(valid_ms, 1000)
    return ATTR_HEAD.pack(seconds, rest * 1_000_000, 0) + attr


def pack_dirent(ino: int, offset: int, name: bytes, kind: int) -> bytes:
    """Return `struct fuse_dirent`, padded to eight bytes."""
    return DIRENT.pack(ino, offset, len(name), kind) + name + bytes(-len(name) % 8)


def pack_statfs(stat: "tuple[int, int, int, int, int, int, int]") -> bytes:
    """Return `struct fuse_statfs_out` of (blocks, free, available, files, free files, block size, name length)."""
    blocks, free, available, files, files_free, size, name = stat
    return STATFS_OUT.pack(blocks, free, available, files, files_free, size, name, size, 0, 0, 0, 0, 0, 0, 0)


def first_name(body: bytes, start: int = 0) -> bytes:
    """Return the text that ends with a zero byte."""
    return body[start : body.index(0, start)]


def two_names(body: bytes, start: int) -> tuple[bytes, bytes]:
    """Return two texts, each of which ends with a zero byte."""
    first = first_name(body, start)
    return first, first_name(body, start + len(first) + 1)
