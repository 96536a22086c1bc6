"""Runs OpenEnv environments as Hugging Face Jobs: on a Runstead server, or hosted, with the same code.

    from runstead.openenv import JobsProvider

    with JobsProvider(flavor="cpu-basic") as provider:
        env = await EchoEnv.from_docker_image("registry.example.com/echo-env:latest", provider=provider)

Talks to the server over HTTP like any client, through `huggingface_hub`; installs without the server as
`runstead-openenv`.
"""

from runstead.openenv.errors import EnvironmentDied, EnvironmentNotReady, EnvironmentNotStarted
from runstead.openenv.provider import JobsProvider

__all__ = ["EnvironmentDied", "EnvironmentNotReady", "EnvironmentNotStarted", "JobsProvider"]
