"""Which jobs are taken for sandboxes."""

from dataclasses import replace

import pytest

from runstead.executors.interface import Capabilities
from runstead.model.errors import Invalid, Unsupported
from runstead.model.jobs import JobSpec
from runstead.model.ports import Ports
from runstead.model.sandboxes import SERVER_BUCKET, SERVER_MOUNT, Mode, SandboxSpec
from runstead.model.volumes import Volume, VolumeKind
from runstead.services.sandboxes.recognition import SandboxRules, kept_labels, recognized

PROGRAM = Volume(VolumeKind.BUCKET, SERVER_BUCKET, SERVER_MOUNT, read_only=True)
OURS = Volume(VolumeKind.BUCKET, "alice/data", "/data")
LABELS = {"hf-sandbox": "1", "hf-sandbox-mode": "dedicated", "hf-sandbox-nonce": "0" * 32, "name": "x"}
DEDICATED = JobSpec(
    command=("/bin/sh", "-c", "set -e"),
    flavor="cpu-basic",
    docker_image="python:3.12",
    environment={"SBX_PORT": "49983", "SBX_IDLE_TIMEOUT": "600", "A": "b"},
    labels=LABELS,
    volumes=(OURS, PROGRAM),
    ports=Ports((49983,)),
)
HOST = replace(
    DEDICATED,
    labels={**LABELS, "hf-sandbox-mode": "pool", "hf-sandbox-pool": "p"},
    environment={"SBX_PORT": "49983", "SBX_HOST_MODE": "1", "SBX_CAPACITY": "50"},
    volumes=(PROGRAM,),
)
BOUNDED = replace(DEDICATED, environment={"RUNSTEAD_EGRESS": "pypi.org:443, 10.0.0.0/8"})
SECRETS = {"SBX_TOKEN", "OTHER"}
ABLE = Capabilities(
    "fake", "fake@1", False, True, False, None, None, inside=True, ports=True, compartments=True, egress=True
)


def test_a_dedicated_sandbox_and_its_idle_timeout() -> None:
    found = recognized(DEDICATED, SECRETS)
    assert found.sandbox == SandboxSpec(Mode.DEDICATED, 600, None, (PROGRAM,))
    assert found.volumes == (OURS,)
    assert found.asked_volumes == (OURS, PROGRAM)
    assert replace(found, sandbox=None, volumes=DEDICATED.volumes) == DEDICATED


def test_a_host_and_its_capacity() -> None:
    found = recognized(HOST, SECRETS)
    assert found.sandbox == SandboxSpec(Mode.POOL, None, 50, (PROGRAM,))
    assert (found.volumes, found.asked_volumes) == ((), (PROGRAM,))


def test_one_submitted_again_stays_what_it_is() -> None:
    found = recognized(DEDICATED, SECRETS)
    assert recognized(found, SECRETS) == found


@pytest.mark.parametrize(
    "ordinary",
    [
        (replace(DEDICATED, labels={"hf-sandbox-mode": "dedicated"}), SECRETS),
        (replace(DEDICATED, labels={**LABELS, "hf-sandbox": "0"}), SECRETS),
        (DEDICATED, {"OTHER"}),
        (replace(DEDICATED, ports=Ports((8000,))), SECRETS),
    ],
)
def test_a_job_that_lacks_one_of_the_three_is_ordinary(ordinary: tuple[JobSpec, set[str]]) -> None:
    assert recognized(*ordinary) == ordinary[0]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (replace(DEDICATED, labels={**LABELS, "hf-sandbox-mode": "both"}), "labels.hf-sandbox-mode"),
        (replace(DEDICATED, labels={**LABELS, "hf-sandbox-mode": "pool"}), "environment.SBX_HOST_MODE"),
        (replace(HOST, labels=LABELS), "environment.SBX_HOST_MODE"),
        (replace(DEDICATED, environment={"SBX_PORT": "8000"}), "environment.SBX_PORT"),
        (replace(DEDICATED, environment={"SBX_IDLE_TIMEOUT": "soon"}), "environment.SBX_IDLE_TIMEOUT"),
        (replace(HOST, environment={**HOST.environment, "SBX_CAPACITY": "-1"}), "environment.SBX_CAPACITY"),
        (replace(DEDICATED, environment={"RUNSTEAD_EGRESS": "a/b"}), "environment.RUNSTEAD_EGRESS"),
        (replace(DEDICATED, environment={"RUNSTEAD_EGRESS": "a:0"}), "environment.RUNSTEAD_EGRESS"),
        (replace(DEDICATED, environment={"RUNSTEAD_EGRESS": "a," * 101}), "environment.RUNSTEAD_EGRESS"),
    ],
)
def test_one_at_odds_with_itself_is_refused(spec: JobSpec, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        recognized(spec, SECRETS)
    assert caught.value.field == field


def test_no_idle_timeout_and_zero_are_the_same() -> None:
    never = recognized(replace(DEDICATED, environment={}), SECRETS)
    zero = recognized(replace(DEDICATED, environment={"SBX_IDLE_TIMEOUT": "0"}), SECRETS)
    assert never.sandbox is not None and never.sandbox.idle_seconds is None
    assert zero.sandbox == never.sandbox


@pytest.mark.parametrize(
    ("spec", "here", "why"),
    [
        (DEDICATED, replace(ABLE, inside=False), "cannot reach into running jobs"),
        (DEDICATED, replace(ABLE, ports=False, without_ports="no network"), "no network"),
        (HOST, replace(ABLE, compartments=False), "sandbox pools are not possible here"),
        (BOUNDED, replace(ABLE, egress=False), "cannot be limited here"),
        (
            replace(HOST, environment={**HOST.environment, "RUNSTEAD_EGRESS": "none"}),
            replace(ABLE, egress=False),
            "here",
        ),
    ],
)
def test_what_the_executor_cannot_have_is_refused_with_the_reason(spec: JobSpec, here: Capabilities, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        SandboxRules(here).accept(spec, SECRETS)
    assert SandboxRules(here).accept(replace(spec, labels={}), SECRETS).sandbox is None
    assert SandboxRules(ABLE).accept(spec, SECRETS).sandbox is not None


@pytest.mark.parametrize(
    ("text", "places"),
    [("pypi.org:443, 10.0.0.0/8,", ("pypi.org:443", "10.0.0.0/8")), ("", ()), (" none ", ()), (None, None)],
)
def test_what_may_be_reached(text: str | None, places: tuple[str, ...] | None) -> None:
    environment = {} if text is None else {"RUNSTEAD_EGRESS": text}
    found = recognized(replace(DEDICATED, environment=environment), SECRETS)
    assert found.sandbox is not None and found.sandbox.egress == places


def test_the_labels_that_clients_need_stay() -> None:
    assert set(kept_labels(recognized(HOST, SECRETS))) == set(HOST.labels) - {"name"}
    assert kept_labels(HOST) == {}
