"""Has a container made by an OCI runtime (crun, runc, runsc) instead of by ourselves.

The runtime is a child of the job's first process, which stays outside of the container: whatever becomes of the
runtime, all that it started ends with that process's namespace. Control groups and the network are entered already; the
runtime makes the rest, from a bundle: an overlay of the image's layers and a description.
"""

import base64
import json
import os

from runstead.node import command, namespaces, pause, rundir, seccomp, syscalls, users
from runstead.node.inside import imports
from runstead.node.request import NO_NETWORK
from runstead.node.roots import image
from runstead.node.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runstead.node.request import Container, Request

_STAGE = "/run"  # in the mount namespace of the first process, which is the job's own
_MASKED = ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "sched_debug", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_CAPABILITIES = {
    0: "CHOWN",
    1: "DAC_OVERRIDE",
    3: "FOWNER",
    4: "FSETID",
    5: "KILL",
    6: "SETGID",
    7: "SETUID",
    8: "SETPCAP",
    10: "NET_BIND_SERVICE",
    13: "NET_RAW",
    18: "SYS_CHROOT",
    27: "MKNOD",
    29: "AUDIT_WRITE",
    31: "SETFCAP",
}
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


class NotExecuted(Exception):
    """The command cannot be executed in its image: `report` says why, and with which code a shell would end."""

    def __init__(self, report: "dict[str, object]") -> None:
        super().__init__(str(report["message"]))
        self.report = report


def start(
    request: "Request",
    container: "Container",
    base: image.Foundation,
    environment: "dict[str, str]",
    output: int,
    network: int | None,
) -> int:
    """Start the runtime; return its process id. Raises OSError, NotExecuted.

    `network` is the job's own where the runtime enters it, not we.
    """
    image.lay(container, base)
    syscalls.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)  # of this process namespace
    if os.path.ismount("/sys/fs/cgroup/unified"):  # crun gives up where both versions are mounted
        syscalls.unmount("/sys/fs/cgroup/unified", syscalls.MNT_DETACH)
    if network is not None:
        _hide_buffers(network)
    found = _inside(f"{base.stage}/root", lambda: _visit(request, container, environment, base.owner))
    if "message" in found:
        raise NotExecuted(found)
    user = users.User(found["uid"], found["gid"], found["groups"], found["home"])
    if base.owner is not None:
        os.fchown(output, base.owner + user.uid, base.owner + user.gid)  # so that it can open /dev/stdout
    binds = _bind(request, container, base, network)
    _show_stage(base.stage)
    described = _describe(request, container, base, {"HOME": user.home, **environment}, user)
    described["mounts"] += binds
    os.mkdir(f"{_STAGE}/bundle", 0o700)
    with open(f"{_STAGE}/bundle/config.json", "w", encoding="utf-8") as file:
        json.dump(described, file)
    argv = [
        container.runtime,
        *options(container.runtime, request.network),
        "run",
        "--bundle",
        f"{_STAGE}/bundle",
        identity(request),
    ]
    return command.spawn(argv, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, output)


def makes_networks(runtime: str) -> bool:
    """Say whether the runtime has to enter the job's network itself: it takes the network's place in it."""
    return os.path.basename(runtime) == "runsc"


