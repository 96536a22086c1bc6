"""What an agent is told to do next."""

import pytest

from runstead.mcp.advice import after_job, after_refusal
from runstead.mcp.hub import HubError
from runstead.mcp.outcome import JobOutput, Owner, Status


def job(stage: str = "ERROR", **status: object) -> JobOutput:
    return JobOutput(
        id="a" * 24,
        url="http://x",
        owner=Owner(name="mia"),
        timeout_seconds=90,
        status=Status.model_validate({"stage": stage, **status}),
    )


@pytest.mark.parametrize(
    ("log", "status", "said"),
    [
        (["ModuleNotFoundError: No module named 'six.moves'"], {"failure_class": "user"}, "'six' to `dependencies`"),
        ([], {"failure_class": "timeout", "message": "timeout: Job timeout"}, "after 90 s"),
        ([], {"failure_class": "oom"}, "larger flavor"),
        ([], {"failure_class": "user", "exit_code": 137}, "larger flavor"),
        (["torch.OutOfMemoryError: CUDA out of memory."], {"failure_class": "user"}, "GPU's memory"),
        (["OSError: [Errno 28] No space left on device"], {"failure_class": "user"}, "disk was full"),
        (["403 Client Error: Forbidden for url"], {"failure_class": "user"}, '"$HF_TOKEN"'),
        (["sh: 1: nvidia-smi: not found"], {"failure_class": "user"}, "'nvidia-smi' is not there"),
        (["error: Failed to spawn: `mine.py`"], {"failure_class": "user"}, "Send the code itself"),
        ([], {"failure_class": "image", "message": "image: no such image"}, "then `rerun`"),
        (["Traceback", "ValueError: 3"], {"failure_class": "user", "exit_code": 1}, "Read the end of the log"),
    ],
)
def test_a_failed_job_says_how_to_mend_it(log: list[str], status: dict[str, object], said: str) -> None:
    assert said in " ".join(after_job(job(**status), log))


def test_what_went_well_needs_no_advice_and_what_goes_on_says_how_to_wait() -> None:
    assert after_job(job("COMPLETED"), []) == []
    assert '"operation": "wait"' in after_job(job("RUNNING"), [])[0]
    assert "rerun" in after_job(job("CANCELED"), [])[0]


@pytest.mark.parametrize("status", [0, 400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 501, 502, 503, 504])
def test_every_refusal_has_a_next_step(status: int) -> None:
    for operation in ("run", "scheduled run"):
        steps = after_refusal(HubError(status, "no", "7"), operation)
        assert len(steps) == 1
        assert steps[0]
    assert "Wait 7 s" in after_refusal(HubError(503, "busy", "7"), "ps")[0]
