"""Jobs that look for a way out: to the machine's files, to the server, to other jobs, to the kernel."""

import json
import os
import secrets
import socket
from pathlib import Path

import pytest

from hostile.conftest import Prison
from runstead.model.errors import BackendFailure, Invalid
from runstead.model.launches import AttemptState, ExitReason
from runstead.model.volumes import Mount
from runstead.node import places

# Prints for each attempt what came of it: "no", or what was got.
_TRY = """
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        got = act()
    except (OSError, ValueError) as error:
        got = None
    print(json.dumps([name, None if got in (None, -1, b"", []) else str(got)[:200]]), flush=True)
def read(path):
    with open(path, "rb") as file: return file.read(100)
"""


# What gVisor lets a job do to the kernel that is the job's alone.
_OF_A_KERNEL_OF_ITS_OWN = {"/proc/sys/kernel/hostname w", "nice", "score"}


async def _attempts(prison: Prison, program: str, *arguments: str, **changes: object) -> dict[str, str | None]:
    record, lines = await prison.python(_TRY + program, *arguments, **changes)
    assert record.exit_code == 0, lines
    return dict(json.loads(line) for line in lines)


async def test_no_file_of_the_server_can_be_read(prison: Prison) -> None:
    mark = secrets.token_hex(16)
    (prison.data_dir / "runstead.db").write_text("precious")
    (prison.data_dir / "secret.key").write_text(mark)
    other = prison.launch("sh", "-c", f"echo {mark}; echo {mark} > /tmp/{mark}; sleep 60", namespace="bob")
    await prison.start(other)
    await prison.line(other, mark)
    program = """
for path in sys.argv[1:]:
    for way in ("", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../..", "/proc/thread-self/root/.."):
        attempt(way + path, lambda: read(way + path))
        attempt(way + path + "/", lambda: os.listdir(way + path))
attempt("search", lambda: [p for r, d, f in os.walk("/") for p in f if p in ("runstead.db", "secret.key")
                           and not r.startswith("/proc")])
"""
    files = [prison.data_dir / name for name in ("runstead.db", "secret.key", "node", "node/attempts", "images", ".")]
    found = await _attempts(prison, program, *map(str, [*files, other.log_path, prison.folder]))
    assert {name: got for name, got in found.items() if got is not None} == {}


async def test_what_is_the_machines_own_is_closed(prison: Prison) -> None:
    program = """
for path in ("/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/loop-control",
             "/dev/fuse", "/dev/loop0", "/sys/kernel/security/lsm", "/sys/firmware/dmi/tables/DMI", "/proc/1/environ",
             "/proc/1/mem", "/sys/kernel/debug/sched", "/proc/keys", "/proc/1/maps"):
    attempt(path, lambda: read(path))
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches",
             "/proc/sys/kernel/hostname", "/sys/kernel/uevent_helper", "/sys/power/state",
             "/proc/1/oom_score_adj", "/proc/sys/kernel/modprobe"):
    attempt(path + " w", lambda: os.open(path, os.O_WRONLY))
attempt("fds of process 1", lambda: os.listdir("/proc/1/fd"))
attempt("score", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1000"))
attempt("reboot", lambda: libc.reboot(0x1234567))
attempt("clock", lambda: libc.settimeofday(b"\\0" * 16, None))
attempt("module", lambda: libc.syscall(175, b"", 0, b""))
attempt("kexec", lambda: libc.syscall(246, 0, 0, 0, 0))
attempt("swap", lambda: libc.swapon(b"/tmp", 0))
attempt("nice", lambda: libc.nice(-5))
attempt("mknod", lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(254, 0)) or read("/tmp/disk"))
attempt("handle", lambda: libc.open_by_handle_at(0, b"\\0" * 64, 0))
attempt("bpf", lambda: libc.syscall(321, 0, b"\\0" * 128, 128))
attempt("perf", lambda: libc.syscall(298, b"\\1" + b"\\0" * 127, -1, 0, -1, 0))
"""
    found = await _attempts(prison, program)
    own = set()
    if not prison.first_is_ours:
        own = {"/proc/1/environ", "/proc/1/maps", "/proc/1/oom_score_adj w", "fds of process 1"}
    if prison.own_kernel:
        own |= _OF_A_KERNEL_OF_ITS_OWN
    assert {name: value for name, value in found.items() if value is not None and name not in own} == {}


