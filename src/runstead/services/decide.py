"""The next step for a job: a pure function of the job, what its executor says, and the time.

`runstead.services.reconcile` carries the steps out. Each is safe to repeat after a crash at any instant.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from runstead.model.costs import Span
from runstead.model.jobs import UNSET, CancelReason, FailureClass, Job, Phase, Stage, Transition
from runstead.model.launches import AttemptState, ExitReason, ExitRecord, Observation
from runstead.model.volumes import Flushed

_FIRST_RETRY_SECONDS = 1
_LONGEST_RETRY_SECONDS = 60
# The supervisor enforces the time limit; this much later the server does, in case the supervisor cannot.
_LATE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Start:
    """Ask the executor for the attempt, then apply what comes of it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the executor to end the attempt, then look again."""


@dataclass(frozen=True, slots=True)
class Save:
    """Apply `then`, bring what the attempt wrote into its buckets, and decide again with what came of it.

    What was `lost` may still write somewhere, and is removed first.
    """

    then: Transition
    lost: bool


@dataclass(frozen=True, slots=True)
class NotSaved:
    """What the attempt wrote could not be brought into its buckets; the reason says where it is kept."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Give back what the attempt held, then apply `then`."""

    then: Transition


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt is over and on record: apply `then`, which queues the next, and give back what it held."""

    then: Transition


@dataclass(frozen=True, slots=True)
class Finish:
    """Seal the log, then apply `then`, which makes the job terminal."""

    then: Transition


@dataclass(frozen=True, slots=True)
class Apply:
    """Nothing to do outside the store."""

    then: Transition


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something changes."""


Step = Start | Stop | Save | Release | Retry | Finish | Apply | Wait


Saved = Flushed | NotSaved | None


def decide(job: Job, seen: Observation | None, now: datetime, saved: Saved = None) -> Step:
    """Return the next step.

    `seen` is the executor's word on the current attempt; None when it has no handle. `saved` is what came of
    bringing its writable volumes into their buckets; None when that was not tried since this server looks at it.
    """
    match job.phase:
        case Phase.DONE:
            return Wait()
        case Phase.WAITING:
            return Apply(canceled(job, now)) if job.cancel_requested_at else Wait()
        case Phase.RELEASING:
            return Release(_move(job, Phase.DONE, job.stage, now, handle=None, reservation=None))
        case Phase.STARTING | Phase.RUNNING:
            return _decide_active(job, seen, now, saved)


def _decide_active(job: Job, seen: Observation | None, now: datetime, saved: Saved) -> Step:
    if seen is None:
        return Finish(canceled(job, now)) if job.cancel_requested_at else Start()
    over = seen.state is not AttemptState.RUNNING
    if over and job.spec.writes_to and saved is None:
        return Save(_move(job, job.phase, job.stage, now, message=_saving_text(job)), lost=seen.exit is None)
    if over and isinstance(saved, NotSaved):
        return Finish(unsaved(job, saved.reason, now, seen.exit))
    match seen.state:
        case AttemptState.EXITED if seen.exit is not None:
            return _decide_ended(job, *_verdict(job, seen.exit), now, seen.exit, saved)
        case AttemptState.RUNNING:
            if job.cancel_requested_at is not None:
                return Stop()
            if job.started_at is not None and now > job.started_at + timedelta(
                seconds=job.spec.timeout_seconds + _LATE_SECONDS
            ):
                return Stop()
            return Wait()
        case _:
            if job.cancel_requested_at is not None:
                return Finish(canceled(job, now))
            why = seen.message or "its supervisor died without leaving an exit record"
            return _decide_ended(job, FailureClass.INFRA, f"the attempt was lost: {why}", now, None, saved)


def _decide_ended(
    job: Job, failure: FailureClass | None, reason: str, now: datetime, record: ExitRecord | None, saved: Saved
) -> Step:
    if failure is FailureClass.CANCELED:
        return Finish(canceled(job, now, record))
    if failure is not None and job.attempt < job.spec.attempts:
        again = retry(job, failure, reason, now, record)
        # What was lost may still run somewhere: it is removed before another attempt can begin.
        return Retry(again) if record is not None else Release(again)
    return Finish(ended(job, failure, reason, now, record, saved if isinstance(saved, Flushed) else None))


def _verdict(job: Job, record: ExitRecord) -> tuple[FailureClass | None, str]:
    match record.reason:
        case ExitReason.STOPPED if job.cancel_requested_at is not None:
            return FailureClass.CANCELED, ""
        case ExitReason.STOPPED:
            if _past_limit(job, record.finished_at):
                return FailureClass.TIMEOUT, _timeout_text(job)
            return FailureClass.INFRA, "the attempt was stopped from outside"
        case ExitReason.TIMEOUT:
            return FailureClass.TIMEOUT, _timeout_text(job)
        case ExitReason.OOM:
            return FailureClass.OOM, record.message or "the job used more memory than its flavor has"
        case ExitReason.START_FAILED:
            # Without an exit code it was not the command that failed but what we make around it.
            failure = FailureClass.INFRA if record.exit_code is None else FailureClass.USER
            return failure, record.message or "the command could not be started"
        case ExitReason.EXITED:
            if record.exit_code == 0:
                return None, ""
            if record.signal is not None:
                return FailureClass.USER, f"the command was ended by signal {record.signal}"
            return FailureClass.USER, f"the command exited with code {record.exit_code}"


