"""OpenEnv's `ContainerProvider` over Hugging Face Jobs (contract: openenv-core 0.3.0, containers/runtime/providers)."""

import importlib.resources
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from huggingface_hub.utils import get_session

from runstead.openenv.errors import EnvironmentDied, EnvironmentNotReady, EnvironmentNotStarted
from runstead.openenv.jobs import HubJobs, JobRequest, RunningJob
from runstead.openenv.journal import write
from runstead.openenv.leases import LEASES
from runstead.openenv.loopback import is_loopback
from runstead.openenv.relay import relay

DEFAULT_PORT = 8000
LEASE_PORT = 49982
_LOOK_SECONDS = 1.0  # between looks at the job while its port does not answer
_FIRST_ASK_SECONDS = 0.02
_LONGEST_ASK_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
_IGNORED = frozenset({"workers"})  # what `EnvClient.from_env` passes on for providers that build the server's command

Access = Literal["auto", "public", "pass", "relay"]


class JobsProvider:
    """One environment at a time, run as a job.

    It may be used again after `stop_container`, and as a context manager. What it started ends with it: on
    `stop_container`, when it is forgotten, at the end of the `with` block or of the process, and, when the process was
    killed, when the lease has run out. It can be used from any thread, one call at a time.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        namespace: str | None = None,
        flavor: str = "cpu-basic",
        command: Sequence[str] | None = None,
        job_timeout: str | float = "4h",
        start_timeout_s: float = 120.0,
        ready_timeout_s: float | None = None,
        lease_seconds: float = 120.0,
        create_tries: int = 5,
        access: Access = "auto",
        secrets: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        volumes: Sequence[Any] = (),
        ready_path: str = "/health",
        unencrypted: bool = False,
    ) -> None:
        """Remember how environments are started.

        `endpoint`, `token`: of the server; unset, what every Hugging Face client uses (`HF_ENDPOINT`, the saved token).
        `command`: starts the environment's server in the image; unset, what its `openenv.yaml` names.
        `job_timeout`: the job ends then in any case. `start_timeout_s`: until the job runs, the pull of its image
        included. `ready_timeout_s`: until its port answers then; unset, what `wait_for_ready` is called with.
        `lease_seconds`: how long an environment outlives a trainer that was killed; 0: until `job_timeout`.
        `create_tries`: how often the creation is tried. `access`: how clients that send no headers, as OpenEnv's do,
        get in: by a `public` port, a `pass` in the path (a Runstead server's), or a `relay` in this process that adds
        the token; `auto` takes a pass where the server has them, else the relay. `unencrypted`: let the token travel
        over plain http to another machine, as in a trainer that is itself a job and reaches its server over the
        bridge. Raises ValueError for a token that would do so otherwise.
        """
        self._jobs = HubJobs(endpoint, token, namespace)
        self._flavor = flavor
        self._command = tuple(command or ())
        self._job_timeout = job_timeout
        self._start_timeout = start_timeout_s
        self._ready_timeout = ready_timeout_s
        self._lease_seconds = lease_seconds
        self._create_tries = create_tries
        self._access: Access = access
        self._secrets = dict(secrets or {})
        self._labels = dict(labels or {})
        self._volumes = tuple(volumes)
        self._ready_path = ready_path
        self._job: RunningJob | None = None
        self._end: Callable[[], object] = lambda: None
        self._unencrypted = unencrypted
        self._check_encrypted(self._jobs.endpoint)

    @property
    def job_id(self) -> str | None:
        """The id of the job that runs now."""
        return self._job.id if self._job else None

    def start_container(
        self, image: str, port: int | None = None, env_vars: dict[str, str] | None = None, **kwargs: Any
    ) -> str:
        """Start an environment and return its base URL.

        `port` is where its server listens inside (8000). Of `kwargs`, those named like arguments of the constructor
        (`command`, `flavor`, `job_timeout`, `secrets`, `labels`, `volumes`, `access`, `lease_seconds`) hold for this
        start alone. Raises EnvironmentNotStarted (a RuntimeError) when the job cannot be created, TypeError for
        options that are not known.
        """
        options = {name: value for name, value in kwargs.items() if name not in _IGNORED}
        command = tuple(options.pop("command", None) or self._command)
        flavor = options.pop("flavor", self._flavor)
        job_timeout = options.pop("job_timeout", self._job_timeout)
        secrets = {**self._secrets, **options.pop("secrets", {})}
        labels = {**self._labels, **options.pop("labels", {})}
        volumes = options.pop("volumes", self._volumes)
        access: Access = options.pop("access", self._access)
        lease = float(options.pop("lease_seconds", self._lease_seconds))
        if options:
            raise TypeError(f"start_container() has no options named {', '.join(sorted(options))}")
        if self._job is not None:
            raise EnvironmentNotStarted(f"this provider runs job {self._job.id} already; call stop_container() first")
        inside = port or DEFAULT_PORT
        request = JobRequest(
            image=image,
            command=_wrapped(inside, lease, command),
            flavor=flavor,
            timeout=job_timeout,
            ports=[inside, LEASE_PORT] if lease else [inside],
            public=access == "public",
            environment=env_vars or {},
            secrets=secrets,
            labels={"openenv": "1", **labels},
            volumes=volumes,
        )
        began = time.monotonic()
        job = self._jobs.create(request, self._create_tries)
        self._job = job
        self._end = weakref.finalize(self, _end, self._jobs, job, os.getpid())
        if inside not in job.urls or (lease and LEASE_PORT not in job.urls):
            self.stop_container()
            raise EnvironmentNotStarted(f"the server gave job {job.id} no address for its ports: it cannot be reached")
        self._check_encrypted(job.urls[inside])
        if lease:
            LEASES.add(job.id, job.urls[LEASE_PORT] + "/", self._jobs.headers, lease)
        write(logging.INFO, "environment created", job_id=job.id, stage=job.stage, image=image, flavor=flavor)
        try:
            self._await_start(job, began + self._start_timeout)
            return self._address(job, inside, access)
        except BaseException:
            self.stop_container()
            raise

    def wait_for_ready(self, base_url: str, timeout_s: float = 30.0) -> None:
        """Return when the environment's server answers its health check.

        Uses its whole time, whatever connections do meanwhile. Raises EnvironmentNotReady (a TimeoutError) after it,
        EnvironmentDied as soon as the job is over, with its stage, failure class and last lines.
        """
        job = self._job
        seconds = self._ready_timeout if self._ready_timeout is not None else timeout_s
        began = time.monotonic()
        deadline, look_at, pause = began + seconds, began + _LOOK_SECONDS, _FIRST_ASK_SECONDS
        said, cause = "nothing was asked yet", "no-time"
        while (left := deadline - time.monotonic()) > 0:
            try:
                answer = get_session().get(
                    base_url.rstrip("/") + self._ready_path, timeout=max(min(left, _ANSWER_SECONDS), 0.05)
                )
            except Exception as error:
                said, cause = f"{type(error).__name__}: {error}", type(error).__name__
            else:
                if answer.status_code == 200:
                    ready_ms = round((time.monotonic() - began) * 1000)
                    write(logging.INFO, "environment ready", job_id=self.job_id, stage="RUNNING", ready_ms=ready_ms)
                    return
                cause = answer.headers.get("x-runstead-cause", f"answer-{answer.status_code}")
                said = f"{answer.status_code} {answer.headers.get('x-runstead-cause', '')}".strip()
                if answer.status_code == 502:
                    look_at = 0.0
            if job is not None and time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_SECONDS
                self._look(job)
            time.sleep(max(min(pause, deadline - time.monotonic()), 0))
            pause = min(pause * 1.5, _LONGEST_ASK_SECONDS)
        if job is not None:
            self._look(job)
        write(logging.ERROR, "environment not ready", job_id=self.job_id, stage="RUNNING", cause=cause)
        raise EnvironmentNotReady(
            f"the environment at job {self.job_id} did not answer {self._ready_path} within {seconds:g} s; "
            f"the last answer was: {said}. Give it more time, or look at `hf jobs logs {self.job_id}`"
        )

    def stop_container(self) -> None:
        """End the environment. Idempotent; never raises; what the server could not be told ends with its lease."""
        self._job = None
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_container()

    def _await_start(self, job: RunningJob, deadline: float) -> None:
        """Wait until the job runs."""
        pause = _FIRST_ASK_SECONDS
        said = "SCHEDULING"
        while time.monotonic() < deadline:
            try:
                said = self._jobs.check(job)
            except EnvironmentDied as died:
                _tell_of(died)
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            if said == "RUNNING":
                return
            time.sleep(max(min(pause, deadline - time.monotonic()), 0))
            pause = min(pause * 1.5, _LONGEST_ASK_SECONDS)
        write(logging.ERROR, "environment not started", job_id=job.id, stage=said, cause="start-timeout")
        raise EnvironmentNotReady(
            f"the environment's job {job.id} did not run within {self._start_timeout:g} s ({said}); give "
            "JobsProvider a larger start_timeout_s, or a flavor that is free"
        )

    def _look(self, job: RunningJob) -> None:
        """Raise EnvironmentDied if the job is over; a server that does not answer says nothing about that."""
        died = self._jobs.death(job)
        if died is not None:
            _tell_of(died)
            raise died

    def _address(self, job: RunningJob, port: int, access: Access) -> str:
        if access == "public":
            return job.urls[port]
        if access in ("auto", "pass"):
            passed = self._jobs.pass_to(job, port)
            if passed is not None:
                return passed
            if access == "pass":
                raise EnvironmentNotStarted('the server gives no passes to ports; use access="relay" or "public"')
        jobs = self._jobs
        return relay.add(job.id, job.urls[port], jobs.headers, lambda: jobs.death(job))

    def _check_encrypted(self, url: str) -> None:
        """Raise ValueError for an address to which a token would travel in the clear."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not is_loopback(url) and not self._unencrypted:
            where = f"{parts.scheme}://{parts.hostname}"
            raise ValueError(f"a token is not sent unencrypted to another machine; use https: {where}")


def _wrapped(port: int, lease: float, command: tuple[str, ...]) -> list[str]:
    if command and not lease:
        return list(command)
    program = (importlib.resources.files("runstead.openenv") / "watch.py").read_text(encoding="utf-8")
    return ["python3", "-c", program, str(port), str(LEASE_PORT), f"{lease:g}", *command]


def _tell_of(died: EnvironmentDied) -> None:
    cause = died.failure_class or "ended"
    write(logging.ERROR, "environment died", job_id=died.job_id, stage=died.stage, cause=cause)


def _end(jobs: HubJobs, job: RunningJob, pid: int) -> None:
    """End a job: when its provider is told to, is forgotten, or its process ends; whichever is first."""
    if pid != os.getpid():  # the child of a fork leaves its parent's environment alone
        return
    LEASES.drop(job.id)
    relay.drop(job.id)
    if jobs.cancel(job, tries=4):
        write(logging.INFO, "environment stopped", job_id=job.id)
    else:
        text = f"job {job.id} could not be cancelled; its lease or time limit will end it"
        write(logging.ERROR, text, job_id=job.id, cause="server-away")


def _register() -> None:
    """Make the provider an instance of OpenEnv's class, where OpenEnv is installed."""
    try:
        from openenv.core.containers.runtime.providers import (  # pyright: ignore[reportMissingImports]
            ContainerProvider,  # pyright: ignore[reportUnknownVariableType]
        )
    except ImportError:
        return
    ContainerProvider.register(JobsProvider)  # pyright: ignore[reportUnknownMemberType]


_register()
