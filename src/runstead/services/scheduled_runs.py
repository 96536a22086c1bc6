"""From a schedule to one of its runs: a job like any other, with the rights that the schedule's user has now."""

from collections.abc import Sequence
from datetime import UTC, datetime

from runstead.model.accounts import Caller, Namespace, NamespaceKind, Permission, Token, TokenRole
from runstead.model.errors import Forbidden, NotFound
from runstead.model.jobs import Initiator, NewJob
from runstead.model.schedules import Schedule
from runstead.services.jobs import Jobs
from runstead.services.secrets import SecretBox
from runstead.stores.interface import AccountStore, ScheduleStore

INITIATOR = "scheduled-job"
# No client can send a header with this character, and so nobody can take the key of a run before it is due.
_KEY_MARK = "\u23f0"


class ScheduledRuns:
    """Makes runs of schedules."""

    def __init__(self, store: ScheduleStore, accounts: AccountStore, jobs: Jobs, secrets: SecretBox) -> None:
        self._store = store
        self._accounts = accounts
        self._jobs = jobs
        self._secrets = secrets

    async def prepare(
        self, schedule: Schedule, due_at: datetime | None = None, caller: Caller | Forbidden | None = None
    ) -> NewJob:
        """Return a run of the schedule, for an instant at which it is due or because somebody asked for it.

        `caller` is what `callers_of` found for it a moment ago.

        Raises Invalid, NotFound, Forbidden or Unsupported for what the schedule had when it was made and has no more.
        """
        if isinstance(caller, Forbidden):
            raise caller
        caller = caller or await self.caller_of(schedule)
        secrets = await self.secrets_of(schedule)
        spec = await self._jobs.accept(caller, schedule.spec, secrets)
        for before, now in zip(schedule.spec.volumes, spec.volumes, strict=True):
            if before.source_id != now.source_id:
                raise NotFound(f"what was mounted is gone, and there is another of its name now: {now.source}")
        owner = Namespace(schedule.namespace_id, schedule.namespace, NamespaceKind(schedule.namespace_kind))
        key = None if due_at is None else f"{_KEY_MARK}{schedule.id}/{due_at.astimezone(UTC):%Y%m%dT%H%M%S}"
        return self._jobs.draft(caller.user, owner, spec, secrets, Initiator(INITIATOR, schedule.id), key)

    async def caller_of(self, schedule: Schedule) -> Caller:
        """Return the schedule's user, with the rights of the account: the token it was made with may be long gone.

        Raises Forbidden when there is no such user any more, or none who may start jobs in this namespace.
        """
        user = await self._accounts.user(schedule.created_by)
        if user is None or user.id != schedule.created_by_id:
            raise Forbidden(f"the user that the schedule belongs to is gone: {schedule.created_by}")
        token = Token("", user.id, f"schedule {schedule.id}", TokenRole.WRITE, schedule.created_at, "")
        caller = Caller(user, token, tuple(await self._accounts.memberships(user.id)))
        namespace = caller.namespace(schedule.namespace)
        if (
            namespace is None
            or namespace.id != schedule.namespace_id
            or not caller.may(Permission.WRITE, namespace.name)
        ):
            raise Forbidden(f"{user.name} may not start jobs in {schedule.namespace!r} any more")
        return caller

    async def callers_of(self, schedules: Sequence[Schedule]) -> list[Caller | Forbidden]:
        """Return the user of each schedule, or why there is none: asked once for those that have the same."""
        found: dict[tuple[str, ...], Caller | Forbidden] = {}
        for schedule in schedules:
            who = _user_in_namespace(schedule)
            if who not in found:
                try:
                    found[who] = await self.caller_of(schedule)
                except Forbidden as error:
                    found[who] = error
        return [found[_user_in_namespace(schedule)] for schedule in schedules]

    async def secrets_of(self, schedule: Schedule) -> dict[str, str]:
        """Return the schedule's secrets in clear."""
        if not schedule.spec.secret_names:
            return {}
        sealed = await self._store.sealed_secrets(schedule.id)
        return self._secrets.open(schedule.id, sealed) if sealed else {}


def _user_in_namespace(schedule: Schedule) -> tuple[str, ...]:
    return schedule.created_by_id, schedule.created_by, schedule.namespace_id, schedule.namespace
