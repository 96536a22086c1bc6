"""What this machine has for jobs: processors, memory, disk and accelerators, as this process may use them."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from runstead.model.hardware import Gpu, Machine
from runstead.model.launches import GpuUsage

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# What the server, its supervisors and the system keep for themselves.
_RESERVED_MEMORY_BYTES = 512 << 20


def find_machine(data_dir: Path) -> Machine:
    """Look at the machine, or at the container in which this server runs."""
    memory = _memory_bytes()
    return Machine(
        cpu_millicores=_cpu_millicores(),
        memory_bytes=max(memory - _RESERVED_MEMORY_BYTES, memory // 2),
        disk_bytes=shutil.disk_usage(data_dir).free,
        gpus=find_gpus(),
        arch=_ARCHITECTURES.get(platform.machine()),
    )


def _cpu_millicores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return usable * 1000 if quota is None else min(usable * 1000, quota)


def _cpu_quota() -> int | None:
    """Return the processor limit of our own control group, in thousandths."""
    quotas: list[int] = []
    for folder in _own_groups("cpu"):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            quotas.append(int(words[0]) * 1000 // int(words[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            quotas.append(int(quota) * 1000 // int(period))
    return min(quotas, default=None)


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _own_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit():
                total = min(total, int(text))
    return total


def _own_groups(controller: str) -> list[Path]:
    """Return the directories of our control group and of those above it, for a controller."""
    found: list[Path] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            mounts = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
        elif controller in names.split(","):
            mounts = [Path("/sys/fs/cgroup") / controller, Path("/sys/fs/cgroup") / names]
        else:
            continue
        for mount in mounts:
            own = mount / path.lstrip("/")
            chain = [own, *own.parents]
            found.extend(folder for folder in chain if folder == mount or mount in folder.parents)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def find_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA devices that the driver's own tool tells of."""
    rows = _ask_nvidia("index,name,memory.total")
    return tuple(Gpu(id=row[0], model=_model(row[1]), memory_bytes=int(float(row[2])) << 20) for row in rows)


def gpu_usage(gpu_ids: tuple[str, ...]) -> dict[str, GpuUsage]:
    """Return the present use of some devices. Runs a program: not for the event loop."""
    if not gpu_ids:
        return {}
    rows = _ask_nvidia("index,utilization.gpu,memory.used,memory.total", gpu_ids)
    return {
        row[0]: GpuUsage(
            utilization_percent=_number(row[1]),
            memory_used_bytes=int(_number(row[2])) << 20,
            memory_total_bytes=int(_number(row[3])) << 20,
        )
        for row in rows
    }


def gpu_devices(gpu_id: str) -> list[str]:
    """Return the device nodes of one GPU."""
    return [f"/dev/nvidia{gpu_id}"]


def shared_gpu_devices() -> list[str]:
    """Return the device nodes that every user of a GPU needs."""
    names = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
    return [f"/dev/{name}" for name in names if Path("/dev", name).exists()]


def _model(name: str) -> str:
    return name.removeprefix("NVIDIA ").strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]": some devices do not tell
        return 0.0


def _ask_nvidia(fields: str, gpu_ids: tuple[str, ...] = ()) -> list[list[str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    chosen = [f"--id={','.join(gpu_ids)}"] if gpu_ids else []
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits", *chosen],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    return [row for row in rows if len(row) == fields.count(",") + 1]
