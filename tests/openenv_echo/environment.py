"""A small environment on OpenEnv's own server: it echoes, and can be told to fail or to die."""

import os
from uuid import uuid4

from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class EchoAction(Action):
    message: str


class EchoObservation(Observation):
    echoed: str = ""


class EchoEnvironment(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State(episode_id=str(uuid4()), step_count=0)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: object) -> EchoObservation:
        self._state = State(episode_id=episode_id or str(uuid4()), step_count=0)
        return EchoObservation(echoed=os.environ.get("GREETING", "ready"), done=False, reward=0.0)

    def step(self, action: EchoAction, timeout_s: float | None = None, **_: object) -> EchoObservation:
        self._state.step_count += 1
        if action.message == "die":
            print("the environment gives up", flush=True)
            os._exit(3)
        if action.message == "fail":
            raise ValueError("a bad action")
        return EchoObservation(echoed=action.message, done=False, reward=float(len(action.message)))

    @property
    def state(self) -> State:
        return self._state


app = create_fastapi_app(EchoEnvironment, EchoAction, EchoObservation)
