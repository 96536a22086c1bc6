"""A network of its own for each job: a bridge, a pool of ready network namespaces, rules around it.

Needs root. A namespace is kept by a bind mount in `/run/runstead-<instance>`, so it outlives the server, and a
claim file beside it says which attempt uses it. It belongs to the machine's own user namespace: a job cannot
change its addresses or routes and cannot open raw sockets.

One in which nothing was sent and no socket is left is as good as new. Many short jobs need no
network, and to make one costs more than they do, so it is kept for the next job of the same owner.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from zlib import crc32

from runstead.executors import netlink
from runstead.executors.egress import Egress
from runstead.executors.firewall import Confinement, Firewall
from runstead.executors.groups import Groups
from runstead.executors.netlink import NETLINK_ROUTE, NetlinkSocket
from runstead.model.errors import Unavailable
from runstead.model.launches import Membership
from runstead.node import cgroups, syscalls

_BRIDGE_PREFIX, _PORT_PREFIX = "rsb", "rsv"
_READY = 4  # namespaces kept ready; a busy executor makes more while jobs start
_REUSED = 128  # at most so many are kept to be used again; each holds some 130 KB of the machine's memory
_UNCLAIMED_SECONDS = 60.0
_LOOK_SECONDS = 60.0  # between two looks at what names mean that jobs may reach
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_INSIDE_INDEX = 2
_AHEAD = "ahead-"
_OWNED = ".of"  # ends the name of the file that says whose attempts had a namespace


class JobNetwork:
    """The private network of one executor."""

    def __init__(
        self,
        instance: str,
        subnet: str | None = None,
        server_port: int | None = None,
        egress: Egress | None = None,
        groups: Path | None = None,
    ) -> None:
        """`egress` is all of the outside that jobs may reach; None: everything. `groups` is where those are kept."""
        self._folder = Path(f"/run/runstead-{instance}")
        self._state_path = self._folder / "state.json"
        self._instance = instance[:8]
        self._bridge = _BRIDGE_PREFIX + self._instance
        self._wanted_subnet = IPv4Network(subnet) if subnet else None
        self._server_port = server_port
        self._egress = egress
        self._groups = Groups(groups) if groups is not None else None
        self._rules = threading.Lock()  # the last to change what the firewall knows is the last to tell it
        self._looking: asyncio.Task[None] | None = None
        self._subnet = IPv4Network("0.0.0.0/0")
        self._ready: list[str] = []
        self._used: dict[str, str] = {}  # attempt: address
        self._idle: dict[str, list[str]] = {}  # owner: addresses of namespaces that only attempts of this one had
        self._owners: dict[str, str] = {}  # attempt: owner, of those that may leave theirs to another
        self._next = 0
        self._bridge_index = 0
        self._machine_namespace = -1
        self._mtu = 1500
        # One thread makes namespaces: it enters each of them while it does.
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="job-network")
        self._making: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where jobs reach this machine."""
        return str(self._subnet[1])

    async def open(self, attempts: Path) -> None:
        """Make the bridge and its rules, or find them again; raises OSError where that is not possible."""
        await asyncio.get_running_loop().run_in_executor(self._maker, self._open, attempts)
        if self._egress is not None and self._egress.has_names:
            self._looking = asyncio.create_task(self._look_again(self._egress))
        self._fill()

    async def close(self, *, remove: bool) -> None:
        """Stop making namespaces; with `remove` take away everything."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await asyncio.gather(*self._making, return_exceptions=True)
        if remove:
            await asyncio.get_running_loop().run_in_executor(self._maker, self.remove_all)
        self._maker.shutdown(wait=True)
        if self._machine_namespace >= 0:
            os.close(self._machine_namespace)
            self._machine_namespace = -1

    async def _look_again(self, egress: Egress) -> None:
        """Keep up with names that move."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            before = egress.openings()
            await asyncio.to_thread(egress.refresh)
            if egress.openings() != before:
                with contextlib.suppress(OSError):  # what was allowed before stays; next time it may work
                    await asyncio.to_thread(self._apply_rules)

    async def claim(self, name: str, owner: str | None = None) -> tuple[str, str]:
        """Return path and address of a namespace for an attempt; the same one when asked again.

        With an `owner` it may have been another attempt's of the same, if that left no trace in it.
        """
        while name not in self._used:
            idle = self._idle.get(owner) if owner is not None else None
            if idle or self._ready:
                address = (idle or self._ready).pop()
                # In memory: does not wait. Exclusive: another server may know the same namespace as ready.
                if self._mark(address, name):
                    if not self._is_for(address, owner):  # another server had it meanwhile
                        (self._folder / f"{address}.used").unlink()
                        continue
                    self._used[name] = address
                    if owner is not None:
                        self._owners[name] = owner
                continue
            try:
                await asyncio.shield(self._make_one())
            except OSError as error:
                raise Unavailable(f"no network for the job could be made: {error}") from error
        self._fill()
        return str(self._folder / self._used[name]), self._used[name]

    def rename(self, name: str, new: str) -> tuple[str, str]:
        """Give what `name` claimed to an attempt that has none, and return it as `claim` does."""
        address = self._used[name]
        (self._folder / f"{address}.used").write_text(new, encoding="ascii")  # in memory: does not wait
        self._used[new] = self._used.pop(name)
        return str(self._folder / address), address

    def has(self, name: str) -> bool:
        """Say whether an attempt claimed one."""
        return name in self._used

    async def join(self, name: str, membership: Membership, own_hosts: str) -> Path:
        """Let an attempt that has a namespace reach its group, and be reached; return its hosts file."""
        self._owners.pop(name, None)
        return await asyncio.to_thread(self._join, name, membership, own_hosts)

    async def confine(self, name: str, entries: Sequence[str]) -> list[list[str]]:
        """Let an attempt that has a namespace reach what is listed and nothing else; return [address, name] of names.

        Names are looked up once. Raises Unavailable when that cannot be ensured.
        """
        self._owners.pop(name, None)
        egress = Egress(entries)
        unknown = await asyncio.to_thread(egress.refresh)
        if unknown:
            raise Unavailable(f"nobody knows the address of what the job may reach: {', '.join(unknown)}")
        rules = Confinement(self._subnet[1], self._server_port, tuple(egress.openings()))
        try:
            await asyncio.get_running_loop().run_in_executor(self._maker, self._apply_inside, self._used[name], rules)
        except OSError as error:
            raise Unavailable(f"what the job may reach could not be limited: {error}") from error
        return egress.hosts()

    async def release(self, name: str, address: str | None = None) -> None:
        """Give an attempt's namespace back: no process is in it any more. Idempotent."""
        if self._groups is not None and self._groups.has(name):
            await asyncio.to_thread(self._leave, name)
        owner, mine = self._owners.pop(name, None), self._used.get(name)
        if owner is not None and mine is not None and await self._keep(mine, owner):
            self._used.pop(name, None)
            address, mine = None if address == mine else address, None
        for one in {address, mine} - {None}:
            await asyncio.to_thread(self._delete, str(one))
        self._used.pop(name, None)

    def _mark(self, address: str, name: str) -> bool:
        """Note whose a namespace is; False when it is somebody's."""
        try:
            fd = os.open(f"{self._folder}/{address}.used", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        try:
            os.write(fd, name.encode("ascii"))
        finally:
            os.close(fd)
        return True

    def _is_for(self, address: str, owner: str | None) -> bool:
        """Say whether there is a namespace of that address, and only attempts of this owner had it."""
        if not os.path.exists(f"{self._folder}/{address}"):  # noqa: PTH110 (a string)
            return False
        try:
            with open(f"{self._folder}/{address}{_OWNED}", encoding="utf-8") as file:  # noqa: PTH123 (a string)
                return file.read() == owner
        except FileNotFoundError:
            return True

    async def _keep(self, address: str, owner: str) -> bool:
        """Keep a namespace for other attempts of its owner, if nothing happened in it."""
        if sum(map(len, self._idle.values())) >= _REUSED:
            return False
        try:
            if not await asyncio.get_running_loop().run_in_executor(self._maker, self._is_untouched, address):
                return False
            (self._folder / f"{address}{_OWNED}").write_text(owner, encoding="utf-8")
            (self._folder / f"{address}.used").unlink(missing_ok=True)
        except OSError:
            return False
        self._idle.setdefault(owner, []).append(address)
        return True

    async def reuse(self, name: str) -> None:
        """Give back a namespace in which nobody could change anything: the next one gets it as it is. Idempotent."""
        address = self._used.get(name)
        if address is None or len(self._ready) >= _REUSED:
            await self.release(name)
            return
        (self._folder / f"{address}.used").unlink(missing_ok=True)
        del self._used[name]
        self._ready.append(address)

    async def release_below(self, name: str) -> None:
        """Give back what parts of an attempt have. Idempotent."""
        for one in [other for other in self._used if other.startswith(f"{name}/")]:
            await self.release(one)

    def _join(self, name: str, membership: Membership, own_hosts: str) -> Path:
        if self._groups is None:
            raise Unavailable("this network knows no groups")
        with self._rules:
            hosts = self._groups.join(name, membership, self._used[name], own_hosts)
            try:
                self._firewall().apply()
            except OSError as error:
                self._groups.leave(name)
                raise Unavailable(f"the job could not be joined with its network group: {error}") from error
        return hosts

    def _leave(self, name: str) -> None:
        if self._groups is not None:
            with self._rules:
                if self._groups.leave(name):
                    with contextlib.suppress(OSError):  # its address is used again only after the next success
                        self._firewall().apply()

    def _apply_rules(self) -> None:
        with self._rules:
            self._firewall().apply()

    def _delete(self, address: str) -> None:
        path = self._folder / address
        with contextlib.suppress(OSError):
            syscalls.unmount(str(path), syscalls.MNT_DETACH)
        path.unlink(missing_ok=True)
        for mark in (".used", _OWNED):
            (self._folder / f"{address}{mark}").unlink(missing_ok=True)

    def traffic(self, address: str) -> tuple[int, int]:
        """Return the bytes that a job received and sent."""
        folder = Path("/sys/class/net") / self._port(address) / "statistics"
        try:  # what the machine's end sent is what the job received
            return int((folder / "tx_bytes").read_text()), int((folder / "rx_bytes").read_text())
        except (OSError, ValueError):
            return 0, 0

    def _fill(self) -> None:
        if len(self._ready) + len(self._making) < _READY:
            self._make_one()

    def _make_one(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._make_ready())
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return task

    async def _make_ready(self) -> None:
        address = await asyncio.get_running_loop().run_in_executor(self._maker, self._make)
        self._ready.append(address)
        if len(self._ready) < _READY:
            asyncio.get_running_loop().call_soon(self._fill)

    # All below runs in the maker's thread.

    def _open(self, attempts: Path) -> None:
        self._machine_namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._mount_folder()
        state = self._read_state()
        subnet = self._wanted_subnet or (IPv4Network(state["subnet"]) if "subnet" in state else None)
        self._subnet = subnet or _free_subnet(self._instance)
        if "forwarding" not in state:
            state["forwarding"] = _FORWARDING.read_text().strip()
        self._state_path.write_text(json.dumps({**state, "subnet": str(self._subnet)}), encoding="ascii")
        self._make_bridge()
        if self._groups is not None:
            self._groups.load(lambda name: (attempts / name).is_dir())
        self._firewall().apply()
        self._firewall().allow_in_iptables()
        _FORWARDING.write_text("1")
        self._mtu = _uplink_mtu()
        self._adopt(attempts)

    def _firewall(self) -> Firewall:
        openings = None if self._egress is None else tuple(self._egress.openings())
        groups = self._groups.numbers() if self._groups is not None else {}
        table = f"runstead_{self._instance}"
        return Firewall(table, self._bridge, self._subnet, self._subnet[1], self._server_port, openings, groups)

    def _read_state(self) -> dict[str, str]:
        try:
            return json.loads(self._state_path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}

    def _make_bridge(self) -> None:
        with NetlinkSocket(NETLINK_ROUTE) as kernel:
            with contextlib.suppress(FileExistsError):
                kernel.do(netlink.new_bridge(self._bridge))
            self._bridge_index = socket.if_nametoindex(self._bridge)
            with contextlib.suppress(OSError):  # a machine without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{self._bridge}/disable_ipv6").write_text("1")
            with contextlib.suppress(FileExistsError):
                kernel.do(self._address_message(self._bridge_index, self._subnet[1]))
        # Ports of the bridge are kept apart, so what members of a group send each other goes by way of this machine,
        # which answers for their addresses and whose rules decide.
        for name in (f"conf/{self._bridge}/proxy_arp_pvlan", f"neigh/{self._bridge}/proxy_delay"):
            Path("/proc/sys/net/ipv4", name).write_text("1" if name.startswith("conf") else "0")

    def _address_message(self, index: int, address: IPv4Address) -> netlink.Message:
        return netlink.add_address(index, address.packed, self._subnet.prefixlen, self._subnet.broadcast_address.packed)

    def _mount_folder(self) -> None:
        """Mount a small tmpfs that is private, so that other mount namespaces do not keep ours alive."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if not self._folder.is_mount():
            syscalls.mount("tmpfs", str(self._folder), "tmpfs", syscalls.MS_NOSUID, "mode=700,size=4m")
        syscalls.mount(None, str(self._folder), None, syscalls.MS_PRIVATE)

    def _adopt(self, attempts: Path) -> None:
        """Take over what an earlier server left: ready namespaces, and those of attempts that never were."""
        for path in list(self._folder.glob("*.used")):
            name = path.read_text(encoding="ascii")
            age = time.time() - path.stat().st_mtime
            if (name and (attempts / name).is_dir()) or (age < _UNCLAIMED_SECONDS and not is_left_over(name)):
                self._used[name] = path.name.removesuffix(".used")
            else:
                self._delete(path.name.removesuffix(".used"))
        for path in self._namespaces():
            if path.name in self._used.values():
                continue
            is_made = path.stat().st_dev != self._folder.stat().st_dev
            if is_made and Path("/sys/class/net", self._port(path.name)).exists():
                with contextlib.suppress(FileNotFoundError):
                    owner = (self._folder / f"{path.name}{_OWNED}").read_text(encoding="utf-8")
                    self._idle.setdefault(owner, []).append(path.name)
                    continue
                self._ready.append(path.name)
            elif time.time() - path.stat().st_mtime > _UNCLAIMED_SECONDS:  # nobody is making it just now
                self._delete(path.name)

    def _namespaces(self) -> list[Path]:
        marks = (".used", _OWNED)
        return [path for path in self._folder.iterdir() if path.suffix not in marks and path != self._state_path]

    def _port(self, address: str) -> str:
        return f"{_PORT_PREFIX}{self._instance[:6]}{int(IPv4Address(address)) & 0xFFFF:04x}"

    def _free_address(self) -> IPv4Address:
        count = self._subnet.num_addresses - 3
        for _ in range(count):
            self._next = self._next % count + 1
            address = self._subnet[self._next + 1]
            in_use = (f"{self._folder}/{address}", f"/sys/class/net/{self._port(str(address))}")
            if not any(map(os.path.exists, in_use)):
                return address
        raise OSError(99, f"all {count} addresses are taken", str(self._subnet))

    def _make(self) -> str:
        """Make one namespace with its link to the bridge; return its address, which is its name."""
        address = self._free_address()
        port = self._port(str(address))
        path = self._folder / str(address)
        path.touch(exist_ok=False)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            try:
                self._furnish(address, port)
                syscalls.mount("/proc/thread-self/ns/net", str(path), None, syscalls.MS_BIND)
            finally:
                syscalls.enter(self._machine_namespace, syscalls.CLONE_NEWNET)
            index = socket.if_nametoindex(port)
            with NetlinkSocket(NETLINK_ROUTE) as kernel:
                kernel.do(netlink.join_bridge(index, self._bridge_index), netlink.isolate(index))
        except OSError:
            self._delete(str(address))
            raise
        return str(address)

    def _apply_inside(self, address: str, rules: Confinement) -> None:
        """Put rules in place in a namespace."""
        with self._entered(address):
            rules.apply()

    def _is_untouched(self, address: str) -> bool:
        """Say whether no packet was ever sent in a namespace and nobody holds a socket of it."""
        with self._entered(address):
            return _sockets() == 0 and not any(_packets_sent())

    @contextlib.contextmanager
    def _entered(self, address: str) -> Generator[None]:
        """Be in a namespace."""
        inside = os.open(self._folder / address, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.enter(inside, syscalls.CLONE_NEWNET)
        finally:
            os.close(inside)
        try:
            yield
        finally:
            syscalls.enter(self._machine_namespace, syscalls.CLONE_NEWNET)

    def _furnish(self, address: IPv4Address, port: str) -> None:
        """Make everything that is inside: links, address, route, and what a job's root may do."""
        with NetlinkSocket(NETLINK_ROUTE) as kernel:
            kernel.do(
                netlink.new_veth("eth0", _INSIDE_INDEX, port, self._machine_namespace, self._mtu),
                netlink.set_up(1),
                self._address_message(_INSIDE_INDEX, address),
            )
        for name, value in (
            ("ipv6/conf/eth0/disable_ipv6", "1"),
            ("ipv4/ip_unprivileged_port_start", "0"),
            ("ipv4/ping_group_range", "0 2147483647"),
        ):
            with contextlib.suppress(OSError):
                Path("/proc/sys/net", name).write_text(value)
        with NetlinkSocket(NETLINK_ROUTE) as kernel:
            kernel.do(netlink.set_up(_INSIDE_INDEX), netlink.default_route(_INSIDE_INDEX, self._subnet[1].packed))

    def remove_all(self) -> None:
        """Take everything away, whoever made it; may block."""
        state: dict[str, str] = {}
        if self._folder.is_mount():
            state = self._read_state()
            self._subnet = IPv4Network(state.get("subnet", str(self._subnet)))
            for path in self._namespaces():
                self._delete(path.name)
            syscalls.unmount(str(self._folder), syscalls.MNT_DETACH)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        with NetlinkSocket(NETLINK_ROUTE) as kernel:
            for link in Path("/sys/class/net").iterdir():
                if link.name.startswith(_PORT_PREFIX + self._instance[:6]):
                    with contextlib.suppress(OSError):  # the kernel is at it itself
                        kernel.do(netlink.delete_link(link.name))
            with contextlib.suppress(OSError):
                kernel.do(netlink.delete_link(self._bridge))
        self._firewall().remove()
        self._firewall().forget_in_iptables()
        self._restore_forwarding(state)

    def _restore_forwarding(self, state: dict[str, str]) -> None:
        """Forward no more, if nobody did before us and no other executor of ours does."""
        others = [link for link in Path("/sys/class/net").iterdir() if link.name.startswith(_BRIDGE_PREFIX)]
        if state.get("forwarding") == "0" and not others:
            _FORWARDING.write_text("0")


def ahead_name(number: int) -> str:
    """Return the name under which this process holds something for a job to come."""
    return f"{_AHEAD}{os.getpid()}-{number}"


def is_left_over(name: str) -> bool:
    """Say whether something was held for a job to come by a process that is dead."""
    return name.startswith(_AHEAD) and not Path("/proc", name.removeprefix(_AHEAD).partition("-")[0]).exists()


def sweep(instance: str) -> None:
    """Take away what an executor made whose data directory is gone, and its server with it."""
    network = JobNetwork(instance)
    with contextlib.suppress(OSError):
        network.remove_all()
    cgroups.release_places(cgroups.find_places(f"runstead-{instance}")[0])


def _sockets() -> int:
    """Return how many sockets there are in this thread's network namespace, wherever the processes are."""
    first, _, _ = Path("/proc/thread-self/net/sockstat").read_text(encoding="ascii").partition("\n")
    return int(first.rpartition(" ")[2])


def _packets_sent() -> list[int]:
    """Return how many packets each link of this thread's network namespace sent."""
    lines = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return [int(line.partition(":")[2].split()[9]) for line in lines]


def _free_subnet(instance: str) -> IPv4Network:
    """Return a private network that this machine has no route into; the same one each time if it can be."""
    taken = _routes()
    first = crc32(instance.encode())
    for step in range(1024):
        number = (first + step * 37) % 1024
        subnet = IPv4Network((int(IPv4Address("10.192.0.0")) + number * 4096, 20))
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise OSError(99, "no private network is free; set one", "10.192.0.0/10")


def _uplink_mtu() -> int:
    """Return the packet size of the links that lead out of this machine."""
    sizes: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[1] == "00000000":
                sizes.append(int(Path("/sys/class/net", words[0], "mtu").read_text()))
    return min(sizes, default=1500)


def _routes() -> list[IPv4Network]:
    """Return the networks that the routing tables name, and the machine's name servers."""
    found: list[IPv4Network] = []
    with NetlinkSocket(NETLINK_ROUTE) as kernel:
        for body in kernel.dump(netlink.RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8)):
            prefix = body[1]
            target = netlink.attributes(body[12:]).get(netlink.RTA_DST)
            if prefix and target:
                found.append(IPv4Network((target, prefix), strict=False))
    with contextlib.suppress(OSError):
        for line in Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver" and "." in words[1]:
                with contextlib.suppress(ValueError):
                    found.append(IPv4Network(words[1]))
    return found
