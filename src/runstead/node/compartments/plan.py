"""What has to be known of one compartment to make it."""

from runstead.node.compartments.attempt import BASE, Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Plan:
    """One compartment to be."""

    def __init__(
        self, name: str, uid: int, network: str | None, limits: "dict[str, Any]", attempt: Attempt, hosts: str | None
    ) -> None:
        self.name = name
        self.uid = uid
        self.network = network  # path of its network namespace; None: a new one, without a way out
        self.limits = limits
        self.attempt = attempt
        self.hosts = hosts  # lines for its hosts file; None: as the attempt's
        self.home = f"{BASE}/homes/{name}"
