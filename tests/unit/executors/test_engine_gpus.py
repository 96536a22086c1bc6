"""What an engine is asked for so that a container has GPUs."""

from typing import Any

import pytest

from runstead.executors.docker import gpu_options


@pytest.mark.parametrize(
    ("info", "options"),
    [
        (
            {"CDISpecDirs": ["/etc/cdi"], "Runtimes": {"runc": {}, "nvidia": {}}},
            {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0", "nvidia.com/gpu=GPU-1"]}]},
        ),
        (
            {"CDISpecDirs": [], "Runtimes": {"runc": {}, "nvidia": {}}},
            {
                "DeviceRequests": [
                    {"Driver": "nvidia", "DeviceIDs": ["0", "GPU-1"], "Capabilities": [["gpu", "utility", "compute"]]}
                ]
            },
        ),
        ({"Runtimes": {"runc": {}}}, None),
        ({}, None),
    ],
)
def test_gpus_are_asked_for_as_the_engine_knows_them(info: dict[str, Any], options: dict[str, Any] | None) -> None:
    assert gpu_options(info, ("0", "GPU-1")) == options
    assert gpu_options(info, ()) == {}
