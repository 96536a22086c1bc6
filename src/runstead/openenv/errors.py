"""What may go wrong with an environment, told apart. Each is also the built-in error that OpenEnv's contract names."""


class EnvironmentNotStarted(RuntimeError):
    """The job of the environment could not be created."""


class EnvironmentNotReady(TimeoutError):
    """The environment did not answer within its time; its job may still run."""


class EnvironmentDied(RuntimeError):
    """The job of the environment ended.

    `stage` is the job's last stage, `failure_class` why it failed where the server says so (user, oom, image,
    timeout, ...), `log` the last lines it wrote.
    """

    def __init__(self, job_id: str, stage: str, message: str | None, log: tuple[str, ...] = ()) -> None:
        self.job_id = job_id
        self.stage = stage
        self.failure_class = _failure_class(message)
        self.log = log
        text = f"the environment's job {job_id} is {stage}"
        if message:
            text += f": {message}"
        if log:
            text += "\nthe last lines of its log:\n" + "\n".join(f"  {line}" for line in log)
        super().__init__(text)


def _failure_class(message: str | None) -> str | None:
    """Return the word in front of a Runstead server's message; hosted jobs have none."""
    word, colon, _ = (message or "").partition(":")
    known = {"user", "timeout", "oom", "image", "volume", "infra", "canceled"}
    return word if colon and word in known else None
