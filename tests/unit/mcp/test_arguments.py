"""What an agent may write for an argument, and what it is told when it is wrong."""

import pytest
from pydantic import ValidationError

from runstead.mcp.arguments import Run, Uv, VolumeMount
from runstead.mcp.operations import OPERATIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://buckets/mia/data:/data", {"type": "bucket", "source": "mia/data", "mount_path": "/data"}),
        (
            "hf://buckets/mia/data/run 1/out:/data:rw",
            {"type": "bucket", "source": "mia/data", "path": "run 1/out", "mount_path": "/data", "read_only": False},
        ),
        (
            "hf://datasets/org/set@v1.0/train:/in:ro",
            {
                "type": "dataset",
                "source": "org/set",
                "revision": "v1.0",
                "path": "train",
                "mount_path": "/in",
                "read_only": True,
            },
        ),
        ("hf://org/model:/models/m", {"type": "model", "source": "org/model", "mount_path": "/models/m"}),
        ("hf://spaces/a/b:/s", {"type": "space", "source": "a/b", "mount_path": "/s"}),
    ],
)
def test_volumes_are_read_as_the_command_line_writes_them(text: str, expected: dict[str, object]) -> None:
    assert VolumeMount.model_validate(text).model_dump(exclude_none=True) == expected


@pytest.mark.parametrize("text", ["/home/me:/data", "hf://buckets/x:/data", "hf://buckets/a/b", "hf://a/b:data", ""])
def test_what_is_no_volume_is_told_the_form(text: str) -> None:
    with pytest.raises(ValidationError, match="OWNER/NAME"):
        VolumeMount.model_validate(text)


@pytest.mark.parametrize(("given", "seconds"), [("90", 90), (90, 90), ("90s", 90), ("1.5h", 5400), ("2 d", 172800)])
def test_times_have_units(given: object, seconds: float) -> None:
    assert Run.model_validate({"command": "x", "timeout": given}).timeout == seconds


@pytest.mark.parametrize("given", ["", "soon", "-5m", "5 weeks", 0, -1, "0"])
def test_what_is_no_time_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        Run.model_validate({"command": "x", "timeout": given})


def test_values_of_variables_may_be_numbers() -> None:
    given = {"command": "x", "env": {"A": 1, "B": True, "C": 1.5}}
    assert Run.model_validate(given).env == {"A": "1", "B": "true", "C": "1.5"}


@pytest.mark.parametrize("namespace", ["a/b", "..", "", "a b", "../x"])
def test_a_namespace_is_one_name(namespace: str) -> None:
    with pytest.raises(ValidationError):
        Run.model_validate({"command": "x", "namespace": namespace})


def test_the_official_name_of_dependencies_is_known() -> None:
    for name in ("dependencies", "with_deps"):
        assert Uv.model_validate({"script": "x", name: ["six"]}).dependencies == ["six"]


@pytest.mark.parametrize("key", ["", " ", "schl\u00fcssel", "a\nb", "x" * 201])
def test_a_key_can_travel_in_a_header(key: str) -> None:
    assert Run.model_validate({"command": "x", "idempotency_key": "step 1/2"}).idempotency_key == "step 1/2"
    with pytest.raises(ValidationError):
        Run.model_validate({"command": "x", "idempotency_key": key})


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_every_argument_says_what_it_is_and_every_example_is_right(operation) -> None:  # type: ignore[no-untyped-def]
    for name, field in operation.arguments.model_fields.items():
        assert field.description, name
    operation.arguments.model_validate(dict(operation.args))
