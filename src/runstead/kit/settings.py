"""Every setting of the server, with its unit, its default and why; and how the effective values are found.

Later wins: defaults, one TOML file, environment variables `RUNSTEAD_<SECTION>_<KEY>`, flags. What is not a
setting is refused, never ignored. `docs/configuration.md` is generated from this file.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from runstead.kit import sources
from runstead.kit.sizes import format_size, parse_size
from runstead.kit.sources import Given, SettingsError
from runstead.kit.targets import parse_target

# Proxies, package indexes, certificates: without them a job on a company network cannot install anything. And the
# time zone.
PASSED_BY_DEFAULT = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "TZ",
)


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _subnet(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise ValueError('should be an IPv4 network such as "10.213.0.0/16"') from error
    if network.prefixlen > 24:
        raise ValueError("should have room for jobs: a prefix of at most /24")
    return str(network)


def _targets(value: tuple[str, ...]) -> tuple[str, ...]:
    for target in value:
        parse_target(target)
    return value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f'should be addresses or networks such as "10.0.0.5" or "10.0.0.0/24": {error}') from error
    return value


def _endpoint(value: str) -> str:
    if value not in ("auto", "off") and not value.startswith(("http://", "https://")):
        raise ValueError('should be "auto", "off", or a URL that begins with http:// or https://')
    return value.rstrip("/")


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("should be a URL that begins with http:// or https://")
    return value.rstrip("/")


def _domain(value: str) -> str:
    label = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
    if not re.fullmatch(rf"(?:https?://)?{label}(?:\.{label})*(?::\d{{1,5}})?/?", value):
        raise ValueError("should be a domain in lower case, with http:// or https:// and a port if need be")
    return value.rstrip("/")


def _database_url(value: str) -> str:
    if not value.startswith(("sqlite:", "postgresql:", "postgres:", "postgresql+psycopg:")):
        raise ValueError('should begin with "sqlite:" or "postgresql:"')
    return value


def mask(value: object) -> str:
    """Return how a value may be shown: as it is, but for a password inside a URL."""
    return re.sub(r"(?<=://)([^/@\s:]*):[^/@\s]*@", r"\1:***@", str(value))


def _path(value: Path) -> Path:
    return value.expanduser().absolute()


READS_SIZE = BeforeValidator(_size)  # also marks a setting as an amount of bytes
Size = Annotated[
    int,
    READS_SIZE,
    Field(gt=0),
    PlainSerializer(format_size, return_type=str, when_used="json"),
]
FlavorName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where data is kept when nobody said: `$XDG_DATA_HOME/runstead`, else `~/.local/share/runstead`."""
    home = Path(environment.get("HOME") or Path.home())
    return Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share") / "runstead"


class Section(BaseModel):
    """A group of settings: frozen, and without room for what is not a setting."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False)


class ServerSettings(Section):
    """The HTTP server and where it keeps its data."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. The default serves this machine alone: tokens travel unencrypted, so set "
        "`proxy.tls`, or put a TLS proxy in front, before others may reach it.",
    )
    port: int = Field(
        default=5627,
        ge=0,
        le=65535,
        description="TCP port to listen on; 0 takes a free one. 5627 spells JOBS on a telephone keypad, and "
        "no common program listens there.",
    )
    data_dir: Annotated[Path, AfterValidator(_path)] = Field(
        default_factory=default_data_dir,
        description="Directory for the database, logs, keys and job directories. One server at a time uses it; it "
        "must be on a local file system. Unset: `$XDG_DATA_HOME/runstead`, else `~/.local/share/runstead`.",
    )
    public_url: Annotated[str, AfterValidator(_url)] | None = Field(
        default=None,
        description="The URL clients reach the server by, when it is not the address it listens on: behind a proxy, "
        "in a container. Used for every absolute link in an answer.",
    )
    trusted_proxies: Annotated[Names, AfterValidator(_networks)] = Field(
        default=(),
        description="Proxies in front of this server, as addresses or networks, such as `127.0.0.1, 10.0.0.0/24`. "
        "Whose connection comes from there, of them `X-Forwarded-For` and `X-Forwarded-Proto` are believed: they say "
        "who the client is, to jobs too, and that it spoke https. From everybody else these fields are ignored.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important message the server's own log still shows."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How the server's own log is written: for people, or one JSON object a line."
    )
    max_body_bytes: Size = Field(
        default=16_000_000,
        description="Largest JSON request body, in bytes; a larger one is answered 413. It bounds the memory one "
        "request may take; files are not sent in such bodies.",
    )


