"""What a trainer does with environments, run with OpenEnv's own client. Prints one JSON object a line."""

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from openenv.core.containers.runtime.providers import ContainerProvider
from openenv.core.generic_client import GenericEnvClient

from runstead.openenv import EnvironmentDied, EnvironmentNotReady, JobsProvider

SERVER = json.loads(os.environ["ENVIRONMENT_COMMAND"])
LIGHT = json.loads(os.environ["LIGHT_COMMAND"])


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def provider(**options: Any) -> JobsProvider:
    return JobsProvider(**{"command": SERVER, "job_timeout": 600, "ready_timeout_s": 60, **options})


async def episode(access: str) -> None:
    with provider(access=access) as environments:
        assert isinstance(environments, ContainerProvider)
        client = await GenericEnvClient.from_docker_image(
            "echo:latest", provider=environments, env_vars={"GREETING": "hello"}
        )
        async with client:
            first = await client.reset()
            second = await client.step({"message": "x" * 100_000})
            try:
                await client.step({"message": "fail"})
                failed = ""
            except RuntimeError as error:
                failed = str(error)
            third = await client.step({"message": "again"})
            state = await client.state()
        say(
            first=first.observation,
            echoed=len(second.observation["echoed"]),
            reward=second.reward,
            failed=failed,
            after=third.observation["echoed"],
            state=state,
        )


async def death() -> None:
    with provider() as environments:
        client = await GenericEnvClient.from_docker_image("echo:latest", provider=environments)
        url = f"http{client._ws_url.removeprefix('ws').removesuffix('/ws')}"
        await client.reset()
        try:
            await client.step({"message": "die"})
        except Exception as error:
            say(step=type(error).__name__)
        try:
            environments.wait_for_ready(url)
        except EnvironmentDied as error:
            say(stage=error.stage, failure_class=error.failure_class, log=list(error.log), text=str(error))


def crash_at_start() -> None:
    environments = provider(command=["sh", "-c", "echo no such model >&2; exit 7"])
    began = time.monotonic()
    try:
        url = environments.start_container("echo:latest")
        environments.wait_for_ready(url, 60)
    except EnvironmentDied as error:
        say(seconds=time.monotonic() - began, failure_class=error.failure_class, text=str(error))
    environments.stop_container()
    environments.stop_container()


def silence() -> None:
    environments = provider(command=["sleep", "300"], ready_timeout_s=None)
    url = environments.start_container("echo:latest")
    began = time.monotonic()
    try:
        environments.wait_for_ready(url, 3.0)
    except EnvironmentNotReady as error:
        say(seconds=time.monotonic() - began, text=str(error), job=environments.job_id)
    environments.stop_container()


def killed(lease: str) -> None:
    environments = provider(command=LIGHT, lease_seconds=float(lease))
    environments.wait_for_ready(environments.start_container("echo:latest"))
    say(job=environments.job_id)
    os.kill(os.getpid(), signal.SIGKILL)


def forgotten() -> None:
    environments = provider(command=LIGHT)
    environments.wait_for_ready(environments.start_container("echo:latest"))
    say(job=environments.job_id)


async def many(count: str) -> None:
    async def one(i: int) -> str:
        environments = provider(command=LIGHT, flavor=os.environ["SMALL_FLAVOR"], start_timeout_s=300)
        url = await asyncio.to_thread(environments.start_container, "echo:latest")
        await asyncio.to_thread(environments.wait_for_ready, url, 120)
        everybody.append(environments)
        return url

    from concurrent.futures import ThreadPoolExecutor

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(int(count)))
    everybody: list[JobsProvider] = []
    began = time.monotonic()
    urls = await asyncio.gather(*(one(i) for i in range(int(count))))
    up = time.monotonic() - began
    await asyncio.gather(*(asyncio.to_thread(one.stop_container) for one in everybody))
    say(up=len(set(urls)), seconds=up, stopped_seconds=time.monotonic() - began - up)


if __name__ == "__main__":
    task = globals()[sys.argv[1]](*sys.argv[2:])
    if asyncio.iscoroutine(task):
        asyncio.run(task)
