"""The errors every layer may raise, named by what the caller can do about them.

Backends translate what their libraries raise into these; `runstead.api.errors` is the one table that maps
them to HTTP. A message says what happened, why, and what to do next, and ends with the value at fault.
"""


class RunsteadError(Exception):
    """Root of all expected errors. `message` is written for the person who made the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(RunsteadError):
    """The request itself is wrong; repeating it unchanged cannot succeed.

    `field` names the offending part of the request in the wire's spelling, e.g. `labels.name`.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class TooLarge(Invalid):
    """The request exceeds a stated limit."""


class Unauthenticated(RunsteadError):
    """No token, or one that is unknown, expired or revoked."""


class Forbidden(RunsteadError):
    """The caller is known and may not do this."""


class NotFound(RunsteadError):
    """The thing does not exist, or the caller may not know that it does."""


class Conflict(RunsteadError):
    """The thing exists already, or is in a state that does not allow this."""


class Unsupported(RunsteadError):
    """A correct request for something this server, or its executor, does not have."""


class Unavailable(RunsteadError):
    """A part the request needs is down or full right now; the same request may succeed later."""

    def __init__(self, message: str, retry_after_seconds: int = 5) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BackendFailure(RunsteadError):
    """An executor, store or object store answered in a way it should not have."""


class ContentDamaged(BackendFailure):
    """Stored content is lost or not what it was; asking again does not help, uploading it again does."""


class OverBudget(RunsteadError):
    """The namespace's budget does not allow this; a new month, a larger budget or a cheaper job may."""


class RepoNotFound(NotFound):
    """There is no bucket or repository of that name for this caller."""


class RepoHidden(Unauthenticated):
    """The same, said to somebody without a token: with one, there may be."""


class EntryNotFound(NotFound):
    """The bucket or repository is there, and has no such file."""


class NotRunning(Conflict):
    """The job, or what runs in it, is over or was never there."""


class ImageFailure(RunsteadError):
    """An image cannot be had; the message holds the registry's own reason. `again`: whether trying again may help."""

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again
