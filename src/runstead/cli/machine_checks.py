"""Whether this machine can run a server and jobs, and how well apart it keeps them."""

import asyncio
import os
import platform
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

from runstead.cli.findings import Finding, Level
from runstead.executors.interface import Capabilities
from runstead.kit.settings import Settings
from runstead.model.errors import RunsteadError
from runstead.node import ahead


def python() -> list[Finding]:
    """Say which Python and uv there are."""
    found = [Finding(Level.OK, "Python", f"{platform.python_version()} at {sys.executable}")]
    uv = find_uv()
    if uv is None:
        return [*found, Finding(Level.MISSING, "uv", "not found: `hf jobs uv run` needs it", "pip install uv")]
    return [*found, Finding(Level.OK, "uv", f"{_version_of(uv)} at {uv}")]


def find_uv() -> str | None:
    """Return the uv beside this Python, which Runstead installs, else the one on PATH."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else shutil.which("uv")


def _version_of(program: str) -> str:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown version"
    match = re.search(r"\d+\.\d+\S*", said)
    return match[0] if match else "unknown version"


def kernel() -> list[Finding]:
    """Say what the system offers to keep jobs apart."""
    if sys.platform != "linux":
        return [Finding(Level.NOTE, "system", f"{platform.system()}: jobs are plain processes", "use Linux to isolate")]
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    parts = [f"Linux {platform.release()}, as {who}", _cgroups(), _user_namespaces()]
    return [Finding(Level.NOTE, "system", "; ".join(parts))]


def _cgroups() -> str:
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").is_file():
        return "no cgroup v2"
    own = next((x[3:] for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::")), "/")
    writable = os.access(root / own.lstrip("/"), os.W_OK)
    return "cgroup v2, " + ("writable" if writable else "not writable")


def _user_namespaces() -> str:
    switches = {
        "kernel/unprivileged_userns_clone": "0",
        "user/max_user_namespaces": "0",
        "kernel/apparmor_restrict_unprivileged_userns": "1",
    }
    for name, off in switches.items():
        switch = Path("/proc/sys") / name
        if switch.is_file() and switch.read_text().strip() == off:
            return f"user namespaces off for ordinary users ({name.replace('/', '.')}={off})"
    return "user namespaces on"


def executor(settings: Settings) -> list[Finding]:
    """Open the executor that the settings name, as `serve` would, and say what it can do."""
    from runstead.app.executors import build_executor, no_containers
    from runstead.app.hardware import build_hardware
    from runstead.app.volumes import unmountable
    from runstead.executors.interface import Shortfall

    async def look(aside: Settings) -> list[Finding]:
        opened = build_executor(aside, wake=lambda _kind, _id: None)
        capabilities = await opened.open()
        await opened.close()
        found = [Finding(Level.OK, "executor", capabilities.kind)]
        if settings.executor.kind == "auto" and (lacking := no_containers(settings)) is not None:
            found.append(Finding(Level.NOTE, "executor", f"no containers, because {lacking}"))
        found += [Finding(Level.NOTE, "executor", note) for note in capabilities.notes]
        found += [Finding(Level.NOTE, "executor", one.value) for one in Shortfall if one in capabilities.shortfalls]
        found += [Finding(Level.MISSING, "executor", missing) for missing in capabilities.missing]
        found.append(_volumes(capabilities, unmountable(settings)))
        found.append(_forks(capabilities))
        found += _warm(capabilities, settings)
        machine = capabilities.machine
        if machine is not None:
            gpus = ", ".join(gpu.model for gpu in machine.gpus) or "no GPU"
            amounts = f"{machine.cpu_millicores / 1000:g} cores, {machine.memory_bytes / 1e9:.1f} GB memory"
            found.append(Finding(Level.OK, "for jobs", f"{amounts}, {machine.disk_bytes / 1e9:.0f} GB disk, {gpus}"))
        flavors = [flavor.name for flavor in build_hardware(aside, capabilities).flavors()]
        return [*found, Finding(Level.OK if flavors else Level.FAILED, "flavors", ", ".join(flavors) or "none")]

    with tempfile.TemporaryDirectory(prefix="runstead-doctor-") as folder:
        server = settings.server.model_copy(update={"data_dir": Path(folder)})
        try:
            return asyncio.run(look(settings.model_copy(update={"server": server})))
        except RunsteadError as error:
            return [Finding(Level.FAILED, "executor", error.message)]


def _volumes(capabilities: Capabilities, lacking: str | None) -> Finding:
    if not capabilities.volumes:
        return Finding(Level.MISSING, "volumes", capabilities.without_volumes)
    if lacking is None:
        return Finding(Level.OK, "volumes", "mounted: read when opened, saved as files are closed")
    return Finding(Level.NOTE, "volumes", f"filled before a job starts and saved after its end, because {lacking}")


def _forks(capabilities: Capabilities) -> Finding:
    if capabilities.snapshots:
        return Finding(Level.OK, "sandboxes", "can be forked (`runstead sandbox fork`)")
    return Finding(Level.MISSING, "sandboxes", f"cannot be forked: {capabilities.without_snapshots}")


def _warm(capabilities: Capabilities, settings: Settings) -> list[Finding]:
    """Say how many of the containers that `sandbox.warm` asks for are there."""
    wanted = sum(settings.sandbox.counts().values())
    if not wanted:
        return []
    if not capabilities.prepared:
        remedy = "use --executor oci, or leave sandbox.warm away"
        return [Finding(Level.MISSING, "sandboxes", capabilities.without_prepared, remedy)]
    folder = settings.server.data_dir / "node" / ahead.FOLDER
    there = len(list(folder.iterdir())) if folder.is_dir() else 0
    return [Finding(Level.OK, "sandboxes", f"{there} of {wanted} containers wait for sandboxes (sandbox.warm)")]


def port(settings: Settings) -> list[Finding]:
    """Say whether the server's address can be listened on."""
    host, number = settings.server.host, settings.server.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        text = f"{host}:{number} cannot be listened on: {error.strerror}"
        return [Finding(Level.FAILED, "address", text, "a server may be running already; or choose another --port")]
    return [Finding(Level.OK, "address", f"{host}:{number} is free")]


def handed_over(settings: Settings) -> list[Finding]:
    """Name the variables that jobs get from here, and those among them that hold a password."""
    given = [name for name in settings.executor.pass_environment if os.environ.get(name)]
    secret = [name for name in given if re.search(r"://[^/@\s]*:[^/@\s]+@", os.environ[name])]
    found = [Finding(Level.NOTE, "environment", f"jobs are given {', '.join(given)}")] if given else []
    for name in secret:
        remedy = "on a shared server, take it out of [executor] pass_environment"
        found.append(Finding(Level.MISSING, "environment", f"{name} holds a password, and jobs see it", remedy))
    return found


def certificates() -> list[Finding]:
    """Say whether programs here can check whom they talk to."""
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath) if paths.capath else None
    if (paths.cafile and Path(paths.cafile).is_file()) or (folder and any(folder.iterdir())):
        return []
    remedy = "apt install ca-certificates, or set SSL_CERT_FILE"
    return [Finding(Level.MISSING, "certificates", "no certificate authorities: downloads may fail", remedy)]
