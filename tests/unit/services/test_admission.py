"""Rounds of admission as a pure function: who starts, who waits, and why."""

from collections import Counter
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from runstead.model.hardware import Accelerator, Flavor, Resources
from runstead.model.jobs import Initiator, Job, JobSpec, Phase, Reservation, Stage
from runstead.services.admission import plan
from runstead.stores.interface import Waiting

GB = 2**30
FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor("small", "", 1000, 1 * GB, None),
        Flavor("large", "", 4000, 8 * GB, None),
        Flavor("gpu", "", 1000, 1 * GB, None, Accelerator("gpu", "X", 1, GB, "Nvidia")),
    )
}
CAPACITY = Resources(4000, 8 * GB, 1)


def waiting(*flavors: str) -> list[Waiting]:
    jobs = [
        Job(
            seq=seq,
            id=f"{seq:024x}",
            namespace_id="1",
            namespace="a",
            namespace_kind="user",
            created_by_id="1",
            created_by="a",
            spec=JobSpec(command=("true",), flavor=flavor, docker_image="x"),
            stage=Stage.SCHEDULING,
            phase=Phase.WAITING,
            message=None,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            initiator=Initiator("user", "1"),
        )
        for seq, flavor in enumerate(flavors)
    ]
    names = dict.fromkeys(flavors)
    return [Waiting(name, [job for job in jobs if job.spec.flavor == name]) for name in names]


def admitted(heads: list[Waiting], held: list[Reservation] | None = None) -> tuple[list[int], dict[str, str]]:
    outcome = plan(heads, FLAVORS, CAPACITY, ["0"], held or [], "e")
    return [int(one.job_id, 16) for one in outcome.admissions], dict(outcome.blocked)


def test_jobs_start_in_order_until_the_machine_is_full() -> None:
    started, blocked = admitted(waiting(*["small"] * 6))
    assert started == [0, 1, 2, 3]
    assert blocked == {"small": "waiting for 1 vCPU (0 of 4 free)"}


def test_a_large_job_is_not_starved_by_small_ones_behind_it() -> None:
    held = [Reservation(1000, GB)]
    started, blocked = admitted(waiting("large", "small", "small"), held)
    assert started == []
    assert "4 vCPU (3 of 4 free)" in blocked["large"]
    assert "small" in blocked


def test_a_job_that_lacks_a_gpu_does_not_stop_those_that_need_none() -> None:
    held = [Reservation(1000, GB, ("0",))]
    started, blocked = admitted(waiting("gpu", "small", "small", "small"), held)
    assert started == [1, 2]  # one share of CPU is held back for the GPU job
    assert "1 GPU (0 of 1 free)" in blocked["gpu"]


def test_no_gpu_is_given_twice() -> None:
    outcome = plan(waiting("gpu", "gpu"), FLAVORS, CAPACITY, ["0"], [], "e")
    assert [one.reservation.gpu_ids for one in outcome.admissions if one.reservation] == [("0",)]


def test_a_backend_with_a_queue_of_its_own_gets_everything() -> None:
    outcome = plan(waiting(*["large"] * 9), FLAVORS, None, [], [], "e")
    assert len(outcome.admissions) == 9
    assert not outcome.blocked


@given(st.lists(st.sampled_from(sorted(FLAVORS)), max_size=30), st.integers(0, 4))
def test_never_more_is_promised_than_there_is_and_order_holds_within_a_flavor(flavors: list[str], busy: int) -> None:
    held = [Reservation(1000, GB)] * busy
    outcome = plan(waiting(*flavors), FLAVORS, CAPACITY, ["0"], held, "e")
    given_out = [one.reservation for one in outcome.admissions if one.reservation] + held
    assert sum(r.cpu_millicores for r in given_out) <= CAPACITY.cpu_millicores
    assert sum(r.memory_bytes for r in given_out) <= CAPACITY.memory_bytes
    assert all(n == 1 for n in Counter(gpu for r in given_out for gpu in r.gpu_ids).values())
    started = {int(one.job_id, 16) for one in outcome.admissions}
    for name in FLAVORS:
        places = [seq for seq, flavor in enumerate(flavors) if flavor == name]
        chosen = [seq for seq in places if seq in started]
        assert chosen == places[: len(chosen)]
        assert len(chosen) == len(places) or name in outcome.blocked
