"""Values survive the way into a row and back."""

from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.model.errors import Invalid
from runstead.model.jobs import JobSpec, Reservation
from runstead.model.ports import NetworkGroup, Ports
from runstead.model.sandboxes import Mode, SandboxSpec
from runstead.model.volumes import Volume, VolumeKind
from runstead.stores.database import reject_unstorable
from runstead.stores.rows import (
    instant_from,
    instant_to,
    label_columns,
    reservation_from,
    reservation_to,
    spec_from,
    spec_to,
)

TEXT = st.text(max_size=20)
TEXTS = st.lists(TEXT, max_size=4).map(tuple)
MAPPING = st.dictionaries(TEXT, TEXT, max_size=4)

SPECS = st.builds(
    JobSpec,
    command=TEXTS,
    flavor=TEXT,
    docker_image=st.none() | TEXT,
    space_id=st.none() | TEXT,
    arguments=TEXTS,
    environment=MAPPING,
    secret_names=TEXTS,
    timeout_seconds=st.integers(1, 10**9),
    attempts=st.integers(1, 100),
    labels=MAPPING,
    resource_group_id=st.none() | TEXT,
    arch=st.none() | TEXT,
    tags=TEXTS,
)


@given(SPECS)
def test_a_specification_comes_back(spec: JobSpec) -> None:
    assert spec_from(spec_to(spec), label_columns(spec.labels)) == spec


def test_no_field_of_a_specification_is_forgotten() -> None:
    """Fails when a field was added to JobSpec: give it a value here, and a place in the row."""
    spec = JobSpec(
        command=("a",),
        flavor="b",
        docker_image="c",
        space_id="d",
        arguments=("e",),
        environment={"f": "g"},
        secret_names=("h",),
        timeout_seconds=1,
        attempts=2,
        labels={"i": "j"},
        resource_group_id="k",
        arch="l",
        tags=("m",),
        volumes=(Volume(VolumeKind.BUCKET, "n/o", "/p", "q", "r", True, "s"),),
        ports=Ports((1, 2), (2,)),
        network=NetworkGroup("w", ("x", "y")),
        sandbox=SandboxSpec(Mode.POOL, 3, 4, (Volume(VolumeKind.BUCKET, "t/u", "/v"),), ("x",), ("w",)),
    )
    for field in fields(JobSpec):
        usual = field.default_factory() if field.default_factory is not MISSING else field.default
        assert getattr(spec, field.name) != usual, field.name
    assert spec_from(spec_to(spec), label_columns(spec.labels)) == spec


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_keeps_its_microseconds(at: datetime) -> None:
    assert instant_from(instant_to(at)) == at


def test_an_instant_is_the_same_in_every_zone() -> None:
    here = datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=5)))
    assert instant_from(instant_to(here)) == here
    assert instant_from(instant_to(here)).tzinfo is UTC
    with pytest.raises(TypeError):
        instant_to(here.replace(tzinfo=None))


def test_a_reservation_comes_back() -> None:
    for reservation in (Reservation(1, 2), Reservation(64_000, 2**41, ("GPU-1", "GPU-2"))):
        assert reservation_from(reservation_to(reservation)) == reservation


@pytest.mark.parametrize("text", ["\0", "a\0ü", "\ud800"])
def test_text_that_cannot_be_stored_is_named(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        reject_unstorable({"number": 1, "nothing": None, "good": "ü", "bad": text})
    assert refused.value.field == "bad"
