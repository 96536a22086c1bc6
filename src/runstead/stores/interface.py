"""What the services may ask of the database. Each method is one transaction, durable before it returns."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from runstead.model.accounts import (
    Caller,
    Membership,
    Namespace,
    Organization,
    OrgRole,
    Token,
    User,
)
from runstead.model.buckets import Batch, Bucket, BucketFile, Folder, KeptFile, NewFile, Output, Writer
from runstead.model.costs import Budget, UsageQuery, UsageSum
from runstead.model.jobs import (
    CancelReason,
    HistoryEntry,
    Job,
    JobFilter,
    JobSpec,
    NewJob,
    Reservation,
    Transition,
)
from runstead.model.ports import Ports
from runstead.model.sandboxes import PooledSandbox
from runstead.model.schedules import Fired, Firing, NewSchedule, Schedule, ScheduleEvent
from runstead.xet.terms import Terms
from runstead.xet.xorb_layout import XorbFacts


@dataclass(frozen=True, slots=True)
class Waiting:
    """The oldest jobs of one flavor in the queue."""

    flavor: str
    jobs: Sequence[Job]  # oldest first


@dataclass(frozen=True, slots=True)
class Admission:
    """A decision to let a waiting job start: what it will hold, and on which executor instance."""

    job_id: str
    attempt: int
    reservation: Reservation | None
    executor: str


class JobStore(ABC):
    """Jobs, their history and their secrets."""

    @abstractmethod
    async def add(self, job: NewJob) -> Job:
        """Store a job in phase WAITING with its first history row, its label rows and its sealed secrets.

        With an `idempotency_key` already used in this namespace, return the job stored then, unchanged.
        """

    @abstractmethod
    async def add_all(self, jobs: Sequence[NewJob]) -> list[Job]:
        """Store several jobs as `add` does, all of them or none. They have no idempotency key."""

    @abstractmethod
    async def get(self, job_id: str) -> Job | None:
        """Return the job, or None."""

    @abstractmethod
    async def keyed(self, namespace: str, idempotency_key: str) -> Job | None:
        """Return the job that was stored with that key in the namespace, or None."""

    @abstractmethod
    async def page(self, namespace: str, wanted: JobFilter, before_seq: int | None, limit: int) -> list[Job]:
        """Return up to `limit` jobs of the namespace, newest first, older than `before_seq`.

        Its cost does not grow with the number of jobs stored.
        """

    @abstractmethod
    async def count(self, namespace: str, wanted: JobFilter) -> int:
        """Count the jobs of the namespace that `page` would return. Its cost grows with their number."""

    @abstractmethod
    async def sealed_secrets(self, job_id: str) -> bytes | None:
        """Return the encrypted secrets as they were stored, or None if the job has none."""

    @abstractmethod
    async def set_labels(self, job_id: str, labels: Mapping[str, str]) -> Job | None:
        """Replace all labels; return the job, or None if there is none."""

    @abstractmethod
    async def set_ports(self, job_id: str, ports: Ports) -> Job | None:
        """Replace the exposed ports of a job that is not over; return it as it is then, or None if there is none."""

    @abstractmethod
    async def open_with_ports(self) -> list[Job]:
        """Return all jobs that are not over and expose ports. Its cost grows with the jobs that are not over."""

    @abstractmethod
    async def request_cancel(self, job_id: str, at: datetime, reason: CancelReason = CancelReason.ASKED) -> Job | None:
        """Note that the job shall be cancelled, unless it is terminal or noted already; return it as it is now.

        This alone is no change of phase or stage and writes no history.
        """

    @abstractmethod
    async def history(self, job_id: str) -> list[HistoryEntry]:
        """Return the job's changes, oldest first; each with its attempt, a retry with the one that ended."""

    @abstractmethod
    async def waiting(self, now: datetime, per_flavor: int) -> list[Waiting]:
        """Return the heads of the queue by flavor: phase WAITING, not_before past, not to be cancelled."""

    @abstractmethod
    async def held(self, executor: str) -> list[Reservation]:
        """Return the reservations of all jobs that hold something on this executor instance."""

    @abstractmethod
    async def admit(
        self, admissions: Sequence[Admission], owner: str, lease_until: datetime, at: datetime
    ) -> list[Job]:
        """Move each job from WAITING to STARTING, write its history row, and lease it to `owner`.

        Why a job waited, and until when, is over: its message and its `not_before` become empty. Jobs that are no
        longer waiting at that attempt, or are to be cancelled, are left out of the answer.
        """

    @abstractmethod
    async def claim(
        self,
        executors: Collection[str],
        owner: str,
        now: datetime,
        lease_until: datetime,
        limit: int,
    ) -> list[Job]:
        """Lease up to `limit` unfinished jobs that nobody holds (no lease, or one past `now`) to `owner`.

        Candidates: phase STARTING, RUNNING or RELEASING with one of the given executor instances, and phase
        WAITING with a cancellation noted. Two callers never get the same job.

        An owner's leases end together: to claim or admit a job extends the earlier ones as `renew` does, unless
        they have run out; then they are dropped, for others may have the jobs by now.
        """

    @abstractmethod
    async def renew(self, owner: str, lease_until: datetime) -> None:
        """Extend every lease of `owner`."""

    @abstractmethod
    async def release_leases(self, owners_prefix: str) -> None:
        """Drop the leases of every owner whose name begins so: the caller knows that those processes are dead."""

    @abstractmethod
    async def leased(self, owner: str) -> list[Job]:
        """Return the jobs leased to `owner` that are in phase STARTING, RUNNING or RELEASING."""

    @abstractmethod
    async def apply(self, transition: Transition, owner: str) -> Job | None:
        """Apply a guarded change with its history row; None if the guard does not hold (phase, attempt, lease).

        A lease that has run out still holds as long as nobody else has taken the job.
        A job that moves to WAITING or DONE loses its lease. A job in phase WAITING needs no lease to change.
        """

    @abstractmethod
    async def note(self, job_id: str, attempt: int, message: str, owner: str) -> bool:
        """Set the message of a job in phase STARTING, without a history row: progress, not a change.

        False if the guard does not hold (phase, attempt, lease).
        """

    @abstractmethod
    async def queue(self) -> list[tuple[int, str]]:
        """Return (seq, job_id) of all waiting jobs, in order. Used once at start and to repair the queue view."""

    @abstractmethod
    async def delete_finished(self, before: datetime, limit: int) -> list[Job]:
        """Delete up to `limit` jobs in phase DONE that finished before `before`; return what was deleted."""


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """What somebody changes about a schedule that is as it was seen, with the event that is noted. None: nothing."""

    event: ScheduleEvent | None = None
    suspended: bool | None = None  # if given, `suspend_reason` is set too
    suspend_reason: str | None = None
    expression: str | None = None
    labels: Mapping[str, str] | None = None
    created_by: tuple[str, str] | None = None  # id and name of whose rights its runs have from now on
    spec: JobSpec | None = None  # of its runs from now on, but for the labels
    timing: tuple[datetime | None, str] | None = None  # the next run and the time zone it was found in


