"""Builds a server out of its parts. The only place that names concrete classes."""

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TextIO, cast
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import structlog
import uvicorn

from runstead.api.bodies import BodyProtocol
from runstead.api.context import Context
from runstead.api.routes import create_api
from runstead.api.sse import encode_log_lines
from runstead.events.interface import LOGS, WORK, EventBus
from runstead.events.local import LocalEventBus
from runstead.executors.docker import DockerExecutor, DockerSettings
from runstead.executors.interface import Capabilities, Executor
from runstead.executors.machine import find_machine
from runstead.executors.native import NativeSettings
from runstead.executors.oci import OciExecutor, OciSettings
from runstead.executors.oci import problem as container_problem
from runstead.executors.process import ProcessExecutor
from runstead.images.library import ImageLibrary
from runstead.images.store import ImageStore
from runstead.kit.clock import Clock, SystemClock
from runstead.kit.loops import forever
from runstead.kit.settings import Settings
from runstead.logs.files import FileLogStore
from runstead.mcp.face import McpContext, with_mcp
from runstead.model.costs import MICRO
from runstead.model.errors import Conflict, Unavailable
from runstead.model.hardware import Accelerator, Flavor, Machine
from runstead.model.ids import new_id
from runstead.objects.disk import DiskObjectStore
from runstead.objects.interface import ObjectStore
from runstead.proxy.certificates import OwnCertificates, ServerTls, names_of
from runstead.proxy.door import Door
from runstead.proxy.gate import Gate
from runstead.proxy.listening import Listener
from runstead.proxy.native import Native
from runstead.proxy.proxy import Proxy
from runstead.sandbox.native import SandboxPort
from runstead.services.accounts import Accounts
from runstead.services.admission import AdmissionRounds
from runstead.services.buckets.batches import Batches
from runstead.services.buckets.buckets import Buckets
from runstead.services.buckets.following import Following
from runstead.services.buckets.keeping import BucketRoots, Keeping
from runstead.services.content.checking import Checking
from runstead.services.content.collecting import Collecting
from runstead.services.content.content import FileRoots
from runstead.services.content.service import ContentLimits, StoredContent
from runstead.services.exposure import Exposure
from runstead.services.hardware import Hardware, derive_flavors
from runstead.services.image_sweeper import ImageSweeper
from runstead.services.jobs import JobLimits, Jobs
from runstead.services.launching import Launching
from runstead.services.logs import Logs
from runstead.services.metrics import JobMetrics
from runstead.services.mount_tokens import MountTokens
from runstead.services.outputs import Outputs
from runstead.services.port_addresses import PortAddresses
from runstead.services.port_rules import PortRules
from runstead.services.preparing import Preparing
from runstead.services.reconcile import LEASE, Reconcile
from runstead.services.recovery import Recovery
from runstead.services.sandbox_forks import Forking
from runstead.services.sandboxes.activity import Activity
from runstead.services.sandboxes.hosts import Hosts
from runstead.services.sandboxes.idling import Idling
from runstead.services.sandboxes.recognition import SandboxRules
from runstead.services.sandboxes.sandboxes import Sandboxes
from runstead.services.scheduled_runs import ScheduledRuns
from runstead.services.schedules import Schedules
from runstead.services.script_folders import ScriptFolders
from runstead.services.secrets import SecretBox, load_key
from runstead.services.sweeper import Sweeper
from runstead.services.ticker import CatchUp, Ticker
from runstead.services.usage import Usage
from runstead.services.volumes import MountRequests, VolumeRules, Volumes
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.content import SqlContentStore
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.sandboxes import SqlSandboxStore
from runstead.stores.schedules import SqlScheduleStore
from runstead.stores.usage import SqlUsageStore
from runstead.volumes.either import EitherVolumes
from runstead.volumes.filled import FilledVolumes
from runstead.volumes.fuse import FuseVolumes
from runstead.volumes.fuse import problem as mount_problem
from runstead.volumes.interface import VolumeProvider
from runstead.web.context import WebContext
from runstead.web.routes import with_pages
from runstead.web.sessions import BrowserSessions