class DatabaseSettings(Section):
    """Where accounts and jobs are remembered."""

    url: Annotated[str, AfterValidator(_database_url)] | None = Field(
        default=None,
        description="SQLAlchemy URL, `sqlite:////path/to/file` or `postgresql://user:password@host/name`. Unset: "
        "SQLite in the data directory, which is enough for one server.",
    )


class JobsSettings(Section):
    """What holds for every job."""

    default_timeout_seconds: int = Field(
        default=1800, gt=0, description="Time limit of a job that names none, in seconds. 30 minutes, as on the Hub."
    )
    max_timeout_seconds: int | None = Field(
        default=None,
        gt=0,
        description="Longest time limit a job may ask for, in seconds; a longer one is refused. Unset: no limit.",
    )
    cancel_grace_seconds: float = Field(
        default=10,
        ge=0,
        description="Time between SIGTERM and SIGKILL when a job is cancelled or runs out of time, in seconds: what "
        "a program gets to save its state.",
    )
    flush_seconds: float = Field(
        default=3600,
        gt=0,
        description="Time to bring what a job wrote to its volumes into their buckets after its command has ended, in "
        "seconds; also when it was cancelled or ran out of time. What is not there by then is kept on the machine, the "
        "job fails, and `runstead job recover` saves the rest.",
    )
    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        default="auto",
        description="`HF_ENDPOINT` inside jobs. `auto`: this server, at an address the job can reach; `off`: not "
        "set, so that jobs talk to huggingface.co; or a URL.",
    )
    retention_days: float = Field(
        default=90, ge=0, description="Days that a finished job and its log are kept; 0 keeps them for ever."
    )
    script_days: float = Field(
        default=30,
        ge=0,
        description="Days that the scripts are kept which clients send up for `hf jobs uv run`, in the bucket "
        "`jobs-artifacts`; 0 keeps them for ever. A folder into which a job wrote, or that a job which is not over "
        "may use, always stays.",
    )
    poll_seconds: float = Field(
        default=2.0,
        gt=0,
        description="How often jobs are looked at without a reason, in seconds. Changes are noticed at once; this is "
        "for the notice that got lost.",
    )

    @model_validator(mode="after")
    def _default_within_maximum(self) -> "JobsSettings":
        if self.max_timeout_seconds is not None and self.default_timeout_seconds > self.max_timeout_seconds:
            raise ValueError(
                f"default_timeout_seconds ({self.default_timeout_seconds}) should not exceed "
                f"max_timeout_seconds ({self.max_timeout_seconds})"
            )
        return self


