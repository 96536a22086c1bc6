"""Which flavors a server has, and what they cost."""

from dataclasses import replace

import structlog

from runstead.executors.interface import Capabilities
from runstead.kit.settings import Settings
from runstead.model.costs import MICRO
from runstead.model.hardware import Accelerator, Flavor
from runstead.services.hardware import Hardware, derive_flavors

log = structlog.get_logger()


def build_hardware(settings: Settings, capabilities: Capabilities) -> Hardware:
    """Return the flavors: those of the configuration, else what the machine has."""
    if settings.flavors:
        flavors = [_flavor(name, settings, capabilities) for name in settings.flavors]
    elif capabilities.machine is not None:
        flavors = derive_flavors(capabilities.machine)
    else:
        flavors = []
    priced = [replace(one, price_micro_usd=round(settings.prices.get(one.name, 0) * MICRO)) for one in flavors]
    for name in settings.prices.keys() - {one.name for one in flavors}:
        log.warning("a price is set for a flavor that this server does not have", flavor=name)
    return Hardware(priced, capabilities.machine, settings.executor.cpu_overcommit)


def _flavor(name: str, settings: Settings, capabilities: Capabilities) -> Flavor:
    chosen = settings.flavors[name]
    accelerator = None
    if chosen.gpus:
        gpus = capabilities.machine.gpus if capabilities.machine else ()
        model = gpus[0].model if gpus else "GPU"
        accelerator = Accelerator("gpu", model, chosen.gpus, gpus[0].memory_bytes if gpus else 0, "Nvidia")
    pretty = chosen.pretty_name or f"{chosen.cpu:g} vCPU, {chosen.memory / 1e9:.3g} GB"
    return Flavor(name, pretty, int(chosen.cpu * 1000), chosen.memory, chosen.disk, accelerator)