async def test_mounting_changes_nothing_for_others(prison: Prison) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    program = """
import subprocess
attempt("mount", lambda: libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None))
attempt("remount", lambda: libc.mount(None, b"/proc/sys", None, 0x1000 | 0x20, None))
attempt("bind", lambda: libc.mount(b"/", b"/mnt", None, 0x1000, None))
attempt("umount", lambda: libc.umount2(b"/proc/sys", 2))
attempt("pivot", lambda: libc.syscall(155, b".", b"."))
attempt("chroot", lambda: os.chroot("/usr"))
attempt("machine", lambda: read("/../../../../proc/sys/kernel/random/boot_id") if os.path.exists("/proc") else None)
attempt("ns", lambda: [libc.setns(os.open(f"/proc/{p}/ns/{n}", 0), 0) for p in (1,) for n in ("mnt", "pid", "net")
                       if os.path.exists(f"/proc/{p}/ns/{n}")].count(0) or None)
"""
    found = await _attempts(prison, program)
    for name in ("mount", "remount", "bind", "umount", "pivot", "ns"):
        assert found[name] is None, name
    ours = {line for line in before.splitlines() if str(prison.folder) in line}
    after = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(prison.folder) in line}
    assert after == ours


async def test_a_namespace_within_gives_no_more_rights(prison: Prison) -> None:
    program = """
def inside():
    if libc.unshare(0x10000000 | 0x20000) != 0: return None
    got = []
    if libc.mount(b"proc", b"/proc", b"proc", 0, None) == 0 and os.path.exists("/proc/1/root/etc/shadow"):
        got.append("proc")
    if libc.mount(None, b"/usr", None, 0x1000 | 0x20, None) == 0 and os.access("/usr", os.W_OK) and trying("/usr/x"):
        got.append("usr")
    if libc.mount(b"/dev/vda", b"/mnt", b"ext4", 0, None) == 0: got.append("disk")
    return got
def trying(path):
    try:
        open(path, "w").close()
        return True
    except OSError:
        return False
attempt("inside", inside)
"""
    assert (await _attempts(prison, program))["inside"] is None
    assert not Path("/usr/x").exists()


async def test_processes_of_others_are_out_of_reach(prison: Prison) -> None:
    mark = secrets.token_hex(16)
    victim = prison.launch("sh", "-c", "echo ready; exec sleep 60", environment={"MARK": mark})  # of the same owner
    handle = await prison.start(victim)
    await prison.line(victim, "ready")
    outside = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if _has(path, mark)]
    assert outside or prison.own_kernel  # whose processes this machine does not see
    program = """
mine = {os.getpid(), 1}
attempt("others", lambda: [p for p in os.listdir("/proc") if p.isdigit() and int(p) not in mine])
for pid in map(int, sys.argv[1:]):
    attempt(f"attach {pid}", lambda: libc.ptrace(16, pid, 0, 0))
    attempt(f"seize {pid}", lambda: libc.ptrace(0x4206, pid, 0, 0))
    attempt(f"memory {pid}", lambda: read(f"/proc/{pid}/mem"))
    attempt(f"kill {pid}", lambda: os.kill(pid, 0) if pid not in (0, 1, os.getpid()) else None)
    attempt(f"slower {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) if pid not in (0, 1) else None)
"""
    if prison.first_is_ours:
        outside += [0, 1]
    found = await _attempts(prison, program, *map(str, outside))
    assert {name: got for name, got in found.items() if got is not None} == {}
    assert await prison.state(handle) is AttemptState.RUNNING


def _has(path: Path, mark: str) -> bool:
    try:
        return mark.encode() in path.read_bytes()
    except OSError:
        return False


async def test_what_jobs_share_without_files_is_each_jobs_own(prison: Prison) -> None:
    """System V and POSIX shared memory, abstract sockets, keys of the kernel."""
    program = """
import time
mark = sys.argv[1].encode()
attempt("abstract", lambda: globals().__setitem__("s", socket.socket(socket.AF_UNIX)) or s.bind(b"\\0" + mark[:20]))
attempt("sysv", lambda: libc.shmget(0x52554E53, 4096, 0o1666) >= 0)
attempt("posix", lambda: open("/dev/shm/" + sys.argv[1], "x").close())
libc.syscall(248, b"user", mark, mark, ctypes.c_size_t(len(mark)), -3)
print(json.dumps(["ready", None]), flush=True)
time.sleep(60)
"""
    mark = secrets.token_hex(16)
    maker = prison.launch("python3", "-uc", _TRY + program, mark, namespace="bob")
    await prison.start(maker)
    await prison.line(maker, '["ready", null]')
    look = """
mark = sys.argv[1].encode()
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect(b"\\0" + mark[:20]) or "connected")
found = libc.shmget(0x52554E53, 0, 0)
attempt("sysv", lambda: None if found < 0 else found)
attempt("posix", lambda: os.path.exists("/dev/shm/" + sys.argv[1]) or None)
key = libc.syscall(250, 10, -3, b"user", mark, 0)
attempt("key", lambda: None if key < 0 else key)
attempt("keys", lambda: [line for line in open("/proc/keys") if sys.argv[1] in line])
"""
    found = await _attempts(prison, look, mark)
    assert {name: got for name, got in found.items() if got is not None} == {}