class ExecutorSettings(Section):
    """What runs jobs, and how much of the machine they get."""

    kind: Literal["auto", "oci", "process", "docker"] = Field(
        default="auto",
        description="What runs jobs. `oci`: containers of the images that jobs name; needs root on Linux. `process`: "
        "Linux processes in namespaces of their own over this machine's own file system, whatever image they name. "
        "`docker`: containers of the engine that this machine runs already, see `[docker]`; the choice on macOS. "
        "`auto` is oci where this machine can do it, else process; for the servers of `runstead exec`, process.",
    )
    isolation: Literal["auto", "full", "none"] = Field(
        default="auto",
        description="How far jobs are kept apart from the machine and each other. `full` refuses to start where that "
        "is not possible; `auto` does what is possible and says what is missing; `none` is for code you trust.",
    )
    network: Literal["auto", "private", "host", "none"] = Field(
        default="auto",
        description="The network a job sees: its `private` own with access to the outside, the `host`'s, or `none`. "
        "`auto` is private where this machine can do it, else host.",
    )
    subnet: Annotated[str, AfterValidator(_subnet)] | None = Field(
        default=None,
        description='IPv4 network that private job networks are cut from, such as "10.213.0.0/16". Unset: one that '
        "this machine has no route to.",
    )
    runtime: Literal["native", "crun", "runc", "runsc"] = Field(
        default="native",
        description="What makes containers. `native` is the server itself, the fastest. The others are OCI runtimes, "
        "which have to be installed; `runsc` (gVisor) gives jobs a kernel of their own, for code that is not trusted. "
        "In gVisor there is no way into running jobs: no sandboxes, no exposed ports.",
    )
    shared_memory: Size = Field(
        default=67_108_864,
        description="Size of /dev/shm in containers. The default is Docker's; what passes large arrays between "
        "processes, as data loaders do, wants more. It counts as memory of the job.",
    )
    egress: Annotated[Names, AfterValidator(_targets)] = Field(
        default=(),
        description="All that jobs may reach outside of this machine, such as `10.0.0.0/8, pypi.org:443`: networks, "
        "addresses and names, with a port or with all of them. Jobs find the names that are listed in their hosts "
        "file, and reach no name server unless it is listed too. Empty: everything. Where jobs cannot have a network "
        "of their own the server refuses to start with it.",
    )
    volumes: Literal["auto", "fill", "mount"] = Field(
        default="auto",
        description="How buckets appear in jobs. `mount` reads what a job opens, when it opens it, and uploads files "
        "behind as they are closed; it needs a server that runs as root and /dev/fuse. `fill` brings all files of a "
        "volume to the machine before the command starts and saves what changed when it has ended. `auto` mounts "
        "where that is possible, and fills where not.",
    )
    log_limit_bytes: Size = Field(
        default=1_000_000_000,
        description="Largest log of one job, in bytes. What comes after is dropped, and the log says so: one loop "
        "that prints must not fill the disk.",
    )
    pids_limit: int = Field(
        default=8192,
        ge=0,
        description="Processes and threads that one job may have; 0 sets no limit. It stops a job that forks without "
        "end.",
    )
    pass_environment: Names = Field(
        default=PASSED_BY_DEFAULT,
        description="Names of variables of the server's own environment that every job gets too, unless it sets them "
        "itself. The default holds what is needed to reach the internet and a package index. Passwords inside the "
        "values are handed over with them: on a shared server, name only what every user may see.",
    )
    cpu_overcommit: float = Field(
        default=4.0,
        gt=0,
        description="Factor by which more CPU may be promised to jobs than there is: most jobs wait for something most "
        "of the time, and a small machine should still run several. Memory and GPUs are never promised twice.",
    )
    cpus: float | None = Field(
        default=None, gt=0, description="Cores that jobs may use together. Unset: all that this machine has."
    )
    memory: Size | None = Field(
        default=None,
        description="Memory that jobs may use together. Unset: what this machine has, less some for itself.",
    )
    disk: Size | None = Field(
        default=None,
        description="Disk space that jobs may use together. Unset: what is free at start where the data directory is.",
    )


def _objects_url(value: str) -> str:
    if not value.startswith("s3://") or len(value) <= len("s3://"):
        raise ValueError("should be s3://bucket or s3://bucket/prefix")
    return value.rstrip("/")


class ProxySettings(Section):
    """How exposed ports of jobs are reached."""

    domain: Annotated[str, AfterValidator(_domain)] | None = Field(
        default=None,
        description="Domain under which each exposed port has a host name of its own, `<job>--<port>.<domain>`; the "
        "name service must send `*.<domain>` to this server. A name, or a URL when clients use another port or "
        'https: "https://jobs.example.com:8443". Unset: ports are reached by a path of the server\'s own URL, which '
        "needs no name service.",
    )
    tls: Literal["off", "own", "files"] = Field(
        default="off",
        description="Whether the port of the server speaks https too. `own`: with a certificate that this server makes "
        "and renews; `runstead tls ca` prints the file that clients must trust. `files`: with that of "
        "`certificate` and `key`. Plain http goes on to be served on the same port.",
    )
    certificate: Annotated[Path, AfterValidator(_path)] | None = Field(
        default=None,
        description="File with the certificate and those up to its authority, in PEM. It should hold for the name in "
        "`server.public_url` and for `*.` in front of the domain. When it is renewed, both files are read again within "
        "seconds; while they are no pair, the one before stays in use.",
    )
    key: Annotated[Path, AfterValidator(_path)] | None = Field(
        default=None, description="File with the private key of the certificate, in PEM and without a password."
    )
    answer_seconds: float = Field(
        default=900,
        gt=0,
        description="Time that a program in a job has to begin its answer, in seconds; then the client gets 504. "
        "Bodies and WebSockets may take as long as they like.",
    )

    @model_validator(mode="after")
    def _files_with_tls(self) -> "ProxySettings":
        given = self.certificate is not None and self.key is not None
        if (self.tls == "files") != given or (self.certificate is None) != (self.key is None):
            raise ValueError('tls = "files" needs certificate and key, and only then they are used')
        return self


