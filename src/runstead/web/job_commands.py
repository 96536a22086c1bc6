"""What one would type in a terminal instead of looking at a job's page."""

from collections.abc import Iterator
from shlex import join

from runstead.model.jobs import Job
from runstead.model.volumes import Volume


def job_commands(job: Job, is_own: bool) -> list[tuple[str, str]]:
    """Return commands of the `hf` client with what each of them does. `is_own`: in the caller's own namespace."""
    where = () if is_own else ("--namespace", job.namespace)
    commands: list[tuple[str, tuple[str, ...]]] = [
        ("Read the log", ("hf", "jobs", "logs", *where, job.id)),
        ("Everything about it", ("hf", "jobs", "inspect", *where, job.id)),
    ]
    if not job.stage.is_terminal:
        commands[0] = ("Follow the log", ("hf", "jobs", "logs", "--follow", *where, job.id))
        commands.append(("Watch what it uses", ("hf", "jobs", "stats", "--follow", *where, job.id)))
        commands.append(("Cancel it", ("hf", "jobs", "cancel", *where, job.id)))
    commands.append(("Run one like it", ("hf", "jobs", "run", *where, *_run_words(job))))
    return [(title, join(words)) for title, words in commands]


def _run_words(job: Job) -> Iterator[str]:
    spec = job.spec
    yield from ("--flavor", spec.flavor)
    yield from ("--timeout", f"{spec.timeout_seconds}s")
    for name, value in spec.environment.items():
        yield from ("--env", f"{name}={value}")
    for name in spec.secret_names:
        yield from ("--secrets", name)
    for key, value in spec.labels.items():
        yield from ("--name", value) if key == "name" and value else ("--label", f"{key}={value}")
    for volume in spec.volumes:
        yield from ("--volume", _volume_text(volume))
    yield spec.image
    yield from spec.command
    yield from spec.arguments


def _volume_text(volume: Volume) -> str:
    revision = f"@{volume.revision}" if volume.revision else ""
    folder = f"/{volume.path}" if volume.path else ""
    access = "ro" if volume.read_only else "rw"
    return f"hf://{volume.kind}s/{volume.source}{revision}{folder}:{volume.mount_path}:{access}"
