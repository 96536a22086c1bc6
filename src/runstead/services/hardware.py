"""Flavors: what the machine really has, under the names people already use.

`cpu-basic` is the client's default and always exists. GPU flavors carry the Hub's names where the Hub has one
for the model, so that scripts written for it run unchanged.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from runstead.model.errors import Invalid, Unsupported
from runstead.model.hardware import Accelerator, Flavor, Gpu, Machine, Resources

DEFAULT_FLAVOR = "cpu-basic"
_BASIC_CORES = 2
_BASIC_SHARE = 8  # of the machine's memory, so that several small jobs run side by side
_BASIC_MEMORY = 16 * 1024**3

# The Hub's flavor for one device of a model (huggingface_hub 2.4.0, SpaceHardware), most specific first.
_HUB_NAMES: Sequence[tuple[str, str, str]] = (
    (r"RTX PRO 6000", "rtx-pro-6000", "rtx-pro-6000x{n}"),
    (r"H200", "h200", "h200x{n}"),
    (r"A100", "a100-large", "a100x{n}"),
    (r"A10G?\b", "a10g-large", "a10g-largex{n}"),
    (r"L40S", "l40sx1", "l40sx{n}"),
    (r"L4\b", "l4x1", "l4x{n}"),
    (r"T4\b", "t4-small", "t4-smallx{n}"),
)


class Hardware:
    """The flavors of this server, and whether a job may have one."""

    def __init__(self, flavors: Iterable[Flavor], machine: Machine | None, cpu_overcommit: float) -> None:
        self._flavors = {flavor.name: flavor for flavor in flavors}
        self.machine = machine
        self._cpu_overcommit = cpu_overcommit

    def flavors(self) -> list[Flavor]:
        """Return all flavors, smallest first."""
        return list(self._flavors.values())

    def flavor(self, name: str) -> Flavor:
        """Return the flavor of that name. Raises Invalid with the names there are, Unsupported if it never fits."""
        flavor = self._flavors.get(name)
        if flavor is None:
            known = ", ".join(self._flavors)
            raise Invalid(f"this server has no flavor {name[:100]!r}; it has {known}", "flavor")
        capacity = self.capacity
        wanted = flavor.resources
        if capacity is not None and (
            wanted.cpu_millicores > capacity.cpu_millicores
            or wanted.memory_bytes > capacity.memory_bytes
            or wanted.gpus > capacity.gpus
        ):
            raise Unsupported(f"flavor: {name!r} is configured larger than what the machine offers to jobs")
        return flavor

    def check_arch(self, arch: str | None) -> None:
        """Refuse a job for processors that this machine does not have. Raises Unsupported."""
        here = self.machine.arch if self.machine else None
        if arch is not None and here is not None and arch != here:
            raise Unsupported(f"arch: the processors here are {here}, not {arch}")

    @property
    def capacity(self) -> Resources | None:
        """What may be promised to jobs altogether; None when the backend decides."""
        if self.machine is None:
            return None
        cpu = int(self.machine.cpu_millicores * self._cpu_overcommit)
        return Resources(cpu, self.machine.memory_bytes, len(self.machine.gpus))


def derive_flavors(machine: Machine) -> list[Flavor]:
    """Return the flavors a machine offers when the configuration names none."""
    whole = Flavor(
        "cpu-performance", "CPU performance", machine.cpu_millicores, machine.memory_bytes, machine.disk_bytes
    )
    half = replace(
        whole,
        name="cpu-upgrade",
        pretty_name="CPU upgrade",
        cpu_millicores=max(machine.cpu_millicores // 2, min(1000, machine.cpu_millicores)),
        memory_bytes=machine.memory_bytes // 2,
        disk_bytes=machine.disk_bytes // 2,
    )
    basic = replace(
        whole,
        name=DEFAULT_FLAVOR,
        pretty_name="CPU basic",
        cpu_millicores=min(_BASIC_CORES * 1000, machine.cpu_millicores),
        memory_bytes=min(_BASIC_MEMORY, max(machine.memory_bytes // _BASIC_SHARE, min(2**30, machine.memory_bytes))),
        disk_bytes=machine.disk_bytes // _BASIC_SHARE,
    )
    # On a small machine half of it is no more than the basic size.
    middle = [half] if half.cpu_millicores > basic.cpu_millicores else []
    return [basic, *middle, whole, *_gpu_flavors(machine)]


def _gpu_flavors(machine: Machine) -> list[Flavor]:
    by_model: dict[str, list[Gpu]] = {}
    for gpu in machine.gpus:
        by_model.setdefault(gpu.model, []).append(gpu)
    flavors: list[Flavor] = []
    for model, gpus in by_model.items():
        one, many = _names_of(model)
        quantity = 1
        while quantity <= len(gpus):
            share = quantity / len(machine.gpus)
            flavors.append(
                Flavor(
                    name=one if quantity == 1 else many.format(n=quantity),
                    pretty_name=f"{quantity}x {gpus[0].manufacturer} {model}",
                    cpu_millicores=max(int(machine.cpu_millicores * share), min(1000, machine.cpu_millicores)),
                    memory_bytes=int(machine.memory_bytes * share),
                    disk_bytes=int(machine.disk_bytes * share),
                    accelerator=Accelerator("gpu", model, quantity, gpus[0].memory_bytes, gpus[0].manufacturer),
                )
            )
            quantity = len(gpus) if quantity < len(gpus) < quantity * 2 else quantity * 2
    return flavors


def _names_of(model: str) -> tuple[str, str]:
    for pattern, one, many in _HUB_NAMES:
        if re.search(pattern, model, re.IGNORECASE):
            return one, many
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower().replace("nvidia", "").replace("geforce", "")).strip("-")
    return f"{slug}x1", f"{slug}x{{n}}"
