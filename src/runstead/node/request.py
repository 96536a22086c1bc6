"""What a launcher is asked to start, as it travels over its socket and nowhere else: it holds secrets."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


NO_NETWORK = "none"  # nothing but a loopback of its own


class View:
    """What a job may see of the machine. The executor works it out once; it is the same for every job.

    Paths on the left are the machine's, paths on the right the job's.
    """

    __slots__ = (
        "binds",
        "environment",
        "files",
        "hidden",
        "links",
        "path",
        "pip_paths",
        "python",
        "python_version",
        "sys",
        "trees",
    )

    def __init__(
        self,
        *,
        trees: list[str],
        links: list[list[str]],
        hidden: list[str],
        binds: list[list[str]],
        files: list[list[str]],
        sys: list[str],
        python: str,
        python_version: str,
        pip_paths: list[str],
        path: str,
        environment: dict[str, str],
    ) -> None:
        self.trees = trees  # directories shown read-only with all that is mounted below them
        self.links = links  # symbolic links in the root: [path, target]
        self.hidden = hidden  # directories inside of trees that appear empty
        self.binds = binds  # single files and directories shown read-only: [source, destination]
        self.files = files  # small files of our own: [destination, text]
        self.sys = sys  # parts of /sys to show
        self.python = python
        self.python_version = python_version
        self.pip_paths = pip_paths  # directories that make `import pip` work
        self.path = path  # PATH behind the job's own directories
        self.environment = environment  # weaker than what the launch says


class Request:
    """One attempt to start."""

    __slots__ = (
        "address",
        "argv",
        "attempt",
        "cgroups",
        "cpu_millicores",
        "devices",
        "environment",
        "grace_seconds",
        "isolation",
        "job_id",
        "log_limit_bytes",
        "log_not_before",
        "log_path",
        "memory_bytes",
        "mounts",
        "namespace",
        "network",
        "pids_limit",
        "preamble",
        "timeout_seconds",
        "view",
    )

    def __init__(
        self,
        *,
        job_id: str,
        attempt: int,
        namespace: str,
        argv: list[str],
        environment: dict[str, str],
        cpu_millicores: int,
        memory_bytes: int,
        pids_limit: int,
        devices: list[str],
        timeout_seconds: float,
        grace_seconds: float,
        log_path: str,
        log_not_before: int,
        log_limit_bytes: int,
        preamble: list[str],
        isolation: str,
        network: str | None,
        address: str | None,
        cgroups: list[list[str]],
        mounts: list[list[str]],
        view: View,
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.namespace = namespace
        self.argv = argv
        self.environment = environment
        self.cpu_millicores = cpu_millicores
        self.memory_bytes = memory_bytes
        self.pids_limit = pids_limit
        self.devices = devices  # device nodes beyond the usual ones
        self.timeout_seconds = timeout_seconds
        self.grace_seconds = grace_seconds  # between SIGTERM and SIGKILL at the deadline
        self.log_path = log_path
        self.log_not_before = log_not_before  # microseconds since 1970
        self.log_limit_bytes = log_limit_bytes
        self.preamble = preamble
        self.isolation = isolation  # "root", "user" or "none"
        self.network = network  # path of a network namespace, or NO_NETWORK; None: the machine's own
        self.address = address  # of the job in that network
        self.cgroups = cgroups  # [kind, directory] in which to make one for the job
        self.mounts = mounts  # volumes: [directory of the machine, absolute path in the job, "ro" or "rw"]
        self.view = view

    def to_message(self) -> "dict[str, Any]":
        """Return the form that travels."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["view"] = {name: getattr(self.view, name) for name in View.__slots__}
        return {"op": "start", **fields}

    @staticmethod
    def from_message(message: "dict[str, Any]") -> "Request":
        """Read the form that travels. Raises TypeError when sender and receiver are of different versions."""
        fields = {name: value for name, value in message.items() if name != "op"}
        fields["view"] = View(**fields["view"])
        return Request(**fields)
