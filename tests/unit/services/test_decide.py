"""The next step of a job, case by case."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from runstead.model.costs import Span
from runstead.model.jobs import UNSET, CancelReason, FailureClass, Initiator, Job, JobSpec, Phase, Stage, Transition
from runstead.model.launches import AttemptState, ExitReason, ExitRecord, Observation
from runstead.model.sandboxes import Mode, SandboxSpec
from runstead.model.volumes import Flushed, Volume, VolumeKind
from runstead.services.decide import Apply, Finish, NotSaved, Release, Retry, Save, Start, Stop, Wait, decide

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HANDLE = {"executor": "x", "version": 1, "data": {}}


def job(phase: Phase, **changes: object) -> Job:
    stage = Stage.RUNNING if phase is Phase.RUNNING else Stage.SCHEDULING
    made = Job(
        seq=1,
        id="0" * 24,
        namespace_id="1",
        namespace="alice",
        namespace_kind="user",
        created_by_id="1",
        created_by="alice",
        spec=JobSpec(command=("true",), flavor="cpu-basic", docker_image="x", timeout_seconds=100),
        stage=stage,
        phase=phase,
        message=None,
        created_at=NOW - timedelta(minutes=1),
        initiator=Initiator("user", "1"),
        handle=HANDLE if phase is Phase.RUNNING else None,
        started_at=NOW - timedelta(seconds=10) if phase is Phase.RUNNING else None,
    )
    return replace(made, **changes)


def ended(reason: ExitReason = ExitReason.EXITED, code: int | None = 0, signal: int | None = None) -> Observation:
    record = ExitRecord(reason, code, signal, NOW - timedelta(seconds=10), NOW - timedelta(seconds=1))
    return Observation(AttemptState.EXITED, exit=record)


RUNNING = Observation(AttemptState.RUNNING)
LOST = Observation(AttemptState.LOST)


def finish(step: object) -> Transition:
    assert isinstance(step, Finish)
    assert step.then.phase is Phase.RELEASING
    return step.then


def test_its_share_of_the_machine_is_free_as_soon_as_nothing_of_it_runs() -> None:
    assert finish(decide(job(Phase.RUNNING), ended(), NOW)).reservation is None


def test_its_share_of_the_machine_is_kept_while_something_of_it_may_run() -> None:
    assert finish(decide(job(Phase.RUNNING), LOST, NOW)).reservation is UNSET
    released = decide(job(Phase.RELEASING), None, NOW)
    assert isinstance(released, Release)
    assert released.then.reservation is None


def test_a_waiting_job_waits_for_admission() -> None:
    assert decide(job(Phase.WAITING), None, NOW) == Wait()


def test_a_waiting_job_that_is_canceled_is_done_at_once() -> None:
    step = decide(job(Phase.WAITING, cancel_requested_at=NOW), None, NOW)
    assert isinstance(step, Apply)
    assert (step.then.phase, step.then.stage) == (Phase.DONE, Stage.CANCELED)


def test_an_admitted_job_is_started() -> None:
    assert decide(job(Phase.STARTING), None, NOW) == Start()


def test_an_admitted_job_that_is_canceled_is_not_started() -> None:
    assert finish(decide(job(Phase.STARTING, cancel_requested_at=NOW), None, NOW)).stage is Stage.CANCELED


def test_a_running_job_is_left_alone() -> None:
    assert decide(job(Phase.RUNNING), RUNNING, NOW) == Wait()


def test_a_running_job_that_is_canceled_is_stopped() -> None:
    assert decide(job(Phase.RUNNING, cancel_requested_at=NOW), RUNNING, NOW) == Stop()


def test_an_idle_sandbox_is_stopped_and_has_completed() -> None:
    spec = replace(job(Phase.RUNNING).spec, sandbox=SandboxSpec(Mode.DEDICATED, idle_seconds=600))
    idle = job(Phase.RUNNING, spec=spec, cancel_requested_at=NOW, cancel_reason=CancelReason.IDLE)
    assert decide(idle, RUNNING, NOW) == Stop()
    then = finish(decide(idle, ended(ExitReason.STOPPED, 143, 15), NOW))
    assert (then.stage, then.failure_class, then.exit_code) == (Stage.COMPLETED, None, 0)
    assert then.message == "ended: nobody used the sandbox for 600 s, its idle timeout"
    assert finish(decide(idle, LOST, NOW)).stage is Stage.COMPLETED


def test_a_job_whose_supervisor_missed_the_time_limit_is_stopped() -> None:
    late = job(Phase.RUNNING, started_at=NOW - timedelta(seconds=161))
    assert decide(late, RUNNING, NOW) == Stop()


@pytest.mark.parametrize(
    ("seen", "failure", "words"),
    [
        (ended(code=3), FailureClass.USER, "exited with code 3"),
        (ended(code=137, signal=9), FailureClass.USER, "signal 9"),
        (ended(ExitReason.TIMEOUT, 143, 15), FailureClass.TIMEOUT, "Job timeout after 100 s"),
        (ended(ExitReason.OOM, 137, 9), FailureClass.OOM, "memory"),
        (ended(ExitReason.START_FAILED, 127), FailureClass.USER, "could not be started"),
        (ended(ExitReason.START_FAILED, None), FailureClass.INFRA, "could not be started"),
        (ended(ExitReason.STOPPED, 143, 15), FailureClass.INFRA, "stopped from outside"),
        (LOST, FailureClass.INFRA, "supervisor died"),
    ],
)
def test_every_failure_has_its_class_and_its_reason(seen: Observation, failure: FailureClass, words: str) -> None:
    step = finish(decide(job(Phase.RUNNING), seen, NOW))
    assert (step.stage, step.failure_class, step.failure_count) == (Stage.ERROR, failure, 1)
    assert isinstance(step.message, str)
    assert step.message.startswith(f"{failure}: ")
    assert words in step.message


def test_a_command_that_succeeds_completes_the_job() -> None:
    step = finish(decide(job(Phase.RUNNING), ended(), NOW))
    assert (step.stage, step.failure_class, step.exit_code, step.failure_count) == (Stage.COMPLETED, None, 0, 0)
    assert step.finished_at == NOW - timedelta(seconds=1)


def test_success_wins_over_a_cancellation_that_came_too_late() -> None:
    step = finish(decide(job(Phase.RUNNING, cancel_requested_at=NOW), ended(), NOW))
    assert step.stage is Stage.COMPLETED


def test_a_canceled_job_is_never_retried() -> None:
    spec = replace(job(Phase.RUNNING).spec, attempts=5)
    for seen in (ended(ExitReason.STOPPED, 143, 15), LOST):
        step = finish(decide(job(Phase.RUNNING, spec=spec, cancel_requested_at=NOW), seen, NOW))
        assert (step.stage, step.failure_class) == (Stage.CANCELED, FailureClass.CANCELED)


def test_a_failed_attempt_is_followed_by_another_while_there_are_any() -> None:
    spec = replace(job(Phase.RUNNING).spec, attempts=2)
    step = decide(job(Phase.RUNNING, spec=spec), ended(code=1), NOW)
    assert isinstance(step, Retry)
    assert (step.then.phase, step.then.stage, step.then.next_attempt) == (Phase.WAITING, Stage.SCHEDULING, 2)
    assert step.then.not_before == NOW + timedelta(seconds=1)
    last = finish(decide(job(Phase.RUNNING, spec=spec, attempt=2, failure_count=1), ended(code=1), NOW))
    assert (last.stage, last.failure_count) == (Stage.ERROR, 2)
    assert "attempt 2 of 2" in str(last.message)


def test_a_lost_attempt_is_removed_before_the_next_may_begin() -> None:
    spec = replace(job(Phase.RUNNING).spec, attempts=2)
    step = decide(job(Phase.RUNNING, spec=spec), LOST, NOW)
    assert isinstance(step, Release)
    assert step.then.phase is Phase.WAITING


def test_a_terminal_job_gives_back_what_it_held_and_is_done() -> None:
    step = decide(job(Phase.RELEASING, stage=Stage.ERROR), LOST, NOW)
    assert isinstance(step, Release)
    assert (step.then.phase, step.then.stage) == (Phase.DONE, Stage.ERROR)
    assert decide(job(Phase.DONE, stage=Stage.ERROR), None, NOW) == Wait()


def writing(phase: Phase = Phase.RUNNING, **changes: object) -> Job:
    volume = Volume(VolumeKind.BUCKET, "alice/outputs", "/out")
    spec = replace(job(phase).spec, volumes=(volume, replace(volume, source="alice/other", read_only=True)), attempts=2)
    return job(phase, spec=spec, **changes)


@pytest.mark.parametrize(
    "seen", [ended(), ended(code=3), ended(ExitReason.TIMEOUT, 143, 15), ended(ExitReason.STOPPED, 143, 15), LOST]
)
def test_however_an_attempt_ended_what_it_wrote_is_saved_first(seen: Observation) -> None:
    for canceled_at in (None, NOW):
        step = decide(writing(cancel_requested_at=canceled_at), seen, NOW)
        assert isinstance(step, Save)
        assert step.lost == (seen is LOST)
        assert (step.then.phase, step.then.stage) == (Phase.RUNNING, Stage.RUNNING)
        assert step.then.message == "the command has ended; saving what it wrote to alice/outputs"


def test_a_running_attempt_is_not_saved() -> None:
    assert decide(writing(), RUNNING, NOW) == Wait()


def test_once_it_is_saved_the_attempt_ends_as_any_other() -> None:
    completed = finish(decide(writing(), ended(), NOW, Flushed(2, 10)))
    assert (completed.stage, completed.message) == (Stage.COMPLETED, "saved 2 files (10 bytes) to alice/outputs")
    assert isinstance(decide(writing(), ended(code=1), NOW, Flushed(0, 0)), Retry)
    assert isinstance(decide(writing(), LOST, NOW, Flushed(0, 0)), Release)
    stopped = finish(decide(writing(cancel_requested_at=NOW), ended(ExitReason.STOPPED, 143, 15), NOW, Flushed(0, 0)))
    assert stopped.stage is Stage.CANCELED


@pytest.mark.parametrize("seen", [ended(), ended(code=3), ended(ExitReason.TIMEOUT, 143, 15), LOST])
def test_what_cannot_be_saved_ends_the_job_with_class_volume_and_no_other_attempt(seen: Observation) -> None:
    for canceled_at in (None, NOW):
        step = finish(decide(writing(cancel_requested_at=canceled_at), seen, NOW, NotSaved("kept in /there")))
        assert (step.stage, step.failure_class, step.failure_count) == (Stage.ERROR, FailureClass.VOLUME, 1)
        assert step.message == "volume: what the job wrote is not all in alice/outputs: kept in /there"


class TestUsed:
    """The time an attempt is charged for."""

    def test_from_its_start_to_its_end_as_its_supervisor_saw_them(self) -> None:
        used = finish(decide(job(Phase.RUNNING), ended(), NOW + timedelta(hours=3))).used
        assert used == Span(NOW - timedelta(seconds=10), NOW - timedelta(seconds=1))

    def test_a_retry_is_charged_for_what_failed(self) -> None:
        spec = replace(job(Phase.RUNNING).spec, attempts=2)
        step = decide(job(Phase.RUNNING, spec=spec), ended(code=1), NOW)
        assert isinstance(step, Retry)
        assert step.then.used == Span(NOW - timedelta(seconds=10), NOW - timedelta(seconds=1))

    def test_a_lost_attempt_is_charged_at_most_to_its_time_limit(self) -> None:
        began = NOW - timedelta(days=2)
        used = finish(decide(job(Phase.RUNNING, started_at=began), LOST, NOW)).used
        assert used == Span(began, began + timedelta(seconds=100))
        soon = finish(decide(job(Phase.RUNNING), LOST, NOW)).used
        assert soon == Span(NOW - timedelta(seconds=10), NOW)

    def test_a_clock_that_was_turned_back_costs_nothing(self) -> None:
        record = ExitRecord(ExitReason.EXITED, 0, None, NOW, NOW - timedelta(hours=1))
        seen = Observation(AttemptState.EXITED, exit=record)
        assert finish(decide(job(Phase.RUNNING), seen, NOW)).used == Span(NOW, NOW)

    def test_what_never_ran_is_free(self) -> None:
        step = decide(job(Phase.WAITING, cancel_requested_at=NOW), None, NOW)
        assert isinstance(step, Apply)
        assert step.then.used is None
        assert finish(decide(job(Phase.STARTING, cancel_requested_at=NOW), None, NOW)).used is None