class StorageSettings(Section):
    """Where the content of buckets is kept, and for how long."""

    url: Annotated[str, AfterValidator(_objects_url)] | None = Field(
        default=None,
        description="Object store for content: `s3://bucket` or `s3://bucket/prefix`, with credentials from the "
        "environment as every AWS tool reads them (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, ...). Unset: the "
        "folder `content` in the data directory.",
    )
    endpoint: Annotated[str, AfterValidator(_url)] | None = Field(
        default=None, description="URL of an S3-compatible store that is not AWS. Clients read from it too."
    )
    region: str | None = Field(default=None, description="Region of the S3 bucket. Unset: from the environment.")
    url_seconds: int = Field(
        default=3600,
        ge=60,
        le=604_800,
        description="How long a URL to read stored content holds, in seconds: longer than the slowest client needs "
        "for some hundred MB.",
    )
    grace_days: float = Field(
        default=28,
        ge=22,
        description="Days that content nobody refers to is kept after a client was last told that it is here. Clients "
        "remember that for three weeks, so less would make their uploads fail.",
    )
    node_cache_bytes: Size = Field(
        default=20_000_000_000,
        description="Room on the machine that runs jobs for content that jobs have read from buckets, in bytes: the "
        "next job that reads the same moves nothing. What was not used for longest goes first.",
    )
    history_days: float = Field(
        default=30,
        ge=0,
        description="Days that a bucket keeps what was overwritten or deleted; 0 keeps nothing of it.",
    )
    collect_hours: float = Field(
        default=24,
        ge=0,
        description="Hours between two garbage collections by the server; 0 leaves them to `runstead gc`.",
    )