log = structlog.get_logger()

_BACKLOG = 2048
# In the data directory: where the programs beside jobs reach the server that runs, or ran last.
_URL_FILE = "server.url"
_SWITCH_SECONDS = 0.0005
_STOP_JOBS_SECONDS = 20.0
_CERTIFICATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Started:
    """What there is to say about a server that has just come up."""

    url: str
    owner: str
    token: str | None  # its value, on the very first start only
    notes: tuple[str, ...]


def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Started], None] | None = None,
    stop_jobs_at_exit: bool = False,
) -> int:
    """Run a server until SIGTERM or SIGINT; return the exit code.

    Jobs go on when it stops, unless `stop_jobs_at_exit`. Raises Conflict when another server uses the data
    directory, Unavailable when the directory or the port cannot be had.
    """
    _configure_logging(settings)
    with _data_dir(settings.server.data_dir):
        import uvloop

        # A database thread that has its answer waits for the interpreter: with the usual 5 ms a busy event loop
        # makes one in a hundred submissions take a second.
        sys.setswitchinterval(_SWITCH_SECONDS)
        return uvloop.run(_serve(settings, on_ready, stop_jobs_at_exit))


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncGenerator[Accounts]:
    """Open the accounts of a server, whether it runs or not."""
    _make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        yield Accounts(SqlAccountStore(database), SystemClock())
    finally:
        await database.close()


@asynccontextmanager
async def open_usage(settings: Settings) -> AsyncGenerator[Usage]:
    """Open what jobs used and what they may cost, whether the server runs or not."""
    _make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        yield Usage(SqlUsageStore(database), SqlAccountStore(database), SystemClock())
    finally:
        await database.close()


@asynccontextmanager
async def open_keeping(settings: Settings) -> AsyncGenerator[Keeping]:
    """Open the history of a server's buckets, whether it runs or not."""
    _make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        clock = SystemClock()
        content = build_content(settings, database, clock, load_key(settings.server.data_dir / "secret.key"))
        try:
            stores = SqlBucketStore(database), SqlBucketLog(database)
            yield Keeping(*stores, content, LocalEventBus(), clock, settings.storage.history_days)
        finally:
            content.close()
    finally:
        await database.close()


@dataclass(frozen=True, slots=True)
class Storage:
    """What looks after stored content."""

    collecting: Collecting
    checking: Checking


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncGenerator[Storage]:
    """Open the stored content of a server, whether it runs or not."""
    _make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        key = load_key(settings.server.data_dir / "secret.key")
        content = build_content(settings, database, SystemClock(), key)
        try:
            roots = _roots(database)
            yield Storage(content.collecting(roots), content.checking(roots))
        finally:
            content.close()
    finally:
        await database.close()


@asynccontextmanager
async def open_images(settings: Settings) -> AsyncGenerator[ImageLibrary]:
    """Open the images of this machine, whether the server runs or not."""
    _make_private(settings.server.data_dir)
    library = ImageLibrary(settings.server.data_dir / "images", settings.images)
    await library.open()
    try:
        yield library
    finally:
        await library.close()


def _roots(database: Database) -> list[FileRoots]:
    """Return all that refers to stored content: what is missing here is garbage."""
    return [BucketRoots(SqlBucketLog(database))]


@asynccontextmanager
async def open_recovery(settings: Settings) -> AsyncGenerator[Recovery]:
    """Open what jobs of a running server wrote and could not be saved. Raises Unavailable when it does not run."""
    data_dir = settings.server.data_dir
    try:
        endpoint = (data_dir / _URL_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"no server has run on this data directory; start it first: {data_dir}") from error
    database = await open_database(settings.database_url)
    try:
        clock, store = SystemClock(), SqlJobStore(database)
        tokens = MountTokens(load_key(data_dir / "secret.key"), store, clock)
        requests = MountRequests(store, SqlBucketStore(database), tokens, clock, endpoint, recovery=True)
        provider = build_volumes(settings, requests, private_ids=False)
        await provider.open()
        try:
            yield Recovery(store, provider, settings.jobs.flush_seconds)
        finally:
            await provider.close()
    finally:
        await database.close()


