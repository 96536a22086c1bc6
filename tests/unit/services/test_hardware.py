"""Flavors of all sizes of machine, and what is refused."""

import pytest

from runstead.model.errors import Invalid, Unsupported
from runstead.model.hardware import Gpu, Machine
from runstead.services.hardware import Hardware, derive_flavors

GB = 2**30


def machine(cores: int, memory: int, *gpus: str, arch: str | None = "amd64") -> Machine:
    found = tuple(Gpu(str(index), model, 80 * GB) for index, model in enumerate(gpus))
    return Machine(cores * 1000, memory * GB, 100 * GB, found, arch)


def names(of: Machine) -> list[str]:
    return [flavor.name for flavor in derive_flavors(of)]


def test_the_default_flavor_is_there_on_the_smallest_machine() -> None:
    assert names(machine(1, 1))[0] == "cpu-basic"
    for flavor in derive_flavors(machine(1, 1)):
        assert flavor.cpu_millicores <= 1000
        assert flavor.memory_bytes <= GB


def test_no_flavor_is_smaller_than_the_one_before() -> None:
    for cores in (1, 2, 4, 8, 96):
        sizes = [flavor.cpu_millicores for flavor in derive_flavors(machine(cores, cores * 4))]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (["NVIDIA H200"], ["h200"]),
        (["NVIDIA H200"] * 8, ["h200", "h200x2", "h200x4", "h200x8"]),
        (["NVIDIA A100-SXM4-80GB"] * 3, ["a100-large", "a100x2", "a100x3"]),
        (["NVIDIA L4"] * 2, ["l4x1", "l4x2"]),
        (["NVIDIA L40S"], ["l40sx1"]),
        (["Tesla T4"], ["t4-small"]),
        (["NVIDIA GeForce RTX 4090"] * 2, ["rtx-4090x1", "rtx-4090x2"]),
    ],
)
def test_gpu_flavors_carry_the_names_scripts_use(gpus: list[str], expected: list[str]) -> None:
    assert [name for name in names(machine(16, 64, *gpus)) if not name.startswith("cpu")] == expected


def test_an_unknown_flavor_is_refused_with_those_there_are() -> None:
    here = machine(2, 8)
    with pytest.raises(Invalid, match=r"no flavor 'a10g-small'; it has cpu-basic"):
        Hardware(derive_flavors(here), here, 1.0).flavor("a10g-small")


def test_a_flavor_larger_than_the_machine_never_waits_for_ever() -> None:
    large, small = machine(8, 32), machine(2, 8)
    with pytest.raises(Unsupported, match="larger than what the machine offers"):
        Hardware(derive_flavors(large), small, 1.0).flavor("cpu-performance")


def test_a_job_for_other_processors_is_refused() -> None:
    here = machine(2, 8)
    hardware = Hardware(derive_flavors(here), here, 1.0)
    hardware.check_arch(None)
    hardware.check_arch("amd64")
    with pytest.raises(Unsupported, match="amd64, not arm64"):
        hardware.check_arch("arm64")
    Hardware([], machine(2, 8, arch=None), 1.0).check_arch("arm64")