class ScheduleStore(ABC):
    """Schedules, what happened to them, and the beginning of their runs. No call but `all` and `after` costs more
    for more schedules."""

    @abstractmethod
    async def add(self, schedule: NewSchedule) -> Schedule:
        """Store a schedule with its sealed secrets and its first event."""

    @abstractmethod
    async def get(self, schedule_id: str) -> Schedule | None:
        """Return the schedule, or None."""

    @abstractmethod
    async def all(self, namespace: str, labels: Mapping[str, str]) -> list[Schedule]:
        """Return the schedules of a namespace that have all these labels, newest first."""

    @abstractmethod
    async def after(self, seq: int, limit: int) -> list[Schedule]:
        """Return up to `limit` schedules of all namespaces in the order of creation, from the first after `seq` on."""

    @abstractmethod
    async def sealed_secrets(self, schedule_id: str) -> bytes | None:
        """Return the encrypted secrets as they were stored, or None."""

    @abstractmethod
    async def change(self, seen: Schedule, change: ScheduleChange) -> Schedule | None:
        """Change a schedule that is still as it was `seen`; None if it is not, or is gone."""

    @abstractmethod
    async def delete(self, schedule_id: str) -> bool:
        """Delete a schedule with its secrets and events; its runs stay. False if there is none."""

    @abstractmethod
    async def events(self, schedule_id: str, limit: int) -> list[ScheduleEvent]:
        """Return the last events, newest first. Only some hundred of each schedule are kept."""

    @abstractmethod
    async def due(self, now: datetime, limit: int) -> list[Schedule]:
        """Return up to `limit` schedules whose next run is due, the longest due first."""

    @abstractmethod
    async def next_due(self) -> datetime | None:
        """Return when the next run of any schedule is due; None if there is none."""

    @abstractmethod
    async def in_other_zones(self, time_zone: str) -> list[Schedule]:
        """Return the schedules whose next run was found in another time zone than this."""

    @abstractmethod
    async def fire(self, firing: Firing) -> Fired:
        """Let a due instant take effect: the job is stored and the schedule moved on together, or neither.

        No instant of a schedule gets two jobs, also from two servers, and also when the clock was turned back
        meanwhile. Without `concurrency` the instant is passed over while the last run is not over. Raises as
        `JobStore.add` does.
        """

    @abstractmethod
    async def trigger(self, seen: Schedule, job: NewJob, at: datetime) -> Job | None:
        """Store a run that somebody asked for, on top of those that are due; None if the schedule is gone.

        Raises Conflict without `concurrency` while the last run is not over.
        """

    @abstractmethod
    async def cost_so_far(self, schedule_ids: Collection[str], now: datetime) -> Mapping[str, int]:
        """Return what the attempts that run now have cost until now, in millionths, by schedule; only where any is."""