def _past_limit(job: Job, at: datetime) -> bool:
    return job.started_at is not None and at >= job.started_at + timedelta(seconds=job.spec.timeout_seconds)


def _timeout_text(job: Job) -> str:
    return f"Job timeout after {job.spec.timeout_seconds} s; ask for more with --timeout"


def _idle_text(job: Job) -> str:
    idle_seconds = job.spec.sandbox.idle_seconds if job.spec.sandbox else None
    return f"ended: nobody used the sandbox for {idle_seconds} s, its idle timeout"


def _saving_text(job: Job) -> str:
    return f"the command has ended; saving what it wrote to {', '.join(job.spec.writes_to)}"


def _saved_text(job: Job, saved: Flushed | None) -> str | None:
    if saved is None or not saved.files:
        return None
    files = "1 file" if saved.files == 1 else f"{saved.files} files"
    return f"saved {files} ({saved.bytes:,} bytes) to {', '.join(job.spec.writes_to)}"


def running(job: Job, started_at: datetime, note: str | None, now: datetime) -> Transition:
    """The attempt runs."""
    return _move(job, Phase.RUNNING, Stage.RUNNING, now, started_at=started_at, message=note)


def canceled(job: Job, now: datetime, record: ExitRecord | None = None) -> Transition:
    """The job ends because somebody asked for it, or, a sandbox, because nobody used it."""
    if job.cancel_reason is CancelReason.IDLE:
        return _terminal(
            job, Stage.COMPLETED, None, _idle_text(job), now, replace(record, exit_code=0) if record else None
        )
    return _terminal(job, Stage.CANCELED, FailureClass.CANCELED, "canceled: on request", now, record)


def unsaved(job: Job, reason: str, now: datetime, record: ExitRecord | None = None) -> Transition:
    """The attempt is over, however it went, and what it wrote is not where it belongs."""
    text = f"{FailureClass.VOLUME}: what the job wrote is not all in {', '.join(job.spec.writes_to)}: {_clean(reason)}"
    return _terminal(job, Stage.ERROR, FailureClass.VOLUME, text, now, record)


def ended(
    job: Job,
    failure: FailureClass | None,
    reason: str,
    now: datetime,
    record: ExitRecord | None = None,
    saved: Flushed | None = None,
) -> Transition:
    """The job ends by itself, well or not."""
    outputs = _saved_text(job, saved)
    if failure is None:
        return _terminal(job, Stage.COMPLETED, None, outputs, now, record)
    text = f"{failure}: {_clean(reason)}"
    if job.spec.attempts > 1:
        text += f" (attempt {job.attempt} of {job.spec.attempts})"
    if outputs is not None:
        text += f"; {outputs}"
    return _terminal(job, Stage.ERROR, failure, text, now, record)


def retry(job: Job, failure: FailureClass, reason: str, now: datetime, record: ExitRecord | None = None) -> Transition:
    """The attempt failed and the next goes to the queue, after a pause that doubles each time."""
    pause = min(_FIRST_RETRY_SECONDS * 2 ** (job.attempt - 1), _LONGEST_RETRY_SECONDS)
    return _move(
        job,
        Phase.WAITING,
        Stage.SCHEDULING,
        now,
        message=f"attempt {job.attempt} of {job.spec.attempts} failed ({failure}: {_clean(reason)}); "
        f"the next waits {pause} s",
        failure_class=failure,
        exit_code=record.exit_code if record else None,
        started_at=None,
        not_before=now + timedelta(seconds=pause),
        handle=None,
        reservation=None,
        executor=None,
        next_attempt=job.attempt + 1,
        failure_count=job.failure_count + 1,
        used=_used(job, record, now),
    )


def _clean(reason: str) -> str:
    """A reason may quote what a user wrote; no database stores a NUL or half a surrogate pair."""
    return reason.replace("\0", "\\0").encode("utf-8", "replace").decode()


def _terminal(
    job: Job,
    stage: Stage,
    failure: FailureClass | None,
    message: str | None,
    now: datetime,
    record: ExitRecord | None,
) -> Transition:
    never_started = job.phase is Phase.WAITING
    return _move(
        job,
        Phase.DONE if never_started else Phase.RELEASING,
        stage,
        now,
        message=message,
        failure_class=failure,
        exit_code=record.exit_code if record else None,
        started_at=(record.started_at if record else None) or job.started_at,
        finished_at=max(record.finished_at, job.created_at) if record else now,
        failure_count=job.failure_count + (failure not in (None, FailureClass.CANCELED)),
        used=_used(job, record, now),
        # With a record nothing of it runs any more, so the next may have its processors, memory and GPUs at once.
        reservation=UNSET if record is None else None,
    )


def _used(job: Job, record: ExitRecord | None, now: datetime) -> Span | None:
    """Return the time that the attempt ran. No longer than it may: one that was lost may have been so for long."""
    began = (record.started_at if record else None) or job.started_at
    if began is None or job.phase is Phase.WAITING:
        return None
    ended = record.finished_at if record else now
    return Span(began, max(began, min(ended, began + timedelta(seconds=job.spec.timeout_seconds))))


def _move(job: Job, phase: Phase, stage: Stage, now: datetime, **changes: object) -> Transition:
    return Transition(
        job_id=job.id,
        attempt=job.attempt,
        from_phases=frozenset({job.phase}),
        phase=phase,
        stage=stage,
        at=now,
        **changes,  # type: ignore[arg-type]
    )
