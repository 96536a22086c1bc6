"""The parts of one server, joined."""

from collections.abc import Coroutine
from zoneinfo import ZoneInfo

from runstead.api.context import Context
from runstead.api.sse import encode_log_lines
from runstead.app.addresses import job_endpoint, node_endpoint, ports_url, reachable
from runstead.app.hardware import build_hardware
from runstead.app.ports import build_proxy
from runstead.app.storage import build_content, roots
from runstead.app.volumes import build_volumes
from runstead.events.interface import EventBus
from runstead.executors.interface import Capabilities, Executor
from runstead.images.store import ImageStore
from runstead.kit.clock import SystemClock
from runstead.kit.loops import forever
from runstead.kit.settings import Settings
from runstead.logs.files import FileLogStore
from runstead.mcp.face import McpContext
from runstead.model.ids import new_id
from runstead.sandbox.native import SandboxPort
from runstead.services.accounts import Accounts
from runstead.services.admission import AdmissionRounds
from runstead.services.buckets.batches import Batches
from runstead.services.buckets.buckets import Buckets
from runstead.services.buckets.following import Following
from runstead.services.buckets.keeping import Keeping
from runstead.services.exposure import Exposure
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
from runstead.services.sandbox_forks import Forking
from runstead.services.sandboxes.activity import Activity
from runstead.services.sandboxes.hosts import Hosts
from runstead.services.sandboxes.idling import Idling
from runstead.services.sandboxes.recognition import SandboxRules
from runstead.services.sandboxes.sandboxes import Sandboxes
from runstead.services.sandboxes.warm import Warm
from runstead.services.scheduled_runs import ScheduledRuns
from runstead.services.schedules import Schedules
from runstead.services.script_folders import ScriptFolders
from runstead.services.secrets import SecretBox, load_key
from runstead.services.sweeper import Sweeper
from runstead.services.ticker import CatchUp, Ticker
from runstead.services.volumes import MountRequests, VolumeRules, Volumes
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore
from runstead.stores.sandboxes import SqlSandboxStore
from runstead.stores.schedules import SqlScheduleStore
from runstead.web.context import WebContext

_STOP_JOBS_SECONDS = 20.0


class Server:
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
        self.url = settings.server.public_url or f"http://{reachable(settings.server.host)}:{port}"
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
            lambda: job_endpoint(settings, capabilities, port),
        )
        port_rules = PortRules(capabilities, self._store)
        exposure = Exposure(self._store, executor, port_rules, self.accounts, events)
        bucket_store, bucket_log = SqlBucketStore(database), SqlBucketLog(database)
        mount_tokens = MountTokens(key, self._store, clock)
        requests = MountRequests(self._store, bucket_store, mount_tokens, clock, node_endpoint(settings, port))
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
        self.sandboxes = Sandboxes(self._store, executor, secrets, activity, hosts, clock)
        self.sandbox_port = SandboxPort(self.sandboxes)
        self._idling = Idling(self._store, executor, activity, hosts, events, clock, self._reconcile.in_hand)
        self._warm = Warm(
            settings.sandbox.counts() if capabilities.prepared else {},
            executor,
            capabilities.instance,
            self._store,
            hardware,
            events,
            clock,
            self._first_namespace,
            self._reconcile.in_hand,
        )
        images = ImageStore(settings.server.data_dir / "images")
        self._image_sweeper = ImageSweeper(images, clock, settings.images.unused_days, settings.images.store_bytes)
        self._sweeper = Sweeper(self._store, log_store, clock, settings.jobs.retention_days)
        self.logs = Logs(self._store, log_store, events, encode_log_lines, b"===== Job started")
        self.metrics = JobMetrics(self._store, executor, hardware, events, clock)
        self.content = build_content(settings, database, clock, key)
        self._collecting = self.content.collecting(roots(database), settings.storage.collect_hours * 3600)
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
            port_addresses=PortAddresses(ports_url(settings, port)),
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
            *([forever("warm", self._warm.run)] if self._warm.wanted else []),
            forever("sweeper", self._sweeper.run),
            forever("schedules", self._ticker.run),
            forever("scripts", self._scripts.run),
            forever("images", self._image_sweeper.run),
            forever("buckets", self._keeping.run),
            *([forever("garbage", self._collecting.run)] if self._collecting.every_seconds else []),
        ]

    async def _first_namespace(self) -> str:
        return (await self.accounts.ensure_owner())[0].name

    async def stop_jobs(self) -> None:
        """Cancel everything that is not over and wait until nothing of it is left."""
        await self._reconcile.cancel_all(_STOP_JOBS_SECONDS)