@asynccontextmanager
async def open_outputs(settings: Settings) -> AsyncGenerator[Outputs]:
    """Open the list of what a job wrote, whether the server runs or not."""
    _make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        yield Outputs(SqlJobStore(database), SqlBucketLog(database))
    finally:
        await database.close()


def build_executor(settings: Settings, wake: Callable[[str, str], None], port: int | None = None) -> Executor:
    """Return the executor that the settings name. `port` is the server's, the one thing of it jobs may reach."""
    chosen, data_dir = settings.executor, settings.server.data_dir
    native = NativeSettings(
        isolation=chosen.isolation,
        network=chosen.network,
        subnet=chosen.subnet,
        egress=chosen.egress or None,
        log_limit_bytes=chosen.log_limit_bytes,
        pass_environment=chosen.pass_environment,
        grace_seconds=settings.jobs.cancel_grace_seconds,
        pids_limit=chosen.pids_limit,
        server_port=port,
        machine=_machine(settings),
    )
    if chosen.kind == "docker":
        engine = DockerSettings(
            native,
            socket=settings.docker.socket,
            shared_memory_bytes=chosen.shared_memory,
            ulimits=settings.docker.ulimits,
            registries=settings.images.registries,
            auth_file=settings.images.auth_file,
            stall_seconds=settings.images.stall_seconds,
        )
        return DockerExecutor(data_dir, engine, wake)
    if no_containers(settings) is not None:
        return ProcessExecutor(data_dir, native, wake)
    images = ImageLibrary(data_dir / "images", settings.images)
    containers = OciSettings(native, shared_memory_bytes=chosen.shared_memory, runtime=chosen.runtime)
    return OciExecutor(data_dir, containers, images, wake)


def no_containers(settings: Settings) -> str | None:
    """Return why jobs do not run in containers of their images; None when they do, or are meant to."""
    chosen = settings.executor
    if chosen.kind != "auto":
        return None if chosen.kind in ("oci", "docker") else f'executor.kind = "{chosen.kind}"'
    return 'executor.isolation = "none"' if chosen.isolation == "none" else container_problem()


def build_content(settings: Settings, database: Database, clock: Clock, key: bytes) -> StoredContent:
    """Return the stored content of a server."""
    limits = ContentLimits(url_seconds=settings.storage.url_seconds, grace=timedelta(days=settings.storage.grace_days))
    return StoredContent(SqlContentStore(database), build_objects(settings), clock, key, limits)


def build_objects(settings: Settings) -> ObjectStore:
    """Return the store of objects that the settings name."""
    directory = settings.server.data_dir / "content"
    storage = settings.storage
    if storage.url is None:
        return DiskObjectStore(directory)
    # Its library holds 7 MB, which a server that keeps its content in a directory need not.
    from runstead.objects.s3 import S3ObjectStore

    return S3ObjectStore(storage.url, directory / "staging", endpoint=storage.endpoint, region=storage.region)


def build_volumes(settings: Settings, requests: MountRequests, *, private_ids: bool) -> VolumeProvider:
    """Return what serves volumes on this machine. Raises Unavailable when mounts are asked for and not possible."""
    mounted, filled = (
        kind(
            settings.server.data_dir,
            requests.of_attempt,
            private_ids=private_ids,
            cache_bytes=settings.storage.node_cache_bytes,
        )
        for kind in (FuseVolumes, FilledVolumes)
    )
    if unmountable(settings) is None:
        return EitherVolumes(mounted, filled)
    return EitherVolumes(filled, mounted)