class UsageStore(ABC):
    """What attempts used and cost, and what namespaces may spend. It outlasts the jobs."""

    @abstractmethod
    async def usage(self, wanted: UsageQuery, now: datetime) -> list[UsageSum]:
        """Return the sums that were asked for, in no order. Each attempt is in them once, also one that ends now."""

    @abstractmethod
    async def budgets(self, month: int) -> list[Budget]:
        """Return all budgets by namespace, with what is spent in that month."""

    @abstractmethod
    async def set_budget(self, namespace: str, limit_micro_usd: int | None, at: datetime) -> bool:
        """Set how much a namespace may spend in a month; None takes the budget away. False if there was none."""


class AccountStore(ABC):
    """Users, organizations and tokens. Names are unique over users and organizations together."""

    @abstractmethod
    async def add_user(self, user: User) -> User:
        """Store a user. Raises Conflict when the name is taken."""

    @abstractmethod
    async def users(self) -> list[User]:
        """Return all users by name."""

    @abstractmethod
    async def user(self, name: str) -> User | None:
        """Return the user of that name."""

    @abstractmethod
    async def remove_user(self, name: str) -> bool:
        """Delete a user with their tokens and memberships; False if there is none.

        Raises Conflict while they own jobs, buckets or schedules.
        """

    @abstractmethod
    async def add_organization(self, organization: Organization) -> Organization:
        """Store an organization. Raises Conflict when the name is taken."""

    @abstractmethod
    async def organizations(self) -> list[Organization]:
        """Return all organizations by name."""

    @abstractmethod
    async def remove_organization(self, name: str) -> bool:
        """Delete an organization with its memberships; False if there is none.

        Raises Conflict while it owns jobs, buckets or schedules.
        """

    @abstractmethod
    async def set_member(self, organization: str, user: str, role: OrgRole | None) -> None:
        """Give the user that role in the organization; None takes them out. Raises NotFound."""

    @abstractmethod
    async def members(self, organization: str) -> list[tuple[User, OrgRole]]:
        """Return the members by name. Raises NotFound."""

    @abstractmethod
    async def memberships(self, user_id: str) -> list[Membership]:
        """Return the organizations a user is in, by name."""

    @abstractmethod
    async def namespace(self, name: str) -> Namespace | None:
        """Return the user or organization of that name as a namespace."""

    @abstractmethod
    async def add_token(self, token: Token, digest: bytes) -> Token:
        """Store a token by the digest of its value. Raises Conflict when that value is known already."""

    @abstractmethod
    async def tokens(self, user: str | None = None) -> list[Token]:
        """Return the tokens of a user (or all), newest first."""

    @abstractmethod
    async def revoke_token(self, token_id: str) -> bool:
        """Delete a token; False if there is none."""

    @abstractmethod
    async def caller(self, digest: bytes) -> Caller | None:
        """Return who holds the token with that digest, with their memberships; None if unknown."""


