"""What is read of a container's first process, so that others inside get no more than it."""

import resource
import sys
from pathlib import Path

import pytest

from runstead.node.inside.entrance import label_to_take, limits_in


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_limits_are_those_that_the_kernel_tells() -> None:
    found = {number: (soft, hard) for number, soft, hard in limits_in(Path("/proc/self/limits").read_text())}
    assert found == {number: resource.getrlimit(number) for number in found}
    assert {resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_AS} <= set(found)


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        ("", None),
        ("unconfined\n", None),
        ("kernel\0", None),
        ("docker-default (enforce)\n", "exec docker-default"),
        ("containers-default-0.50.1 (complain)\n", "exec containers-default-0.50.1"),
        ("system_u:system_r:container_t:s0:c1,c2\0", "system_u:system_r:container_t:s0:c1,c2"),
    ],
)
def test_labels_of_security_modules(found: str, asked: str | None) -> None:
    assert label_to_take(found) == asked
