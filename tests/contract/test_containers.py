"""What an executor promises beyond the common suite when it runs images. One joins with a row in ROWS."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from container_images import OneImage, debian_root
from runner import Runner
from runstead.executors.interface import Executor
from runstead.executors.native import NativeSettings
from runstead.executors.oci import OciExecutor, OciSettings, problem
from runstead.images.image import ImageConfig
from runstead.model.errors import BackendFailure, Invalid
from runstead.model.launches import ExitReason
from runstead.model.volumes import Mount

Build = Callable[[Path, OneImage], Executor]


def _oci(runtime: Literal["native", "crun", "runc"]) -> Build:
    def build(data_dir: Path, images: OneImage) -> Executor:
        if runtime != "native" and shutil.which(runtime) is None:
            pytest.skip(f"{runtime} is not installed")
        native = NativeSettings(grace_seconds=1.0, pids_limit=128)
        settings = OciSettings(native, runtime=runtime, described=(data_dir / "cdi",))
        return OciExecutor(data_dir, settings, images, lambda _kind, _job_id: None)

    return build


ROWS: Mapping[str, Build] = {"oci": _oci("native"), "crun": _oci("crun"), "runc": _oci("runc")}


@dataclass
class Engine(Runner):
    """A runner over an executor that has one image."""

    name: str = ""
    images: OneImage = field(default_factory=OneImage)


@pytest.fixture(params=ROWS)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    if (lacking := problem()) is not None:
        pytest.skip(lacking)
    (tmp_path / "data").mkdir()
    images = OneImage()
    made = Engine(tmp_path, ROWS[request.param](tmp_path / "data", images), name=request.param, images=images)
    await made.executor.open()
    yield made
    await made.executor.close()


def layer(path: Path, **files: str) -> Path:
    """Make a layer of small files; `etc__x` is /etc/x."""
    for name, text in files.items():
        target = path / name.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return path


# What the image says


async def test_environment_folder_and_user_are_the_images(engine: Engine) -> None:
    passwd = "root:x:0:0::/root:/bin/sh\nworker:x:1000:1001::/home/worker:/bin/sh\n"
    group = "root:x:0:\nworkers:x:1001:\nmore:x:2000:worker\n"
    engine.images.more = (layer(engine.folder / "layer", etc__passwd=passwd, etc__group=group),)
    config = ImageConfig(
        environment=("A=image", "B=image", "PATH=/usr/bin:/bin"), working_dir="/srv/new", user="worker"
    )
    engine.images.config = config
    script = "echo $A $B $HOME $PATH; pwd; id -u; id -G; touch x && stat -c %u x; echo out > /dev/stdout"
    code, lines = await engine.shell(script, environment={"B": "launch"})
    assert (code, lines) == (
        0,
        ["image launch /home/worker /usr/bin:/bin", "/srv/new", "1000", "1001 2000", "1000", "out"],
    )
    for user, expected in (("1234", "1234 0 /"), ("1234:77", "1234 77 /"), ("worker:more", "1000 2000 /home/worker")):
        engine.images.config = replace(config, user=user, working_dir="")
        assert (await engine.shell("echo $(id -u) $(id -g) $HOME"))[1] == [expected]


@pytest.mark.parametrize("user", ["nobody-we-know", "1000:no-such-group", "70000"])
async def test_a_user_that_is_not_there_fails_the_start_and_says_so(engine: Engine, user: str) -> None:
    engine.images.config = ImageConfig(user=user)
    record, lines = await engine.run(engine.launch("true"))
    assert record.reason is ExitReason.START_FAILED
    assert user.split(":")[-1] in str(record.message)
    assert lines[-1] == record.message


async def test_layers_cover_each_other_and_jobs_write_beside_them(engine: Engine) -> None:
    first = layer(engine.folder / "one", srv__a="1", srv__b="1", etc__mine="1")
    second = layer(engine.folder / "two", srv__b="2")
    engine.images.more = (first, second)
    script = "cat /srv/a /srv/b /etc/mine; echo; echo 3 > /srv/b; rm /srv/a; mv /srv /srv2; ls /srv2; rm -r /usr/share"
    assert await engine.shell(script) == (0, ["121", "b"])
    assert await engine.shell("cat /srv/a /srv/b; ls -d /usr/share") == (0, ["12/usr/share"])
    assert (first / "srv/a").read_text() == "1"
    assert (debian_root() / "usr/share").is_dir()


async def test_files_of_the_image_keep_their_owners_and_modes(engine: Engine) -> None:
    script = "stat -c '%u:%g %a' /etc/shadow /tmp /root /usr/bin/passwd; touch /mine && stat -c %u:%g /mine"
    code, lines = await engine.shell(script)
    assert (code, lines) == (0, ["0:42 640", "0:0 1777", "0:0 700", "0:0 4755", "0:0"])
    assert (await engine.shell("chown 12:34 /etc/passwd && stat -c %u:%g /etc/passwd"))[1] == ["12:34"]


async def test_links_of_an_image_lead_nowhere_out_of_it(engine: Engine) -> None:
    victim = engine.folder / "victim"
    victim.mkdir()
    bad = engine.folder / "bad"
    (bad / "etc").mkdir(parents=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (bad / "etc" / name).symlink_to(victim / name)
    (bad / "work").symlink_to(victim)
    (bad / "runstead").symlink_to("/../../../../../../tmp")
    engine.images.more = (bad,)
    engine.images.config = ImageConfig(working_dir=f"/work/{'../' * 9}x")
    code, _ = await engine.shell("pwd; cat /etc/hosts")
    assert code in (0, None, 126, 127)
    assert list(victim.iterdir()) == []
    assert not Path("/x").exists()


# What every container has


async def test_names_are_found_as_people_expect(engine: Engine) -> None:
    launch = engine.launch("sh", "-c", "cat /etc/hostname; hostname; getent hosts $(hostname); cat /etc/resolv.conf")
    record, lines = await engine.run(launch)
    assert record.exit_code == 0
    assert lines[:2] == [launch.job_id] * 2
    assert lines[2].endswith(launch.job_id)
    assert any("nameserver" in line for line in lines[3:]) or "nameserver" not in Path("/etc/resolv.conf").read_text()
    script = "getent hosts localhost; echo 10.0.0.1 mine >> /etc/hosts && getent hosts mine"
    assert (await engine.shell(script))[1][-1].split() == ["10.0.0.1", "mine"]


async def test_shared_memory_is_what_users_of_docker_expect(engine: Engine) -> None:
    code, lines = await engine.shell("df -k --output=size /dev/shm | tail -1; touch /dev/shm/x; ls -ld /dev/shm")
    assert (code, lines[0].strip()) == (0, "65536")
    assert lines[1].startswith("drwxrwxrwt")


async def test_devices_are_the_harmless_ones(engine: Engine) -> None:
    code, lines = await engine.shell("ls /dev; head -c 8 /dev/urandom | wc -c; echo x > /dev/null; ls -l /dev/fd/1")
    assert code == 0
    expected = {
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    }
    assert set(lines[: lines.index("8")]) - {"core"} == expected  # which some make as a link to what is masked
    code, _ = await engine.shell("mknod /dev/mine b 7 0 || mknod /mine b 7 0 && cat /mine")
    assert code != 0


async def test_what_is_the_machines_is_closed(engine: Engine) -> None:
    script = """
        for f in kcore keys timer_list sysrq-trigger; do test -e /proc/$f && head -c 1 /proc/$f | wc -c; done
        ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | grep . ; echo masked
        echo 1 > /proc/sys/kernel/hostname; echo 1 > /sys/kernel/mm/ksm/run; mount -t tmpfs none /mnt; umount /proc
        unshare -U true; unshare -m true; hostname x; dmesg | head -1; ls /proc | grep -c '^[0-9]'
    """
    _, lines = await engine.shell(script)
    assert "1" not in lines[: lines.index("masked")]
    said = "\n".join(lines[lines.index("masked") + 1 :])
    assert said.count("Operation not permitted") >= 3
    assert "Read-only file system" in said


async def test_capabilities_are_few_and_never_grow(engine: Engine) -> None:
    script = "grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status"
    _, lines = await engine.shell(script)
    found = dict(line.split(":\t") for line in lines)
    allowed = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[name], 16) & ~allowed == 0
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


async def test_limits_can_be_seen_inside(engine: Engine) -> None:
    if engine.name == "crun":
        pytest.skip("without control groups of its own crun shows none")
    script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes 2>/dev/null; echo x > x"
    _, lines = await engine.shell(script, memory_bytes=200 << 20)
    assert lines[0] == str(200 << 20)
    assert "Read-only" in lines[1] or "denied" in lines[1]


# Limits


async def test_a_full_disk_is_the_jobs_alone(engine: Engine) -> None:
    script = """
        df -k --output=size / | tail -1
        dd if=/dev/zero of=/big bs=1M count=200 2>&1 | grep -o 'No space left on device'
        rm /big && dd if=/dev/zero of=/small bs=1M count=20 2>/dev/null && echo again
    """
    code, lines = await engine.shell(script, disk_bytes=64 << 20)
    assert (code, lines[1:]) == (0, ["No space left on device", "again"])
    assert int(lines[0]) <= 64 << 10


async def test_memory_in_shared_memory_and_in_files_in_memory_counts(engine: Engine) -> None:
    program = "x = []\nwhile True: x.append(bytearray(8 << 20))"
    record, _ = await engine.run(engine.launch("python3", "-c", program, memory_bytes=96 << 20))
    assert record.reason is ExitReason.OOM
    assert "96 MiB" in str(record.message)


async def test_what_is_given_to_containers_is_given_back(engine: Engine) -> None:
    async with asyncio.timeout(5):
        while _disks(engine.folder):  # of finding out what is possible
            await asyncio.sleep(0.02)
    launch = engine.launch("sh", "-c", "dd if=/dev/zero of=/x bs=1M count=8; sleep 60", disk_bytes=64 << 20)
    handle = await engine.executor.start(launch)
    assert engine.images.held == {f"{launch.job_id}-1": "anything"}
    assert len(_disks(engine.folder)) == 1
    await engine.executor.remove(handle)
    assert engine.images.held == {}
    async with asyncio.timeout(5):
        while _disks(engine.folder):
            await asyncio.sleep(0.02)
    assert await engine.executor.owned() == []


async def test_images_are_kept_for_attempts_alone(engine: Engine) -> None:
    wrong = engine.launch("true", mounts=(Mount(engine.folder / "none", "/data", False),))
    huge = engine.launch("true", "x" * (20 << 20))
    with pytest.raises(BackendFailure):
        await engine.executor.start(huge)
    assert engine.images.held == {}
    record, _ = await engine.run(wrong)
    assert record.reason is ExitReason.START_FAILED
    assert engine.images.held == {}
    engine.images.held["0" * 23 + "1-1"] = "of a server that died before it started anything"
    running = await engine.start(engine.launch("sleep", "60"))
    again = ROWS[engine.name](engine.folder / "data", engine.images)
    await again.open()
    assert list(engine.images.held) == [f"{running.data['job_id']}-1"]
    await again.close()
    await engine.executor.remove(running)


def _disks(folder: Path) -> list[str]:
    """Return the files below a folder that are disks of this machine."""
    found: list[str] = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            found.append(path.read_text())
    return [text for text in found if str(folder) in text]


async def test_devices_that_were_reserved_are_there_and_for_nobody_else(engine: Engine) -> None:
    described, driver = engine.folder / "data" / "cdi", engine.folder / "driver"
    described.mkdir()
    driver.mkdir()
    (driver / "libfake.so.1").write_text("a library")
    edits = {
        "deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/dev/zero"}],
        "env": ["FROM_DEVICE=1"],
        "mounts": [{"hostPath": str(driver / "libfake.so.1"), "containerPath": "/usr/lib/fake/libfake.so.1"}],
        "hooks": [
            {"path": "/x", "args": ["x", "create-symlinks", "--link", "libfake.so.1::/usr/lib/fake/libfake.so"]},
            {"path": "/x", "args": ["x", "update-ldcache", "--folder", "/usr/lib/fake"]},
        ],
    }
    device = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": edits}]}
    (described / "nvidia.json").write_text(json.dumps(device))
    script = """
        head -c 4 /dev/nvidia0 | wc -c; cat /usr/lib/fake/libfake.so; echo $FROM_DEVICE
        { echo x > /usr/lib/fake/libfake.so.1; } 2> /dev/null || echo kept; cat /etc/ld.so.conf.d/00-devices.conf
    """
    code, lines = await engine.shell(script, gpu_ids=("0",))
    assert (code, lines) == (0, ["4", "a library1", "kept", "/usr/lib/fake"])
    code, lines = await engine.shell("ls /dev/nvidia* /usr/lib/fake; echo x$FROM_DEVICE")
    assert "x" in lines  # a runtime may pass on what went to the two streams in another order
    assert all("No such file" in line for line in lines if line != "x")


async def test_json_of_what_is_seen_is_the_same_for_two_jobs_of_one_image(engine: Engine) -> None:
    program = "import json, os; print(json.dumps(sorted(os.listdir('/'))))"
    seen = await asyncio.gather(*(engine.run(engine.launch("python3", "-c", program)) for _ in range(8)))
    assert len({lines[0] for _, lines in seen}) == 1
    assert "usr" in json.loads(seen[0][1][0])


async def test_a_kernel_of_its_own(tmp_path: Path) -> None:
    """By gVisor, whose releases differ in what of a container they have: the least that is promised."""
    if (lacking := problem()) is not None or shutil.which("runsc") is None:
        pytest.skip(lacking or "runsc is not installed")
    (tmp_path / "data").mkdir()
    settings = OciSettings(NativeSettings(grace_seconds=1.0), runtime="runsc")
    executor = OciExecutor(tmp_path / "data", settings, OneImage(), lambda _kind, _job_id: None)
    runner = Runner(tmp_path, executor)
    capabilities = await executor.open()
    try:
        assert (capabilities.inside, capabilities.ports, capabilities.egress) == (False, False, False)
        for refused in (runner.launch(), runner.launch("true", egress=())):
            with pytest.raises(Invalid, match="gVisor"):
                await executor.start(refused)
        code, lines = await runner.shell("dmesg | grep -i gvisor; id -u; echo $A; exit 7", environment={"A": "1"})
        assert (code, lines[-2:]) == (7, ["0", "1"])
        assert any("gVisor" in line for line in lines)
        code, lines = await runner.shell("dd if=/dev/zero of=/x bs=1M count=200 2>&1; df -k /", disk_bytes=64 << 20)
        assert "No space left" in "\n".join(lines)
        launch = runner.launch("sh", "-c", "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done")
        handle = await runner.start(launch)
        await runner.line(launch, "ready")
        await executor.stop(handle, 20)
        assert (await runner.ended(handle)).reason is ExitReason.STOPPED
        assert runner.lines(launch)[-1] == "bye"
        await executor.remove(handle)
    finally:
        await executor.close()


async def test_without_user_namespaces_jobs_have_few_rights_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (lacking := problem()) is not None:
        pytest.skip(lacking)
    really = OciExecutor._try

    async def lacks(self: OciExecutor, private_ids: bool, with_disks: bool) -> str | None:
        return "not here" if private_ids else await really(self, private_ids, with_disks)

    monkeypatch.setattr(OciExecutor, "_try", lacks)
    (tmp_path / "data").mkdir()
    runner = Runner(tmp_path, _oci("native")(tmp_path / "data", OneImage()))
    capabilities = await runner.executor.open()
    try:
        assert not capabilities.private_ids
        assert any("ids of this machine" in text and "not here" in text for text in capabilities.missing)
        script = """
            id -u; cat /proc/self/uid_map | tr -s ' '; grep -E 'Cap(Eff|Bnd)' /proc/self/status
            mount -t tmpfs none /mnt || echo no mount; unshare -m true || echo no namespace
            mknod /disk b 254 0 && cat /disk > /dev/null || echo no device
            kill -9 1; cat /proc/1/environ /proc/1/maps /proc/1/fd/3 || echo no files
            hostname x || echo no name; dmesg || echo no log; chroot / true && echo chroot
        """
        code, lines = await runner.shell(script)
        assert code == 0
        assert lines[:2] == ["0", " 0 0 4294967295"]
        allowed = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
        assert all(int(line.split()[1], 16) & ~allowed == 0 for line in lines[2:4])
        for what in ("mount", "namespace", "device", "files", "name", "log"):
            assert f"no {what}" in lines, lines
    finally:
        await runner.executor.close()
