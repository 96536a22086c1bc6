"""Descriptions of devices: read as `nvidia-ctk cdi generate` writes them, and hooks done without it."""

import json
from pathlib import Path

import pytest

from runstead.executors.cdi import NVIDIA, Devices, Edits

_DESCRIBED = """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  - hostPath: /dev/nvidia-uvm
    path: /dev/nvidia-uvm
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args: [nvidia-ctk, hook, create-symlinks, --link, libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so]
    hookName: createContainer
    path: /usr/bin/nvidia-ctk
  - args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu, --folder=/opt/lib]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args: [nvidia-ctk, hook, enable-cuda-compat, --host-driver-version=550.1]
    hookName: createContainer
    path: /usr/bin/nvidia-ctk
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.1
    hostPath: /usr/lib/libcuda.so.550.1
    options: [ro, nosuid, nodev, bind]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: "1"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
"""


def test_a_device_brings_what_all_need_and_its_own(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(_DESCRIBED)
    devices = Devices([tmp_path, tmp_path / "none"])
    assert devices.problems == []
    assert devices.names() == ["nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all"]
    shared = (("/dev/nvidiactl", "/dev/nvidiactl"), ("/dev/nvidia-uvm", "/dev/nvidia-uvm"))
    assert devices.find(NVIDIA, ["1"]) == Edits(
        devices=(*shared, ("/dev/nvidia1", "/dev/nvidia1")),
        binds=(("/usr/lib/libcuda.so.550.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.550.1"),),
        environment={"NVIDIA_VISIBLE_DEVICES": "void"},
        links=(("libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so"),),
        library_folders=("/opt/lib", "/usr/lib/x86_64-linux-gnu"),
    )
    both = devices.find(NVIDIA, ["0", "1"])
    assert both is not None
    assert [source for source, _ in both.devices] == [
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia0",
        "/dev/nvidia1",
    ]
    assert devices.find(NVIDIA, ["7"]) is None
    assert devices.find(NVIDIA, []) == Edits()


def test_what_is_generated_later_wins_and_hooks_that_are_not_known_are_named(tmp_path: Path) -> None:
    static, generated = tmp_path / "etc", tmp_path / "run"
    for folder, node in ((static, "/dev/old"), (generated, "/dev/new")):
        folder.mkdir()
        hooks = [{"hookName": "startContainer", "path": "/opt/x/hook", "args": ["hook", "reconfigure", "--all"]}]
        edits = {"deviceNodes": [{"path": node}], "hooks": hooks}
        described = {"cdiVersion": "0.6.0", "kind": "acme.com/npu", "devices": [{"name": "a", "containerEdits": edits}]}
        (folder / "acme.json").write_text(json.dumps(described))
    found = Devices([static, generated]).find("acme.com/npu", ["a"])
    assert found == Edits(devices=(("/dev/new", "/dev/new"),), unknown_hooks=("/opt/x/hook reconfigure",))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "a: [",
        '{"kind": "x/y"}',
        '{"kind": "x/y", "devices": [{}]}',
        '{"kind": "x/y", "devices": 1}',
        '{"kind":"x/y","devices":[{"name":"a","containerEdits":{"mounts":[{"hostPath":"a","containerPath":"/b"}]}}]}',
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_what_is_no_description_is_named_and_left_out(tmp_path: Path, text: str, suffix: str) -> None:
    (tmp_path / "good.yaml").write_text(_DESCRIBED)
    (tmp_path / f"bad{suffix}").write_text(text)
    (tmp_path / "notes.txt").write_text("no description at all")
    devices = Devices([tmp_path])
    assert len(devices.problems) == 1
    assert f"bad{suffix}" in devices.problems[0]
    assert "nvidia.com/gpu=0" in devices.names()