def unmountable(settings: Settings) -> str | None:
    """Return why volumes are filled; None when they are mounted. Raises Unavailable when that is not possible."""
    if settings.executor.volumes == "fill":
        return 'executor.volumes = "fill"'
    lacking = mount_problem()
    if lacking is not None and settings.executor.volumes == "mount":
        raise Unavailable(f'executor.volumes = "mount" is not possible here: {lacking}')
    return lacking


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


def build_proxy(
    settings: Settings, context: Context, exposure: Exposure, key: bytes, clock: Clock, native: Native
) -> Proxy:
    """Return what serves the exposed ports of jobs."""
    public_url = settings.server.public_url
    addresses = context.port_addresses
    gate = Gate(exposure, addresses, BrowserSessions(key, clock), key, clock, public_url)
    own = frozenset({urlsplit(public_url).netloc.lower()}) if public_url else frozenset[str]()
    return Proxy(exposure, gate, addresses, settings.proxy.answer_seconds, native, own)


def build_tls(settings: Settings) -> ServerTls | None:
    """Return what https is spoken with, if it is. Raises Unavailable for certificates that cannot be used."""
    chosen = settings.proxy
    if chosen.certificate is not None and chosen.key is not None:
        return ServerTls(chosen.certificate, chosen.key)
    if chosen.tls == "off":
        return None
    own = OwnCertificates(settings.server.data_dir / "tls", SystemClock())
    domain = chosen.domain and urlsplit(chosen.domain if "://" in chosen.domain else f"//{chosen.domain}").hostname
    public = urlsplit(settings.server.public_url or "").hostname or ""
    host = settings.server.host
    names = names_of(domain, public, socket.gethostname(), "" if host in ("0.0.0.0", "::") else host)  # noqa: S104
    return ServerTls(own.certificate, own.key, (own, names))


async def _serve(settings: Settings, on_ready: Callable[[Started], None] | None, stop_jobs_at_exit: bool) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        database = await open_database(settings.database_url)
        stack.push_async_callback(database.close)
        events = LocalEventBus()
        listeners = [_bind(settings.server.host, settings.server.port)]
        port = listeners[0].getsockname()[1]
        executor = build_executor(settings, _wake(events), port)
        capabilities = await executor.open()
        stack.push_async_callback(executor.close)
        _open_many_files()  # now, for what starts jobs has the usual limit already, and hands it on to them
        if capabilities.host_address and not _covers(settings.server.host, capabilities.host_address):
            listeners.append(_bind(capabilities.host_address, port))
        server = _Server(settings, database, events, executor, capabilities, port)
        stack.callback(server.content.close)
        await server.content.open()
        await server.provider.open()
        stack.push_async_callback(server.provider.close)
        owner, token = await server.accounts.ensure_owner()
        app = create_api(server.context)
        mcp = with_mcp(app, server.mcp)
        stack.push_async_callback(mcp.close)
        http = uvicorn.Server(
            uvicorn.Config(
                with_pages(app, server.web),
                http=cast("type[asyncio.Protocol]", partial(Connection, proxy=server.proxy)),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=10,
                backlog=_BACKLOG,
            )
        )
        tls = build_tls(settings)
        (settings.server.data_dir / _URL_FILE).write_text(_node_endpoint(settings, port), encoding="utf-8")
        serving = asyncio.create_task(_run_http(http, listeners, tls))
        duties = [asyncio.create_task(duty) for duty in server.duties()]
        try:
            if on_ready is not None:
                notes = (*capabilities.notes, *capabilities.missing, *_volume_notes(settings, capabilities))
                on_ready(Started(server.url, owner.name, token, notes))
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop_jobs_at_exit:  # while requests are answered: what jobs wrote is saved through them
                await server.stop_jobs()
            server.logs.close()
            server.following.close()
            server.sandboxes.close()
            server.metrics.close()
            await mcp.close()
            http.should_exit = True
            await serving
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
    return 0


