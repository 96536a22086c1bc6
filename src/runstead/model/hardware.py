"""Flavors and the machine they are cut from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What kind of accelerator a flavor carries, and how many of them."""

    type: str  # "gpu"
    model: str  # "H200"
    quantity: int
    memory_bytes: int  # per device
    manufacturer: str  # "Nvidia"


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of a machine: what a job reserves, and what a machine has."""

    cpu_millicores: int
    memory_bytes: int
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Flavor:
    """A size of job that users may ask for by name."""

    name: str
    pretty_name: str
    cpu_millicores: int
    memory_bytes: int
    disk_bytes: int | None  # None: not limited, hence not promised
    accelerator: Accelerator | None = None
    price_micro_usd: int = 0  # per minute, in millionths of the site's currency

    @property
    def resources(self) -> Resources:
        """What a job of this flavor reserves while it runs."""
        gpus = self.accelerator.quantity if self.accelerator else 0
        return Resources(self.cpu_millicores, self.memory_bytes, gpus)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device of the machine. `id` is what the executor needs to hand it to a job."""

    id: str
    model: str
    memory_bytes: int
    manufacturer: str = "Nvidia"


@dataclass(frozen=True, slots=True)
class Machine:
    """What one machine offers to jobs, as found at start or named in the configuration."""

    cpu_millicores: int
    memory_bytes: int
    disk_bytes: int
    gpus: tuple[Gpu, ...] = ()
    arch: str | None = None  # "amd64", "arm64", as the wire spells it; None: not known
