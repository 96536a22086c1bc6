"""Snapshots of what runs on the machine's own system: several directories, and links of strangers in them."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest

from contract.insides import Room, Site, enter, room, site
from contract.test_executors import ROWS
from contract.test_snapshots import fork, ripe, shell, snapshot
from contract.test_snapshots import source as any_source
from runstead.executors.native import NativeSettings
from runstead.executors.process import ProcessExecutor
from runstead.model.volumes import Mount

__all__ = ["any_source", "ripe", "room", "site"]


@pytest.fixture
def source(any_source: Room) -> Room:
    if any_source.site.capabilities.kind != "process":
        pytest.skip("jobs have a root directory of their own")
    return any_source


async def test_a_python_has_what_was_installed_into_it(source: Room) -> None:
    install = (
        "set -e; cd $(python -c 'import site; print(site.getsitepackages()[0])'); echo 'x = {0}' > mine{0}.py; "
        "printf '#!%s/bin/python\nimport mine{0}; print(mine{0}.x)\n' $VIRTUAL_ENV > $VIRTUAL_ENV/bin/mine{0}; "
        "chmod +x $VIRTUAL_ENV/bin/mine{0}"
    )
    await shell(source, install.replace("{0}", "1"))
    await snapshot(source, "alice.a")
    second = await fork(source, "alice.a")
    await source.site.executor.remove(source.handle)
    assert await shell(second, "mine1; python -c 'import mine1, sys; print(sys.prefix == \"'$VIRTUAL_ENV'\")'") == (
        "1\nTrue\n"
    )
    await shell(second, install.replace("{0}", "2"))
    await snapshot(second, "alice.b")
    other = await fork(source, "alice.a")
    third = await fork(second, "alice.a", "alice.b")
    await source.site.executor.remove(second.handle)
    assert await shell(third, "mine1; mine2; python -m mine2; pip --version >/dev/null; ls $VIRTUAL_ENV/bin | wc -l")
    assert await shell(third, "mine1; mine2") == "1\n2\n"
    assert (await other.shell("mine2")).ended.exit_code == 127


async def test_a_python_that_was_deleted_is_made_again(source: Room) -> None:
    await shell(source, "rm -r $VIRTUAL_ENV")
    await snapshot(source, "alice.a")
    one = await fork(source, "alice.a")
    await snapshot(one, "alice.b")
    for later in (one, await fork(source, "alice.a", "alice.b")):
        assert await shell(later, "python -c 'import sys; print(sys.prefix)'; echo $VIRTUAL_ENV") == (
            f"/runstead/env/venvs/{later.launch.job_id}-1\n" * 2
        )


async def test_what_was_made_in_the_root_directory_is_there_again(source: Room) -> None:
    await shell(
        source, "mkdir -p /data/deep; echo x > /data/deep/file; chmod 711 /data; echo y > /top; ln -s data /link"
    )
    await shell(source, "echo lost > /run/lost")
    before = await shell(source, "ls -ln / | grep -v ' tmp$'")
    await snapshot(source, "alice.a")
    one = await fork(source, "alice.a")
    assert await shell(one, "cat /link/deep/file /top; stat -c %a /data; ls /run") == "x\ny\n711\n"
    assert [line.split()[-1] for line in before.splitlines()] == [
        line.split()[-1] for line in (await shell(one, "ls -ln / | grep -v ' tmp$'")).splitlines()
    ]
    await shell(one, "rm -r /data /link; echo z > /new")
    await snapshot(one, "alice.b")
    two = await fork(one, "alice.a", "alice.b")
    assert await shell(two, "cat /top /new; ls -d /data /link 2>/dev/null || :") == "y\nz\n"


async def test_links_in_a_snapshot_lead_nothing_of_the_machine_astray(
    source: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trust").write_text("certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trust"))
    site = source.site
    await site.restart()  # what variables name is shown to jobs from now on, here below their /tmp
    victim = Path(tempfile.mkdtemp(dir="/var/tmp"))
    victim.chmod(0o777)
    try:
        first = await enter(site)
        assert await shell(first, "cat $SSL_CERT_FILE") == "certificates"
        top = "/tmp/" + tmp_path.relative_to("/tmp").parts[0]
        await shell(first, f"mv {top} /tmp/aside && ln -s {victim} {top} && ln -s {victim} /workspace/volume")
        await snapshot(first, "alice.a")
        volume = tmp_path / "volume"
        volume.mkdir()
        volume.chmod(0o777)
        mounts = (Mount(volume, "/workspace/volume/inside", read_only=False),)
        one = await fork(first, "alice.a", mounts=mounts)
        assert await shell(one, "cat $SSL_CERT_FILE; echo x > /workspace/volume/inside/file") == "certificates"
        assert list(victim.iterdir()) == []
        assert (volume / "file").exists()
    finally:
        shutil.rmtree(victim)


async def test_a_fork_where_no_overlay_can_be_mounted_is_a_copy(tmp_path: Path) -> None:
    """As for a server without root, where user namespaces are allowed; the ids are root's here."""

    class Unprivileged(ProcessExecutor):
        async def _find_isolation(self) -> list[str]:
            with mock.patch("runstead.executors.process.os.geteuid", return_value=1000):
                return await super()._find_isolation()

    executor = Unprivileged(tmp_path / "data", NativeSettings(grace_seconds=1.0), lambda _kind, _job_id: None)
    capabilities = await executor.open()
    assert capabilities.snapshots and not capabilities.private_ids
    site = Site(ROWS[0], tmp_path / "data", tmp_path, executor, capabilities, asyncio.Queue())
    try:
        first = await enter(site)
        await shell(first, "echo 1 > /root/file; echo 'x = 1' > $VIRTUAL_ENV/mine.py; mkdir /tmp/d; ln -s d /tmp/l")
        await snapshot(first, "alice.a")
        second = await fork(first, "alice.a")
        await shell(second, "echo 2 >> /root/file; rm /tmp/l; cat $VIRTUAL_ENV/mine.py")
        await snapshot(second, "alice.b")
        third = await fork(first, "alice.a", "alice.b")
        assert await shell(third, "cat /root/file; ls /tmp; cat $VIRTUAL_ENV/mine.py") == "1\n2\nd\nx = 1\n"
        assert await shell(first, "cat /root/file; ls /tmp") == "1\nd\nl\n"
    finally:
        for handle in site.handles:
            await executor.remove(handle)
        await executor.close()
