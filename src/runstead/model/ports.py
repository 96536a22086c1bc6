"""Which ports of a job can be reached from outside, and which group of jobs it speaks with."""

from dataclasses import dataclass

MAX_PORTS = 20
HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Ports:
    """The exposed ports of a job, each once, in the order they were asked for."""

    exposed: tuple[int, ...] = ()
    public: tuple[int, ...] = ()  # those of `exposed` that need no token

    def __bool__(self) -> bool:
        """Say whether there is any."""
        return bool(self.exposed)


@dataclass(frozen=True, slots=True)
class NetworkGroup:
    """A group of jobs of one namespace and resource group that reach each other on every port."""

    name: str
    aliases: tuple[str, ...] = ()  # under which members find this job, beside the name of the group