async def test_raw_packets_cannot_be_made_and_addresses_not_be_taken(prison: Prison) -> None:
    assert prison.capabilities is not None
    if not prison.capabilities.private_network:
        pytest.skip("jobs share the machine's network here")
    program = """
import struct, fcntl
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1)))
def address():
    with socket.socket() as any_socket:
        new = socket.inet_aton("10.11.12.13")
        fcntl.ioctl(any_socket, 0x8916, struct.pack("16sH2s4s8s", b"eth0", 2, b"", new, b""))
    return "changed"
attempt("address", address)
def route():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.send(struct.pack("=IHHIIBxHiII", 32, 16, 5, 1, 0, 0, 0, 2, 0, 1))
        kind, code = struct.unpack_from("=4xH10xi", link.recv(4096))
        return None if code else "taken down"
attempt("link", route)
"""
    found = await _attempts(prison, program)
    assert {name: got for name, got in found.items() if got is not None} == {}


async def test_ports_and_services_of_others_are_out_of_reach(prison: Prison) -> None:
    assert prison.capabilities is not None
    if not prison.capabilities.private_network:
        pytest.skip("jobs share the machine's network here")
    listen = "import socket, time; s = socket.create_server(('0.0.0.0', 8000)); print('ready'); time.sleep(60)"
    other = prison.launch("python3", "-uc", listen, namespace="bob")
    handle = await prison.start(other)
    await prison.line(other, "ready")
    program = """
for target in sys.argv[1:]:
    host, _, port = target.partition(":")
    attempt(target, lambda: socket.create_connection((host, int(port)), 1))
"""
    with socket.create_server(("0.0.0.0", 0)) as service:
        port = service.getsockname()[1]
        targets = [f"{handle.data['address']}:8000", f"{prison.capabilities.host_address}:{port}", f"127.0.0.1:{port}"]
        found = await _attempts(prison, program, *targets, "169.254.169.254:80")
    assert {name: got for name, got in found.items() if got is not None} == {}


async def test_links_in_a_volume_lead_nowhere_out_of_the_job(prison: Prison) -> None:
    victim, volume, second = (prison.folder / name for name in ("victim", "volume", "second"))
    owner = places.first_id(str(prison.data_dir), "alice")
    for path in (victim, volume, second):
        path.mkdir()
    (victim / "file").write_text("precious")
    for path in (volume, second):
        os.chown(path, owner, owner)
    tricks = f"""
        ln -s {victim} /data/link; ln -s / /data/root; ln -s /etc/shadow /data/shadow; ln -s .. /data/up
        ln -s {victim}/file /data/file; mkdir -p /data/deep; ln -s ../../../../../../..{victim} /data/deep/out
        cat /data/link/file /data/file /data/deep/out/file; ls /data/root/victim; echo x > /data/link/new; exit 0
    """
    code, lines = await prison.shell(tricks, mounts=(Mount(volume, "/data", False),))
    assert code == 0
    assert "precious" not in "\n".join(lines)
    # The next job mounts something at places that lead over these links.
    for place in ("/data/link", "/data/link/sub", "/data/root/etc", "/data/up/up", "/data/deep/out", "/data/shadow"):
        mounts = (Mount(volume, "/data", False), Mount(second, place, False))
        launch = prison.launch("sh", "-c", f"echo > {place}/mark; cat {victim}/file; exit 0", mounts=mounts)
        try:
            record, lines = await prison.run(launch)
        except (Invalid, BackendFailure):
            continue
        assert record.reason is ExitReason.START_FAILED or "precious" not in "\n".join(lines)
        assert {path.name for path in victim.iterdir()} == {"file"}
        (second / "mark").unlink(missing_ok=True)
    assert (victim / "file").read_text() == "precious"
    assert "precious" not in Path("/etc/shadow").read_text()


async def test_links_left_behind_are_not_followed_when_a_job_is_removed(prison: Prison) -> None:
    victim = prison.folder / "victim"
    victim.mkdir(mode=0o777)
    (victim / "file").write_text("precious")
    places_to_write = "/tmp /var/tmp /root ${HOME} ${PWD} ${XDG_CACHE_HOME:-/tmp}"
    script = (
        f"for d in {places_to_write}; do mkdir -p $d; ln -sfn {victim} $d/x; ln -sfn / $d/y; done; mkfifo /tmp/pipe"
    )
    for _ in range(2):
        code, lines = await prison.shell(script)
        assert code == 0, lines
    assert (victim / "file").read_text() == "precious"


async def test_odd_names_and_modes_can_be_removed(prison: Prison) -> None:
    program = """
os.umask(0)
for name in (b"new\\nline", b"\\xff\\xfe", b"-rf", b" ", b"x" * 255, b"*", b"$(reboot)"):
    os.makedirs(b"/tmp/odd/" + name, 0o000 if name == b" " else 0o777)
    with open(b"/tmp/" + name, "w") as file: file.write("x")
os.chmod("/tmp/odd", 0)
attempt("immutable", lambda: __import__("fcntl").ioctl(os.open("/tmp/-rf", 0), 0x40086602, b"\\x10" + b"\\0" * 7))
"""
    found = await _attempts(prison, program)
    assert found["immutable"] is None