def _hide_buffers(network: int) -> None:
    """Hide settings of a network from which runsc tells that it is the machine's own, which it would refuse.

    Since Linux 6.9 they are seen in all networks; releases of runsc before that do not know.
    """
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.enter(network, syscalls.CLONE_NEWNET)
    try:
        syscalls.mount("tmpfs", "/proc/sys/net/core", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    finally:
        syscalls.enter(before, syscalls.CLONE_NEWNET)
        os.close(before)


def _bind(
    request: "Request", container: "Container", base: image.Foundation, network: int | None
) -> "list[dict[str, Any]]":
    """Show all that is the machine's on the stage; return how it gets into the container from there."""
    groups = image.open_groups(base.groups)
    os.mkdir(f"{base.stage}/sys")
    syscalls.mount("sysfs", f"{base.stage}/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    image.show_groups(base.stage, groups)
    if network is not None:
        _attach(f"/proc/self/fd/{network}", f"{base.stage}/network")
        os.close(network)
    wanted: list[tuple[str, str, list[str]]] = [
        (base.shared, image.SHARED, ["bind", "nosuid", "nodev"]),
        *((source, target, ["bind", "nosuid", "noexec"]) for source, target in container.devices),
        *((source, target, ["rbind", "ro", "nosuid", "nodev"]) for source, target in container.binds),
        *((source, target, ["rbind", access, "nosuid", "nodev"]) for source, target, access in request.mounts),
    ]
    found = [
        {"destination": "/sys", "source": f"{_STAGE}/sys", "options": ["rbind", "ro", "nosuid", "noexec", "nodev"]}
    ]
    if not request.argv:
        found.append(_bring_pause(base.stage))
    os.mkdir(f"{base.stage}/binds")
    for number, (source, target, options) in enumerate(wanted):
        _attach(source, f"{base.stage}/binds/{number}")
        found.append({"destination": target, "source": f"{_STAGE}/binds/{number}", "options": options})
    return [{"type": "bind", **one} for one in found]


def _bring_pause(stage: str) -> "dict[str, Any]":
    """Bring what stays in a container without a command; return how it gets there."""
    program = pause.program(os.uname().machine)
    if program is None:
        reason = f"nothing can stay in a container without a command on {os.uname().machine}"
        raise NotExecuted({"message": reason, "code": None})
    with open(f"{stage}/pause", "wb") as file:
        file.write(program)
        os.fchmod(file.fileno(), 0o755)
    return {"destination": pause.PATH, "source": f"{_STAGE}/pause", "options": ["bind", "ro", "nosuid", "nodev"]}


def _attach(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    tree = syscalls.copy_tree(source, recursive=True)
    syscalls.attach(tree, target)
    os.close(tree)


def _show_stage(stage: str) -> None:
    """Show the stage where everybody may go: the runtime walks to it with the ids of the job."""
    tree = syscalls.copy_tree(stage, recursive=True)
    syscalls.attach(tree, _STAGE)
    os.close(tree)


def is_entered(runtime: str) -> bool:
    """Say whether the container's processes are the machine's, so that we can go in. Those of gVisor are its own."""
    return os.path.basename(runtime) != "runsc"


def identity(request: "Request") -> str:
    """Return the container's id: gVisor names a socket after it that is one for the whole machine."""
    return rundir.attempt_name(request.job_id, request.attempt)


def options(runtime: str, network: str | None) -> list[str]:
    """Return what this runtime has to be told about its surroundings."""
    state = ["--root", f"{_STAGE}/state"]
    match os.path.basename(runtime):
        case "crun":
            return [*state, "--cgroup-manager=disabled"]
        case "runsc":
            kind = {None: "host", NO_NETWORK: "none"}.get(network, "sandbox")
            return [*state, "--ignore-cgroups", f"--network={kind}"]
        case _:  # runc makes control groups of its own below ours, whose limits hold for them
            return state


def _inside(root: str, act: "Callable[[], dict[str, Any]]") -> "dict[str, Any]":
    """Do something in a root directory, from which no path leads out, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            imports.stop()
            os.chroot(root)
            os.chdir("/")
            os.write(writer, json.dumps(act()).encode())
        except BaseException as error:
            report = {"message": f"the job's surroundings could not be made: {error}", "code": None}
            os.write(writer, json.dumps(report).encode())
        finally:
            os._exit(0)
    os.close(writer)
    text = b""
    while part := os.read(reader, 65536):
        text += part
    os.close(reader)
    os.waitpid(child, 0)
    return json.loads(text)


def _visit(
    request: "Request", container: "Container", environment: "dict[str, str]", owner: int | None
) -> "dict[str, Any]":
    user = users.find(container.user)
    image.write_files(request, container, owner)
    base = owner or 0
    folder = container.working_dir or "/"
    image.enter_folder(folder, users.User(base + user.uid, base + user.gid, [], user.home))
    image.link(container, owner)
    if container.libraries and owner is not None:
        _learn(container, owner)
    try:
        found = command.find(request.argv, environment) if request.argv else pause.PATH
    except OSError as error:
        return command.explain(request.argv, environment, folder, error)
    return {"uid": user.uid, "gid": user.gid, "groups": user.groups, "home": user.home, "path": found}


def _learn(container: "Container", owner: int) -> None:
    """Have the image's own program look at libraries, with no more rights than the job has."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(owner, owner, owner)
            os.setresuid(owner, owner, owner)
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            image.equip(container)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _describe(
    request: "Request",
    container: "Container",
    base: image.Foundation,
    environment: "dict[str, str]",
    user: users.User,
) -> "dict[str, Any]":
    """Return the description of the container (OCI runtime specification, config.json)."""
    capabilities = [f"CAP_{name}" for number, name in _CAPABILITIES.items() if number in namespaces.KEPT]
    kinds = ["pid", "mount", "ipc", "uts", *(["user"] if base.owner is not None else [])]
    spaces: list[dict[str, str]] = [{"type": kind} for kind in kinds]
    if makes_networks(container.runtime) and os.path.exists(f"{_STAGE}/network"):
        spaces.append({"type": "network", "path": f"{_STAGE}/network"})
    linux: dict[str, Any] = {
        "namespaces": spaces,
        "maskedPaths": [*(f"/proc/{name}" for name in _MASKED), *image.HIDDEN],
        "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
    }
    if base.owner is not None:
        mapping = [{"containerID": 0, "hostID": base.owner, "size": 65536}]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    described: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": request.argv or [pause.PATH],
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": container.working_dir or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": f"{_STAGE}/root", "readonly": False},
        "hostname": request.job_id,
        "mounts": _mounts(container),
        "linux": linux,
    }
    if container.filtered:
        _filter(described, container.runtime)
    return described


def _filter(described: "dict[str, Any]", runtime: str) -> None:
    name = os.path.basename(runtime)
    if name == "crun" and seccomp.PROGRAM is not None:  # compiling costs thirty milliseconds each time
        described["annotations"] = {"run.oci.seccomp_bpf_data": base64.b64encode(seccomp.PROGRAM).decode()}
    elif name != "runsc":  # which has no use for one: system calls do not reach the machine's kernel
        refuse = {"action": "SCMP_ACT_ERRNO", "errnoRet": 1}
        flags = {"index": 0, "value": seccomp.NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        described["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": [_ARCHITECTURES[os.uname().machine]],
            "syscalls": [
                {"names": sorted(seccomp.REFUSED), **refuse},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                *(
                    {"names": ["clone"], "args": [{**flags, "value": bit, "valueTwo": bit}], **refuse}
                    for bit in (1 << place for place in range(32))
                    if bit & seccomp.NAMESPACE_FLAGS
                ),
                {"names": ["socket"], "args": [{"index": 0, "value": seccomp.AF_VSOCK, "op": "SCMP_CMP_EQ"}], **refuse},
            ],
        }


def _mounts(container: "Container") -> "list[dict[str, Any]]":
    plain = ["nosuid", "noexec", "nodev"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    shared_memory = ["nosuid", "nodev", "mode=1777", f"size={container.shared_memory_bytes}"]
    tmpfs: dict[str, Any] = {"type": "tmpfs", "source": "tmpfs"}
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": plain},
        {"destination": "/dev", **tmpfs, "options": ["nosuid", "strictatime", "mode=755", "size=1m"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": terminals},
        {"destination": "/dev/shm", **tmpfs, "options": shared_memory},
    ]
