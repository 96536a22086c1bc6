"""Who may see and change a bucket, and what they are told who may not."""

from runstead.model.accounts import Caller, Permission
from runstead.model.buckets import Bucket
from runstead.model.errors import Forbidden, RepoHidden, RepoNotFound, Unauthenticated
from runstead.model.volumes import MountCaller
from runstead.services.accounts import authorize

ME = "me"
"""Stands for the caller's own namespace where a bucket is created or listed."""

Asker = Caller | MountCaller | None
"""Who asks for the files of a bucket: a user, whoever serves the volumes of a job, or somebody without a token."""


def admit(bucket: Bucket | None, caller: Asker, permission: Permission, path: str) -> Bucket:
    """Return the bucket if the caller has that permission on it.

    One that the caller may not see is as one that does not exist: RepoNotFound, or RepoHidden without a caller.
    One that is seen but not theirs to change: Forbidden, or Unauthenticated without a caller.
    """
    if isinstance(caller, MountCaller):
        return _admit_mount(bucket, caller, permission, path)
    if bucket is None or not _sees(bucket, caller):
        if caller is None:
            raise RepoHidden(f"there is no bucket of that name without a token; set HF_TOKEN if it is private: {path}")
        raise RepoNotFound(f"there is no bucket of that name for {caller.user.name}: {path}")
    if permission is Permission.WRITE:
        authorize(known(caller), Permission.WRITE, bucket.namespace.name)
    return bucket


def _admit_mount(bucket: Bucket | None, caller: MountCaller, permission: Permission, path: str) -> Bucket:
    if bucket is None or not caller.may(Permission.READ, bucket.id):
        raise RepoNotFound(f"this token of a volume is for another bucket: {path}")
    if not caller.may(permission, bucket.id):
        raise Forbidden(f"this volume is mounted to be read only: {path}")
    return bucket


def known(caller: Caller | None) -> Caller:
    """Return the caller. Raises Unauthenticated if there is none."""
    if caller is None:
        raise Unauthenticated("this needs a token: set HF_TOKEN or run `hf auth login`")
    return caller


def _sees(bucket: Bucket, caller: Caller | None) -> bool:
    return not bucket.private or (caller is not None and caller.may(Permission.READ, bucket.namespace.name))