class Connection(Door, BodyProtocol):
    """A connection of a client: requests for ports of jobs, and those for the server itself."""


async def _run_http(http: uvicorn.Server, listeners: list[socket.socket], tls: ServerTls | None) -> None:
    """Serve without uvicorn's own signal handling: what a signal means is decided here."""
    config = http.config
    if not config.loaded:
        config.load()
    http.lifespan = config.lifespan_class(config)
    if tls is None:
        await http.startup(sockets=listeners)
        await http.main_loop()
        await http.shutdown(sockets=listeners)
        return
    await http.startup(sockets=[])
    protocol = partial(
        config.http_protocol_class, config=config, server_state=http.server_state, app_state=http.lifespan.state
    )
    doors = [Listener(one, protocol, tls.context) for one in listeners]
    refreshing = asyncio.create_task(forever("tls", partial(_refresh, tls)))
    await http.main_loop()
    for door in doors:
        door.close()
    refreshing.cancel()
    await http.shutdown(sockets=[])


async def _refresh(tls: ServerTls) -> None:
    while True:
        await asyncio.sleep(_CERTIFICATE_SECONDS)
        tls.refresh()


class _Server:
    """The parts of one server, joined."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        events: EventBus,
        executor: Executor,
        capabilities: Capabilities,
        port: int,
    ) -> None:
        clock = SystemClock()
        self._executor = executor
        self._events = events
        self.url = settings.server.public_url or f"http://{_reachable(settings.server.host)}:{port}"
        key = load_key(settings.server.data_dir / "secret.key")
        secrets = SecretBox(key)
        log_store = FileLogStore(settings.server.data_dir / "logs")
        self._store = SqlJobStore(database)
        account_store = SqlAccountStore(database)
        schedule_store = SqlScheduleStore(database)
        self.accounts = Accounts(account_store, clock)
        hardware = build_hardware(settings, capabilities)
        owner = f"{capabilities.instance}/{new_id(clock.now())}"
        launching = Launching(
            self._store,
            log_store,
            hardware,
            secrets,
            capabilities,
            clock,
            lambda: _job_endpoint(settings, capabilities, port),
        )
        port_rules = PortRules(capabilities, self._store)
        exposure = Exposure(self._store, executor, port_rules, self.accounts, events)
        bucket_store, bucket_log = SqlBucketStore(database), SqlBucketLog(database)
        mount_tokens = MountTokens(key, self._store, clock)
        requests = MountRequests(self._store, bucket_store, mount_tokens, clock, _node_endpoint(settings, port))
        self.provider = build_volumes(settings, requests, private_ids=capabilities.private_ids)
        volumes = Volumes(self.provider, requests, bucket_store, settings.jobs.flush_seconds)
        self._reconcile = Reconcile(
            self._store,
            executor,
            capabilities.instance,
            log_store,
            launching,
            events,
            clock,
            owner,
            settings.jobs.poll_seconds,
            settings.jobs.cancel_grace_seconds,
            volumes,
            Preparing(
                self._store,
                executor,
                log_store,
                launching,
                volumes,
                events,
                clock,
                owner,
                images=capabilities.images,
            ),
        )
        self._admission = AdmissionRounds(
            self._store,
            hardware,
            events,
            clock,
            capabilities.instance,
            owner,
            LEASE,
            settings.jobs.poll_seconds,
            self._reconcile.take,
        )
        self._scripts = ScriptFolders(
            account_store, self._store, schedule_store, bucket_store, events, clock, settings.jobs.script_days
        )
        activity = Activity(SqlSandboxStore(database), clock)
        hosts = Hosts(SqlSandboxStore(database), executor, secrets, activity, clock)
        self.sandboxes = Sandboxes(self._store, executor, secrets, activity, hosts, events, clock)
        self.sandbox_port = SandboxPort(self.sandboxes)
        self._idling = Idling(self._store, executor, activity, hosts, events, clock, self._reconcile.in_hand)
        images = ImageStore(settings.server.data_dir / "images")
        self._image_sweeper = ImageSweeper(images, clock, settings.images.unused_days, settings.images.store_bytes)
        self._sweeper = Sweeper(self._store, log_store, clock, settings.jobs.retention_days)
        self.logs = Logs(self._store, log_store, events, encode_log_lines, b"===== Job started")
        self.metrics = JobMetrics(self._store, executor, hardware, events, clock)
        self.content = build_content(settings, database, clock, key)
        self._collecting = self.content.collecting(_roots(database), settings.storage.collect_hours * 3600)
        buckets = Buckets(bucket_store, self.content, events, clock)
        self.following = Following(bucket_store, bucket_log, events)
        self._keeping = Keeping(bucket_store, bucket_log, self.content, events, clock, settings.storage.history_days)
        jobs = Jobs(
            self._store,
            hardware,
            secrets,
            self._admission,
            events,
            clock,
            JobLimits(settings.jobs.default_timeout_seconds, settings.jobs.max_timeout_seconds),
            port_rules,
            VolumeRules(buckets, bucket_store, capabilities),
            SandboxRules(capabilities),
        )
        zone = ZoneInfo(settings.schedules.time_zone)
        runs = ScheduledRuns(schedule_store, account_store, jobs, secrets)
        schedules = Schedules(schedule_store, jobs, runs, secrets, events, clock, zone)
        self._ticker = Ticker(schedule_store, runs, jobs, events, clock, zone, CatchUp(settings.schedules.catch_up))
        self._forking = Forking(jobs, self._store, executor, secrets, clock)
        self.context = Context(
            accounts=self.accounts,
            jobs=jobs,
            schedules=schedules,
            logs=self.logs,
            metrics=self.metrics,
            hardware=hardware,
            content=self.content,
            buckets=buckets,
            batches=Batches(bucket_store, buckets, self.content, events, clock),
            following=self.following,
            outputs=Outputs(self._store, bucket_log),
            mount_tokens=mount_tokens,
            exposure=exposure,
            forking=self._forking,
            port_addresses=PortAddresses(_ports_url(settings, port)),
            clock=clock,
            cursor_key=key,
            public_url=settings.server.public_url,
            max_body_bytes=settings.server.max_body_bytes,
        )
        self.mcp = McpContext(
            accounts=self.accounts,
            buckets=buckets,
            batches=self.context.batches,
            content=self.content,
            public_url=settings.server.public_url,
        )
        self.web = WebContext(
            accounts=self.accounts,
            jobs=self.context.jobs,
            schedules=schedules,
            logs=self.logs,
            metrics=self.metrics,
            hardware=hardware,
            buckets=buckets,
            content=self.content,
            clock=clock,
            key=key,
            public_url=settings.server.public_url,
            port_addresses=self.context.port_addresses,
        )

        self.proxy = build_proxy(settings, self.context, exposure, key, clock, self.sandbox_port)

    def duties(self) -> list[Coroutine[object, object, None]]:
        """Return the loops that run beside the requests."""
        return [
            forever("reconcile", self._reconcile.run),
            forever("admission", self._admission.run),
            forever("proxy", self.proxy.run),
            forever("sandboxes", self._idling.run),
            forever("snapshots", self._forking.run),
            forever("sweeper", self._sweeper.run),
            forever("schedules", self._ticker.run),
            forever("scripts", self._scripts.run),
            forever("images", self._image_sweeper.run),
            forever("buckets", self._keeping.run),
            *([forever("garbage", self._collecting.run)] if self._collecting.every_seconds else []),
        ]

    async def stop_jobs(self) -> None:
        """Cancel everything that is not over and wait until nothing of it is left."""
        await self._reconcile.cancel_all(_STOP_JOBS_SECONDS)


def _wake(events: EventBus) -> Callable[[str, str], None]:
    """Return what an executor calls when an attempt changed ("jobs") or its log grew ("logs")."""
    topics = {"jobs": WORK, "logs": LOGS}
    return lambda kind, job_id: events.publish(topics[kind], job_id)


def _machine(settings: Settings) -> Machine | None:
    """Return what jobs may use if the configuration says so; None leaves it to the executor."""
    chosen = settings.executor
    if chosen.cpus is None and chosen.memory is None and chosen.disk is None:
        return None
    found = find_machine(settings.server.data_dir)
    return replace(
        found,
        cpu_millicores=int(chosen.cpus * 1000) if chosen.cpus else found.cpu_millicores,
        memory_bytes=chosen.memory or found.memory_bytes,
        disk_bytes=chosen.disk or found.disk_bytes,
    )


def _flavor(name: str, settings: Settings, capabilities: Capabilities) -> Flavor:
    chosen = settings.flavors[name]
    accelerator = None
    if chosen.gpus:
        gpus = capabilities.machine.gpus if capabilities.machine else ()
        model = gpus[0].model if gpus else "GPU"
        accelerator = Accelerator("gpu", model, chosen.gpus, gpus[0].memory_bytes if gpus else 0, "Nvidia")
    pretty = chosen.pretty_name or f"{chosen.cpu:g} vCPU, {chosen.memory / 1e9:.3g} GB"
    return Flavor(name, pretty, int(chosen.cpu * 1000), chosen.memory, chosen.disk, accelerator)


def _volume_notes(settings: Settings, capabilities: Capabilities) -> list[str]:
    """Return why volumes are not mounted, where nobody asked for that."""
    lacking = unmountable(settings) if capabilities.volumes and settings.executor.volumes == "auto" else None
    return [] if lacking is None else [f"volumes are filled before a job starts, because {lacking}"]


def _node_endpoint(settings: Settings, port: int) -> str:
    """Return where the programs beside jobs reach this server: they run on its machine."""
    return f"http://{_reachable(settings.server.host)}:{port}"


def _ports_url(settings: Settings, port: int) -> str | None:
    """Return the URL under whose name each port of a job has a host; None where they are reached by path."""
    domain = settings.proxy.domain
    if domain is None or "://" in domain:
        return domain
    public = urlsplit(settings.server.public_url) if settings.server.public_url else None
    scheme = "https" if settings.proxy.tls != "off" or (public and public.scheme == "https") else "http"
    if ":" in domain:
        return f"{scheme}://{domain}"
    shown = public.port if public else port
    return f"{scheme}://{domain}:{shown}" if shown else f"{scheme}://{domain}"


def _job_endpoint(settings: Settings, capabilities: Capabilities, port: int) -> str | None:
    match settings.jobs.endpoint:
        case "off":
            return None
        case "auto":
            return f"http://{capabilities.host_address}:{port}" if capabilities.host_address else None
        case url:
            return url


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    listener.setblocking(False)
    return listener


def _open_many_files() -> None:
    """Let this process have as many connections as the machine allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS: less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _covers(host: str, address: str) -> bool:
    if host in ("0.0.0.0", "::", "", address):  # noqa: S104
        return True
    try:
        return ipaddress.ip_address(host).is_loopback and ipaddress.ip_address(address).is_loopback
    except ValueError:
        return host == "localhost" and address.startswith("127.")


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextmanager
def _data_dir(path: Path) -> Generator[None]:
    """Hold the data directory for this process; the kernel lets go of it however the process ends."""
    _make_private(path)
    lock: TextIO = (path / "server.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another server uses this data directory; stop it, or choose one with --data-dir: {path}"
            ) from None
        yield


def _make_private(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise Unavailable(
            f"the data directory cannot be used ({error.strerror}); choose one with --data-dir: {path}"
        ) from error


def _configure_logging(settings: Settings) -> None:
    level = logging.getLevelNamesMapping()[settings.server.log_level.upper()]
    logging.basicConfig(level=max(level, logging.WARNING), format="%(levelname)s %(name)s %(message)s")
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.server.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