@dataclass(frozen=True, slots=True)
class StoredXorb:
    """What is known of a stored xorb: its facts, chunk hashes included, the key of its object, its checksums."""

    facts: XorbFacts
    key: str
    checksums: bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose terms were verified."""

    file_hash: bytes
    size: int
    terms: Terms
    sha256: str | None


@dataclass(frozen=True, slots=True)
class EligibleChunk:
    """A chunk that clients may ask for, with a xorb and a file it is in."""

    chunk_hash: bytes
    xorb_hash: bytes
    file_hash: bytes


@dataclass(frozen=True, slots=True)
class XorbEntry:
    """A xorb as garbage collection and checks go through them."""

    xorb_hash: bytes
    key: str
    stored_bytes: int
    usable: bool  # neither quarantined nor doomed


class ContentStore(ABC):
    """Which xorbs and files are stored, and who has a claim on which file.

    *Confirming* a xorb or holding a file is how an upload in progress keeps it: what was confirmed or held at
    some instant is not doomed or dropped with an earlier `before`. Both are written anew only when they are a day
    old, so `before` has to leave that day. Xorbs that are quarantined or doomed are as if they were not there.
    """

    @abstractmethod
    async def store_id(self, at: datetime) -> str:
        """Return the present name of this store; the first call gives it one that was never used before."""

    @abstractmethod
    async def renew_store_id(self, current: str, at: datetime, rest_seconds: float) -> str:
        """Give the store a new name if `current` is its name and for that long already; return the present one."""

    @abstractmethod
    async def add_xorb(self, xorb: StoredXorb, at: datetime) -> StoredXorb:
        """Store and confirm a xorb; return it, or the one of the same hash that was there first."""

    @abstractmethod
    async def xorbs(self, hashes: Collection[bytes]) -> dict[bytes, StoredXorb]:
        """Return those of these xorbs that are stored."""

    @abstractmethod
    async def confirm_xorbs(self, hashes: Collection[bytes], at: datetime) -> set[bytes]:
        """Confirm those of these xorbs that are stored and return which they are."""

    @abstractmethod
    async def register(
        self, scope: str, files: Sequence[StoredFile], chunks: Sequence[EligibleChunk], at: datetime
    ) -> None:
        """Store these files, held and with a claim of the scope, and which chunks may be asked for.

        The caller has verified them against xorbs confirmed before. A file that is there already gets these terms.
        """

    @abstractmethod
    async def file(self, file_hash: bytes, scope: str | None = None) -> StoredFile | None:
        """Return a file, if it is there and the scope (when given) has a claim on it."""

    @abstractmethod
    async def files(self, hashes: Collection[bytes], scope: str | None = None) -> dict[bytes, StoredFile]:
        """Return those of these files that are there and claimed by the scope (when given)."""

    @abstractmethod
    async def hold_files(self, hashes: Collection[bytes], at: datetime, scope: str | None = None) -> dict[bytes, int]:
        """Hold those of these files that are there and claimed by the scope (when given); return their sizes."""

    @abstractmethod
    async def claim_files(self, scope: str, hashes: Collection[bytes], at: datetime) -> dict[bytes, int]:
        """Hold those of these files that are there, with a claim of the scope; return their sizes."""

    @abstractmethod
    async def drop_claims(self, scope: str) -> None:
        """Remove all claims of a scope."""

    @abstractmethod
    async def chunk(self, chunk_hash: bytes) -> EligibleChunk | None:
        """Return where a chunk that clients may ask for is."""

    @abstractmethod
    async def files_after(self, after: bytes, limit: int) -> list[StoredFile]:
        """Return up to `limit` files in the order of their hashes, from the first one after `after` on."""

    @abstractmethod
    async def files_held_before(self, hashes: Collection[bytes], before: datetime) -> list[bytes]:
        """Return those of these files that were last held before."""

    @abstractmethod
    async def drop_files(self, hashes: Collection[bytes], before: datetime) -> list[bytes]:
        """Remove those of these files that were last held before, with all claims on them; return which."""

    @abstractmethod
    async def xorbs_after(self, after: bytes, limit: int) -> list[XorbEntry]:
        """Return up to `limit` xorbs, usable or not, in the order of their hashes, from the first after `after` on."""

    @abstractmethod
    async def xorbs_confirmed_before(self, hashes: Collection[bytes], before: datetime) -> list[XorbEntry]:
        """Return those of these xorbs that were last confirmed before, and those doomed already."""

    @abstractmethod
    async def doom_xorbs(self, hashes: Collection[bytes], before: datetime) -> list[XorbEntry]:
        """Doom those of these xorbs that were last confirmed before; return them and those doomed already."""

    @abstractmethod
    async def drop_doomed(self, keys: Collection[str]) -> None:
        """Remove the doomed xorbs with these objects, and the chunks that are found in them."""

    @abstractmethod
    async def quarantine(self, xorb_hash: bytes, key: str) -> None:
        """Take a xorb out of use as long as it has this object."""

    @abstractmethod
    async def known_keys(self, keys: Collection[str]) -> set[str]:
        """Return which of these keys belong to a xorb."""


class BucketStore(ABC):
    """Buckets and their files. No call costs more for a bucket with more files."""

    @abstractmethod
    async def add(self, bucket: Bucket) -> Bucket:
        """Store an empty bucket and return it with its `seq`. Raises Conflict when the name is taken."""

    @abstractmethod
    async def find(self, namespace: str, name: str) -> Bucket | None:
        """Return the bucket of that name, or None if there is none or it is deleted."""

    @abstractmethod
    async def page(self, namespace: str, search: str, after: str, limit: int, *, with_private: bool) -> list[Bucket]:
        """Return up to `limit` buckets of a namespace by name, behind `after`, whose names contain `search`.

        Capitals count as small letters in the search; private buckets are there only `with_private`.
        """

    @abstractmethod
    async def set_private(self, bucket_id: str, private: bool) -> bool:
        """Set who may see the bucket; False if it is not there."""

    @abstractmethod
    async def move(self, bucket_id: str, namespace: Namespace, name: str) -> bool:
        """Rename the bucket; False if it is not there. Raises Conflict when the name is taken."""

    @abstractmethod
    async def delete(self, bucket_id: str, at: datetime) -> bool:
        """Take the bucket out of sight, and free its name; False if it is not there."""

    @abstractmethod
    async def deleted(self, namespace: str, name: str) -> list[Bucket]:
        """Return the deleted buckets that had this name at last and are still kept, last deleted first."""

    @abstractmethod
    async def undelete(self, bucket_id: str) -> bool:
        """Bring a deleted bucket back; False if it is not kept any more. Raises Conflict when the name is taken."""

    @abstractmethod
    async def files(self, bucket: int, paths: Collection[str]) -> list[BucketFile]:
        """Return the files with exactly these paths, those that exist, by path."""

    @abstractmethod
    async def find_file(self, namespace: str, name: str, path: str) -> tuple[Bucket, BucketFile | None] | None:
        """Return the bucket of that name with one of its files, in one look; None without the bucket."""

    @abstractmethod
    async def tree(self, bucket: int, prefix: str, start: str, limit: int) -> list[BucketFile]:
        """Return up to `limit` files at or below `prefix` (all if it is empty) by path, from `start` on."""

    @abstractmethod
    async def level(self, bucket: int, prefix: str, start: str, limit: int) -> list[BucketFile | Folder]:
        """Return up to `limit` files and folders directly below `prefix`, by the first path in each, from `start` on.

        A file whose path is `prefix` itself comes first. Its cost does not depend on what is in the folders.
        """

    @abstractmethod
    async def apply(
        self, bucket: int, edits: Mapping[str, NewFile | None], at: datetime, writer: Writer | None = None
    ) -> Batch:
        """Make the paths what they are mapped to (None: absent) in one step, and return what that changed.

        With a writer the changes are noted, in the same step, among the outputs of that job.

        What was there goes into the history. Paths that are so already do not change; without any change nothing
        is stored and the returned batch is empty. The bucket's instants only grow: the batch's, in whole milliseconds,
        is later than the bucket's last even if `at` is not. Raises NotFound if the bucket is deleted.
        """


class BucketLog(ABC):
    """What happened in buckets: batches for those who follow, history for those who regret, and their end."""

    @abstractmethod
    async def batches(self, bucket: int, after: int, limit: int) -> list[Batch]:
        """Return up to `limit` batches with versions above `after`, in order."""

    @abstractmethod
    async def reach(self, bucket: int) -> tuple[int, int] | None:
        """Return the bucket's version, and the least one from which `batches` goes on without a gap.

        None if the bucket is deleted or gone.
        """

    @abstractmethod
    async def version_at(self, bucket: int, at: datetime) -> int | None:
        """Return a version such that every batch later than the instant comes after it.

        Instants count in whole milliseconds, as clients know them. None if such a batch may have been forgotten.
        """

    @abstractmethod
    async def kept(self, bucket: int, prefix: str, after: tuple[str, int], limit: int) -> list[KeptFile]:
        """Return up to `limit` former files at or below `prefix`, by path and version, behind `after`."""

    @abstractmethod
    async def differences(
        self, bucket: int, prefix: str, at: datetime, start: str, limit: int
    ) -> tuple[dict[str, NewFile | None], str | None]:
        """Return what must change at or below `prefix` so that everything there is as it was at an instant.

        Looks at up to `limit` files and as many former files from the path `start` on; the second part of the
        answer is where to go on, None at the end.
        """

    @abstractmethod
    async def outputs(self, job_id: str, after: tuple[int, str], limit: int) -> list[Output]:
        """Return up to `limit` files that a job wrote, by the bucket's `seq` and path, behind `after`.

        They are kept as long as the job is.
        """

    @abstractmethod
    async def forget_kept(self, before: datetime, limit: int) -> int:
        """Forget up to `limit` former files of one bucket that were replaced before; return how many, 0 at the end."""

    @abstractmethod
    async def forget_batches(self, before: datetime, limit: int) -> int:
        """Forget up to `limit` batches from before; return how many."""

    @abstractmethod
    async def empty_deleted(self, before: datetime, limit: int) -> tuple[Bucket, bool] | None:
        """Remove up to `limit` rows of what is in the bucket deleted longest ago, if that was before.

        Returns the bucket and whether nothing is left in it; None without such a bucket.
        """

    @abstractmethod
    async def remove_deleted(self, bucket_id: str) -> None:
        """Forget a deleted bucket in which nothing is left."""

    @abstractmethod
    async def hashes(self, after: tuple[int, str], limit: int) -> tuple[list[bytes], tuple[int, str] | None]:
        """Return the hashes of up to `limit` files of all buckets behind `after`, and behind what to go on."""

    @abstractmethod
    async def kept_hashes(
        self, after: tuple[int, int, str], limit: int
    ) -> tuple[list[bytes], tuple[int, int, str] | None]:
        """Return the hashes of up to `limit` former files of all buckets, as `hashes` does."""


class SandboxStore(ABC):
    """When sandboxes were last used, and the pooled ones of each host. All of it goes with the job."""

    @abstractmethod
    async def add(self, sandboxes: Sequence[PooledSandbox]) -> None:
        """Store new pooled sandboxes."""

    @abstractmethod
    async def of_host(self, job_id: str) -> list[PooledSandbox]:
        """Return the pooled sandboxes of a host, oldest first."""

    @abstractmethod
    async def remove(self, job_id: str, ids: Collection[str]) -> None:
        """Forget pooled sandboxes. Idempotent."""

    @abstractmethod
    async def note_activity(self, at: Mapping[tuple[str, str], datetime]) -> None:
        """Remember when sandboxes were last used, by job and own id (empty for a dedicated one, or a host).

        Those that are not there any more are left out.
        """

    @abstractmethod
    async def activity(self, job_ids: Collection[str]) -> dict[str, datetime]:
        """Return when these dedicated sandboxes and hosts were last used, as far as that was noted."""
