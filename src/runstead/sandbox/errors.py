"""The one table from errors to the protocol's statuses. Clients show the key `error` of the body."""

import errno
from collections.abc import Mapping

from runstead.model.errors import (
    BackendFailure,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotRunning,
    RunsteadError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

_STATUS: Mapping[type[RunsteadError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    BackendFailure: 500,
    Unsupported: 501,
    NotRunning: 502,
    Unavailable: 503,
}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def status_of(error: RunsteadError) -> int:
    """Return the status for an error, that of its nearest class in the table."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def system_error(error: OSError) -> tuple[int, str]:
    """Return status and message for what the sandbox's file system refused."""
    reason = error.strerror or str(error)
    return (507 if error.errno in _FULL else 400), f"the sandbox's file system refused this: {reason}"