def _mirrors(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        registry, separator, mirror = one.partition("=")
        if not separator or not registry or not mirror or "://" in one:
            raise ValueError('should list mirrors as registry=mirror, such as "docker.io=mirror.example.org"')
    return value


class ImageSettings(Section):
    """Images that jobs run in: where they come from, and how long they are kept on this machine."""

    pull: Literal["missing", "newer", "never"] = Field(
        default="missing",
        description="When the registry is asked. `missing`: for what is not on this machine; `newer`: also whether a "
        "tag means another image by now, if that was last asked `check_hours` ago; `never`: only images that were "
        "loaded or pulled by hand are there. An image named by its digest is never asked for again.",
    )
    check_hours: float = Field(
        default=0,
        ge=0,
        description="Hours that an answer of the registry counts where `pull` is `newer`; 0 asks always.",
    )
    mirrors: Annotated[Names, AfterValidator(_mirrors)] = Field(
        default=(),
        description="Registries to ask first, as `registry=mirror`, such as `docker.io=mirror.example.org:5000`; what "
        "a mirror does not have, or cannot give, comes from the registry itself.",
    )
    insecure: Names = Field(
        default=(),
        description="Registries, as host or host:port, whose certificate is not checked, or that speak plain HTTP. "
        "Those on this machine's loopback always may.",
    )
    registries: Names = Field(
        default=(),
        description="The only registries that jobs may name images of, such as `docker.io, ghcr.io`. Empty: all.",
    )
    auth_file: Annotated[Path, AfterValidator(_path)] | None = Field(
        default=None,
        description="File with credentials of registries, in the format of Docker's `config.json`. Unset: the usual "
        "ones of the server's user, `$REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`, "
        "`~/.config/containers/auth.json`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`; with credential "
        "helpers. Every user of this server can use images that these give access to.",
    )
    store_bytes: Size = Field(
        default=100_000_000_000,
        description="Room for unpacked images on this machine, in bytes. Beyond it, images that no job uses are "
        "removed, those that were not used for longest first.",
    )
    unused_days: float = Field(
        default=30, ge=0, description="Days that an image which no job uses is kept; 0 keeps it for ever."
    )
    max_image_bytes: Size = Field(
        default=64_000_000_000,
        description="Largest image, unpacked, in bytes; a larger one is refused while it is unpacked.",
    )
    max_image_files: int = Field(
        default=4_000_000, gt=0, description="Most files and directories of one image; one with more is refused."
    )
    layers_at_once: int = Field(
        default=3, ge=1, le=16, description="Layers of an image that are fetched and unpacked at the same time."
    )
    stall_seconds: float = Field(
        default=60,
        gt=0,
        description="Time without a byte from a registry after which the connection is made anew, in seconds.",
    )


def _time_zone(value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError('should be a time zone like "UTC" or "Europe/Berlin"') from error


class ScheduleSettings(Section):
    """When scheduled jobs run."""

    time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC",
        description="Time zone that schedules are written in, such as `Europe/Berlin`. The Hub's is UTC. It holds for "
        "all schedules, also for those that are there when it is changed.",
    )
    catch_up: Literal["once", "skip", "all"] = Field(
        default="once",
        description="What becomes of the runs that were due while no server ran, for more than a minute. `once`: one "
        "run for all that a schedule missed; `skip`: none; `all`: each of them, at most the last 1,000.",
    )


class FlavorSettings(Section):
    """A size of job that users ask for by name."""

    cpu: float = Field(gt=0, description="Cores.")
    memory: Size = Field(description="Memory.")
    disk: Size | None = Field(default=None, description="Disk space. Unset: not limited, hence not promised.")
    gpus: int = Field(default=0, ge=0, description="Whole GPUs.")
    pretty_name: str | None = Field(default=None, description="Name for people. Unset: made from the amounts.")


class DockerSettings(Section):
    """The container engine that runs jobs where executor.kind is docker: Docker, or a compatible one."""

    socket: Annotated[Path, AfterValidator(_path)] | None = Field(
        default=None,
        description="The engine's unix socket. Unset: `$DOCKER_HOST`, else the first of /var/run/docker.sock, "
        "~/.docker/run/docker.sock, /run/podman/podman.sock and /run/user/<id>/podman/podman.sock that is there.",
    )
    by_api: bool = Field(
        default=False,
        description="Reach into containers by the engine's API and the shell of the image alone, as is done anyway "
        "where they are no processes of this machine or the server is not root. To try what holds there.",
    )
    ulimits: Names = Field(
        default=(),
        description="Limits of processes in jobs as `name=soft:hard`, such as `nofile=1024:4096, nproc=4096:4096`. "
        "Empty: the engine's own. An engine that may not set its own ones says `error setting rlimit`.",
    )


_MOST_WARM = 100


def _warm(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        image, _, count = one.partition("=")
        if not image.strip() or not count.strip().isdigit() or not 1 <= int(count) <= _MOST_WARM:
            raise ValueError(f"should be IMAGE=COUNT, such as python:3.12=2, with a count from 1 to {_MOST_WARM}")
    return value


class SandboxSettings(Section):
    """Sandboxes."""

    warm: Annotated[Names, AfterValidator(_warm)] = Field(
        default=(),
        description="Containers that are made before anybody asks for them, as `python:3.12=2, ubuntu:24.04=1`: so "
        "many of each image wait for the next sandbox of it. Each takes the room of one sandbox of the size that was "
        "last asked for (at first `cpu-basic`), as long as no job needs it. Only with the `oci` executor.",
    )

    def counts(self) -> dict[str, int]:
        """Return how many containers of each image are kept."""
        return {image.strip(): int(count) for image, _, count in (one.partition("=") for one in self.warm)}


class Settings(Section):
    """All settings of one server, effective and checked."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)
    docker: DockerSettings = Field(default_factory=DockerSettings)
    proxy: ProxySettings = Field(default_factory=ProxySettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    images: ImageSettings = Field(default_factory=ImageSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    schedules: ScheduleSettings = Field(default_factory=ScheduleSettings)
    flavors: dict[FlavorName, FlavorSettings] = Field(
        default_factory=dict[str, FlavorSettings],
        description="Sizes of job, a table each. Unset: derived from what the machine has.",
    )
    prices: dict[FlavorName, Annotated[float, Field(ge=0, le=1_000_000)]] = Field(
        default_factory=dict[str, float],
        description="What a minute of a flavor costs. Unset: nothing.",
    )

    @property
    def database_url(self) -> str:
        """The database in use: the one named, else SQLite in the data directory."""
        return self.database.url or f"sqlite:///{self.server.data_dir / 'runstead.db'}"


SECTIONS: Mapping[str, type[Section]] = {
    "server": ServerSettings,
    "database": DatabaseSettings,
    "jobs": JobsSettings,
    "executor": ExecutorSettings,
    "docker": DockerSettings,
    "proxy": ProxySettings,
    "storage": StorageSettings,
    "images": ImageSettings,
    "sandbox": SandboxSettings,
    "schedules": ScheduleSettings,
}


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings in force, and where those that are no defaults came from."""

    settings: Settings
    origins: Mapping[str, str]  # dotted key to where it was written
    file: Path | None  # the configuration file that was read


def setting_keys() -> list[str]:
    """Return every setting with a fixed name, as `section.key`."""
    return [f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields]


def load_settings(
    *,
    config: Path | None = None,
    flags: Mapping[str, str | None] | None = None,
    environment: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> Settings:
    """Return the settings in force; see `load_effective`."""
    return load_effective(config=config, flags=flags, environment=environment, directory=directory).settings


def load_effective(
    *,
    config: Path | None = None,
    flags: Mapping[str, str | None] | None = None,
    environment: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> EffectiveSettings:
    """Read all sources and return the settings in force with their origins.

    `config` is a file that must exist, `flags` maps dotted keys to text (None: not used), `directory` is where
    `runstead.toml` is looked for first. Raises SettingsError that lists every wrong value of every source.
    """
    file = sources.find_file(config, environment, directory or Path.cwd())
    given = [
        *(sources.from_file(file) if file else []),
        *sources.from_environment(environment, {sources.variable(key): key for key in setting_keys()}),
        *sources.from_flags(flags or {}),
    ]
    _refuse_unknown(given)
    effective = {one.key: one for one in given}
    tree: dict[str, Any] = {"server": {"data_dir": default_data_dir(environment)}}
    for one in effective.values():
        _plant(tree, one.key.split("."), one.value)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_complaint(dict(one), effective) for one in error.errors())) from error
    return EffectiveSettings(settings, {key: one.origin for key, one in effective.items()}, file)


def _plant(tree: dict[str, Any], path: list[str], value: object) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _refuse_unknown(given: list[Given]) -> None:
    complaints = [complaint for one in given if (complaint := _unknown(one))]
    if complaints:
        raise SettingsError("\n".join(complaints))


def _unknown(one: Given) -> str | None:
    section, _, rest = one.key.partition(".")
    if section == "flavors" and not one.origin.startswith(sources.PREFIX):
        allowed = [f"flavors.NAME.{name}" for name in FlavorSettings.model_fields]
        if rest.count(".") == 1 and f"flavors.NAME.{rest.partition('.')[2]}" in allowed:
            return None
    elif section == "prices" and not one.origin.startswith(sources.PREFIX):
        if "." not in rest:
            return None
        allowed = ["prices.NAME"]
    elif section == "prices":
        return f"{one.origin} is not a setting: prices are one table in a file, [prices], with NAME = AMOUNT"
    elif section == "flavors":
        return f"{one.origin} is not a setting: flavors are tables in a file, [flavors.NAME]"
    elif section in SECTIONS:
        if rest in SECTIONS[section].model_fields:
            return None
        allowed = [f"{section}.{name}" for name in SECTIONS[section].model_fields]
    else:
        allowed = [f"{name}.*" for name in (*SECTIONS, "flavors", "prices")]
    guess = difflib.get_close_matches(one.key, setting_keys(), n=1)
    hint = f" Did you mean {guess[0]}?" if guess else ""
    return f"{one.origin}: {one.key} is not a setting.{hint} Allowed: {', '.join(allowed)}"


def _complaint(error: Mapping[str, Any], effective: Mapping[str, Given]) -> str:
    location = cast("tuple[str | int, ...]", error["loc"])
    key = next(
        (key for n in range(len(location), 0, -1) if (key := ".".join(map(str, location[:n]))) in effective),
        ".".join(str(part) for part in location if part != "[key]"),
    )
    context = cast("Mapping[str, Any]", error.get("ctx") or {})
    reason = str(context["error"]) if isinstance(context.get("error"), ValueError) else str(error["msg"])
    reason = reason.removeprefix("Input ").removeprefix("Value error, ")
    if key not in effective:
        return f"{key}: {reason}"
    given = effective[key]
    return f"{given.origin}: {key} = {mask(repr(given.value))} is not possible: it {reason}"


__all__ = [
    "SECTIONS",
    "DatabaseSettings",
    "DockerSettings",
    "EffectiveSettings",
    "ExecutorSettings",
    "FlavorSettings",
    "ImageSettings",
    "JobsSettings",
    "SandboxSettings",
    "Section",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "default_data_dir",
    "load_effective",
    "load_settings",
    "mask",
    "setting_keys",
]
