"""What a launcher is asked to start, as it travels over its socket and nowhere else: it holds secrets."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


NO_NETWORK = "none"  # nothing but a loopback of its own
ENGINE = "engine"  # isolation is the business of a container engine


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
        "snapshots",
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
        snapshots: list[str] | None = None,
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
        self.snapshots = snapshots or []  # what the job's own directories begin with, lowest first


class Container:
    """The root of a job that runs from an image: what makes it, beside the image's own layers. Paths as in View."""

    __slots__ = (
        "binds",
        "devices",
        "disk",
        "environment",
        "files",
        "filtered",
        "layers",
        "libraries",
        "links",
        "passed",
        "private_ids",
        "runtime",
        "shared_memory_bytes",
        "snapshots",
        "user",
        "working_dir",
    )

    def __init__(
        self,
        *,
        layers: list[str],
        environment: dict[str, str],
        passed: dict[str, str],
        working_dir: str,
        user: str,
        files: list[list[str]],
        binds: list[list[str]],
        devices: list[list[str]],
        links: list[list[str]],
        libraries: list[str],
        shared_memory_bytes: int,
        disk: str | None,
        snapshots: list[str] | None = None,
        private_ids: bool,
        filtered: bool,
        runtime: str,
    ) -> None:
        self.layers = layers  # unpacked, lowest first
        self.environment = environment  # the image's; weaker than what the launch says
        self.passed = passed  # what all jobs get; weaker than the image's
        self.working_dir = working_dir  # made where it is missing
        self.user = user  # as USER of a Dockerfile
        self.files = files  # small files of our own: [path, text]
        self.binds = binds  # files and directories shown read-only: [source, path]
        self.devices = devices  # device nodes: [source, path]
        self.links = links  # symbolic links to make where nothing is: [path, target]
        self.libraries = libraries  # directories to make known to the dynamic linker
        self.shared_memory_bytes = shared_memory_bytes  # of /dev/shm
        self.disk = disk  # a file system of the right size to copy; None: as much as there is
        self.snapshots = snapshots or []  # files over the layers, lowest first, already with the machine's ids
        self.private_ids = private_ids  # whether ids are shifted into the range of the namespace
        self.filtered = filtered  # whether system calls are
        self.runtime = runtime  # path of the OCI runtime that makes the container; empty: we do


class EngineContainer:
    """What a container engine of the machine is asked for, beside what the request says."""

    __slots__ = (
        "binds",
        "entered",
        "environment",
        "gpus",
        "image",
        "instance",
        "machine",
        "name",
        "network",
        "shared_memory_bytes",
        "socket",
        "ulimits",
    )

    def __init__(
        self,
        *,
        socket: str,
        name: str,
        instance: str,
        image: str,
        network: str,
        environment: dict[str, str],
        binds: list[str],
        shared_memory_bytes: int,
        ulimits: "list[list[Any]]",
        entered: bool,
        machine: str,
        gpus: "dict[str, Any]",
    ) -> None:
        self.socket = socket  # path
        self.name = name  # of the container
        self.instance = instance
        self.image = image  # which the engine has
        self.network = network  # as the engine calls it
        self.environment = environment  # what all jobs get; weaker than what the launch says
        self.binds = binds  # files and directories of the machine, shown read-only where they are
        self.shared_memory_bytes = shared_memory_bytes  # of /dev/shm
        self.ulimits = ulimits  # [name, soft, hard]
        self.machine = machine  # kind of its processors
        self.gpus = gpus  # what the engine is told about GPUs, as part of its HostConfig
        self.entered = entered  # whether its processes are this machine's, so that we can go in


class Request:
    """One attempt to start."""

    __slots__ = (
        "address",
        "argv",
        "attempt",
        "cgroups",
        "container",
        "cpu_millicores",
        "devices",
        "divided",
        "engine",
        "environment",
        "gpu_ids",
        "grace_seconds",
        "hosts",
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
        gpu_ids: list[str],
        timeout_seconds: float,
        grace_seconds: float,
        log_path: str,
        log_not_before: int,
        log_limit_bytes: int,
        preamble: list[str],
        isolation: str,
        network: str | None,
        address: str | None,
        hosts: list[list[str]],
        cgroups: list[list[str]],
        mounts: list[list[str]],
        view: View | None,
        container: Container | None,
        engine: EngineContainer | None = None,
        divided: bool = False,
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
        self.gpu_ids = gpu_ids  # which of the machine's are the job's, as the driver numbers them
        self.timeout_seconds = timeout_seconds
        self.grace_seconds = grace_seconds  # between SIGTERM and SIGKILL at the deadline
        self.log_path = log_path
        self.log_not_before = log_not_before  # microseconds since 1970
        self.log_limit_bytes = log_limit_bytes
        self.preamble = preamble
        self.isolation = isolation  # "root", "user", "none", or ENGINE
        self.network = network  # path of a network namespace, or NO_NETWORK; None: the machine's own
        self.address = address  # of the job in that network
        self.hosts = hosts  # names that the job knows without asking anybody: [address, name]
        self.cgroups = cgroups  # [kind, directory] in which to make one for the job
        self.mounts = mounts  # volumes: [directory of the machine, absolute path in the job, "ro" or "rw"]
        self.view = view  # of the machine, for a job that runs on its system; else None
        self.container = container  # for a job that runs from an image; else None
        self.engine = engine  # for a job that a container engine runs; else None
        self.divided = divided  # whether compartments will be made in it

    def fill(self, text: str) -> str:
        """Put what is known of this attempt into the text of a small file."""
        hosts = "".join(f"{address} {name}\n" for address, name in self.hosts)
        names = {"@hostname@": self.job_id, "@address@": self.address or "127.0.1.1", "@hosts@": hosts}
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    def to_message(self) -> "dict[str, Any]":
        """Return the form that travels."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        for key, kind in _PARTS:
            if fields[key] is not None:
                fields[key] = {name: getattr(fields[key], name) for name in kind.__slots__}
        return {"op": "start", **fields}

    @staticmethod
    def from_message(message: "dict[str, Any]") -> "Request":
        """Read the form that travels. Raises TypeError when sender and receiver are of different versions."""
        fields = {name: value for name, value in message.items() if name != "op"}
        for key, kind in _PARTS:
            if fields[key] is not None:
                fields[key] = kind(**fields[key])
        return Request(**fields)


_PARTS = (("view", View), ("container", Container), ("engine", EngineContainer))
