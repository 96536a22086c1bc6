"""Which executor a server gets, and what of the machine it may use."""

from collections.abc import Callable
from dataclasses import replace

from runstead.executors.docker import DockerExecutor, DockerSettings
from runstead.executors.interface import Executor
from runstead.executors.machine import find_machine
from runstead.executors.native import NativeSettings
from runstead.executors.oci import OciExecutor, OciSettings
from runstead.executors.oci import problem as container_problem
from runstead.executors.process import ProcessExecutor
from runstead.images.library import ImageLibrary
from runstead.kit.settings import Settings
from runstead.model.hardware import Machine


def build_executor(settings: Settings, wake: Callable[[str, str], None], port: int | None = None) -> Executor:
    """Return the executor that the settings name. `port` is the server's, the one thing of it jobs may reach."""
    chosen, data_dir = settings.executor, settings.server.data_dir
    native = NativeSettings(
        isolation=chosen.isolation,
        network=chosen.network,
        subnet=chosen.subnet,
        egress=chosen.egress or None,
        log_limit_bytes=chosen.log_limit_bytes,
        pass_environment=chosen.pass_environment,
        grace_seconds=settings.jobs.cancel_grace_seconds,
        pids_limit=chosen.pids_limit,
        server_port=port,
        machine=_machine(settings),
    )
    if chosen.kind == "docker":
        engine = DockerSettings(
            native,
            socket=settings.docker.socket,
            shared_memory_bytes=chosen.shared_memory,
            ulimits=settings.docker.ulimits,
            by_api=settings.docker.by_api,
            registries=settings.images.registries,
            auth_file=settings.images.auth_file,
            stall_seconds=settings.images.stall_seconds,
        )
        return DockerExecutor(data_dir, engine, wake)
    if no_containers(settings) is not None:
        return ProcessExecutor(data_dir, native, wake)
    images = ImageLibrary(data_dir / "images", settings.images)
    containers = OciSettings(native, shared_memory_bytes=chosen.shared_memory, runtime=chosen.runtime)
    return OciExecutor(data_dir, containers, images, wake)


def no_containers(settings: Settings) -> str | None:
    """Return why jobs do not run in containers of their images; None when they do, or are meant to."""
    chosen = settings.executor
    if chosen.kind != "auto":
        return None if chosen.kind in ("oci", "docker") else f'executor.kind = "{chosen.kind}"'
    return 'executor.isolation = "none"' if chosen.isolation == "none" else container_problem()


def _machine(settings: Settings) -> Machine | None:
    """Return what jobs may use if the configuration says so; None leaves it to the executor."""
    chosen = settings.executor
    if chosen.cpus is None and chosen.memory is None and chosen.disk is None:
        return None
    found = find_machine(settings.server.data_dir)
    return replace(
        found,
        cpu_millicores=int(chosen.cpus * 1000) if chosen.cpus else found.cpu_millicores,
        memory_bytes=chosen.memory or found.memory_bytes,
        disk_bytes=chosen.disk or found.disk_bytes,
    )
