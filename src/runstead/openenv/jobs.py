"""The few things a provider asks of a jobs server, each with what it takes on a network that fails."""

import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HfHubHTTPError, get_session

from runstead.openenv.errors import EnvironmentDied, EnvironmentNotStarted
from runstead.openenv.journal import write

KEY_LABEL = "openenv-key"
"""The label that holds a key of the provider's own: by it a job is found whose creation was not answered."""

_LOG_LINES = 20
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 8.0
_CALL_SECONDS = 30.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_OVER = frozenset({"COMPLETED", "ERROR", "CANCELED", "DELETED"})


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job to create."""

    image: str
    command: Sequence[str]
    flavor: str
    timeout: str | float
    ports: Sequence[int]
    public: bool
    environment: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str]
    volumes: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that was created."""

    id: str
    namespace: str
    urls: Mapping[int, str]  # port: its address, without a slash at the end
    stage: str | None = None  # when it was created


class HubJobs:
    """Jobs of one endpoint and one token."""

    def __init__(self, endpoint: str | None, token: str | None, namespace: str | None) -> None:
        self._api = HfApi(endpoint=endpoint, token=token)
        self._token = token
        self._namespace = namespace

    @property
    def endpoint(self) -> str:
        """The server, without a slash at the end."""
        return self._api.endpoint

    def headers(self) -> dict[str, str]:
        """Return what a request to a port of a job needs."""
        token = self._token or get_token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def create(self, request: JobRequest, tries: int) -> RunningJob:
        """Create one job, however often that has to be tried. Raises EnvironmentNotStarted.

        Each try has the same idempotency key. Where a server does not know keys, a job that a lost answer told of is
        found by its label before the next try.
        """
        key = uuid.uuid4().hex
        api = HfApi(endpoint=self._api.endpoint, token=self._token, headers={"Idempotency-Key": key})
        reason: Exception | None = None
        for pause in _pauses(tries):
            if reason is not None:
                text = f"creating the environment's job failed; trying again in {pause:.1f} s: {reason}"
                write(logging.WARNING, text, cause=_cause(reason))
                time.sleep(pause)
                found = self._find(key)
                if found is not None:
                    return found
            try:
                return _running(self._submit(api, request, key))
            except HfHubHTTPError as error:
                if _status(error) not in _RETRIED:
                    raise EnvironmentNotStarted(f"the server refused the environment's job: {error}") from error
                reason = error
            except ValueError as error:
                raise EnvironmentNotStarted(f"the environment's job cannot be asked for: {error}") from error
            except Exception as error:  # the HTTP library's own: connection refused, reset, timed out
                if not _is_transport(error):
                    raise
                reason = error
        found = self._find(key)
        if found is not None:
            return found
        raise EnvironmentNotStarted(
            f"the environment's job could not be created in {tries} tries: {reason}"
        ) from reason

    def _submit(self, api: HfApi, request: JobRequest, key: str) -> Any:
        exposed = {"expose_public" if request.public else "expose": list(request.ports)}
        return api.run_job(
            image=request.image,
            command=list(request.command),
            env=dict(request.environment),
            secrets=dict(request.secrets),
            flavor=request.flavor,
            timeout=request.timeout,
            labels={**request.labels, KEY_LABEL: key},
            volumes=list(request.volumes) or None,
            namespace=self._namespace,
            **exposed,  # pyright: ignore[reportArgumentType]
        )

    def _find(self, key: str) -> RunningJob | None:
        try:
            found = list(self._api.list_jobs(labels={KEY_LABEL: key}, namespace=self._namespace))
        except Exception as error:
            text = f"the server could not be asked whether the job is there: {error}"
            write(logging.WARNING, text, cause=_cause(error))
            return None
        return _running(found[0]) if found else None

    def check(self, job: RunningJob) -> str:
        """Return the stage of a job that is not over. Raises EnvironmentDied with its last words; network errors."""
        seen = self._api.inspect_job(job_id=job.id, namespace=job.namespace)
        stage = _stage(seen)
        if stage in _OVER:
            raise EnvironmentDied(job.id, stage, seen.status.message, self._last_lines(job))
        return stage

    def death(self, job: RunningJob) -> EnvironmentDied | None:
        """Return how a job ended; None while it goes on, or when the server cannot be asked."""
        try:
            self.check(job)
        except EnvironmentDied as died:
            return died
        except Exception as error:
            _warn(job, "could not be looked at", error)
        return None

    def cancel(self, job: RunningJob, tries: int) -> bool:
        """End a job; never raises. False when the server could not be told."""
        for pause in _pauses(tries):
            try:
                self._api.cancel_job(job_id=job.id, namespace=job.namespace)
            except HfHubHTTPError as error:
                if _status(error) not in _RETRIED:  # it is over, or gone
                    text = f"job {job.id} needed no cancel: {error}"
                    write(logging.INFO, text, job_id=job.id, cause=_cause(error))
                    return True
                _warn(job, "could not be cancelled yet", error)
            except Exception as error:
                _warn(job, "could not be cancelled yet", error)
            else:
                return True
            time.sleep(pause)
        return False

    def pass_to(self, job: RunningJob, port: int) -> str | None:
        """Return an address of the port that lets in without a header; None where the server has none (hosted)."""
        url = f"{self.endpoint}/jobs-proxy/{job.id}--{port}.pass"
        for pause in _pauses(4):
            try:
                answer = get_session().get(url, headers=self.headers(), timeout=_CALL_SECONDS)
            except Exception as error:
                _warn(job, "has no address for its port yet", error)
            else:
                if answer.status_code == 200:
                    return self.endpoint + str(answer.json()["path"])
                if answer.status_code not in _RETRIED:
                    return None
            time.sleep(pause)
        return None

    def _last_lines(self, job: RunningJob) -> tuple[str, ...]:
        try:
            lines = self._api.fetch_job_logs(job_id=job.id, namespace=job.namespace, follow=False, tail=_LOG_LINES)
            return tuple(str(line).rstrip("\n") for line in lines)[-_LOG_LINES:]
        except Exception as error:
            return (f"(its log could not be read: {error})",)


def _running(job: Any) -> RunningJob:
    urls: dict[int, str] = {}
    for url in job.status.expose_urls or ():
        port = url.rpartition("--")[2].partition(".")[0]
        if port.isdigit():
            urls[int(port)] = str(url).rstrip("/")
    return RunningJob(str(job.id), str(job.owner.name), urls, _stage(job))


def _stage(job: Any) -> str:
    return str(getattr(job.status.stage, "value", job.status.stage))


def _pauses(tries: int, jitter: Callable[[], float] = random.random) -> list[float]:
    """Return the pauses before each try but the first, doubling, with up to half of each left to chance."""
    pauses = [min(_FIRST_PAUSE_SECONDS * 2**i, _LONGEST_PAUSE_SECONDS) for i in range(tries)]
    return [pause * (0.5 + jitter() / 2) for pause in pauses]


def _warn(job: RunningJob, what: str, error: Exception) -> None:
    write(logging.WARNING, f"job {job.id} {what}: {error}", job_id=job.id, cause=_cause(error))


def _cause(error: Exception) -> str:
    """Return one word for what a server or the way to it did."""
    status = _status(error) if isinstance(error, HfHubHTTPError) else 0
    return f"answer-{status}" if status else type(error).__name__


def _status(error: HfHubHTTPError) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _is_transport(error: Exception) -> bool:
    """Say whether an error is the HTTP library's, whichever the client uses (requests, httpx, httpx2)."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("requests", "httpx", "httpx2")
