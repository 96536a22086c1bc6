"""What is written of environments: to one logger, each line with the same fields.

`job_id`, `stage` (the job's, as far as it is known) and `cause` (one word for what went wrong) are there in every
record, None where there is nothing to say; some lines have more.
"""

import logging

_LOGGER = logging.getLogger("runstead.openenv")


def write(
    level: int,
    text: str,
    *,
    job_id: str | None = None,
    stage: str | None = None,
    cause: str | None = None,
    **more: object,
) -> None:
    """Write a line. Its text is for people and repeats what they need."""
    _LOGGER.log(level, "%s", text, extra={"job_id": job_id, "stage": stage, "cause": cause, **more}, stacklevel=2)
