"""Which jobs are sandboxes, and what they ask for as such.

Told by what all clients since huggingface_hub 1.22 send alike: a label, a secret and a port. The command is not looked
at: it differs between versions, and is not run. A job with the label alone is an ordinary one; labels are free text.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from runstead.executors.interface import Capabilities
from runstead.kit.targets import parse_target
from runstead.model.errors import Invalid, Unsupported
from runstead.model.jobs import JobSpec
from runstead.model.sandboxes import (
    CAPACITY,
    EGRESS,
    HOST_MODE,
    IDLE_TIMEOUT,
    KEPT_LABELS,
    LABEL,
    MODE_LABEL,
    PORT,
    SERVER_BUCKET,
    SERVER_MOUNT,
    SERVER_PORT,
    TOKEN_SECRET,
    Mode,
    SandboxSpec,
)
from runstead.model.volumes import Volume, VolumeKind

_LONGEST_IDLE_SECONDS = 10 * 365 * 24 * 3600
_LARGEST_CAPACITY = 100_000
_ENABLED = "1"
_MOST_TARGETS = 100


class SandboxRules:
    """Which sandboxes a job may be."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities

    def accept(self, spec: JobSpec, secrets: Collection[str]) -> JobSpec:
        """Return the job as it is stored: as the sandbox it is, or as it was given.

        Raises Invalid for one at odds with itself, Unsupported for what the executor cannot have, with the reason.
        """
        spec = recognized(spec, secrets)
        if spec.sandbox is not None:
            self._check_possible(spec.sandbox)
        return spec

    def _check_possible(self, sandbox: SandboxSpec) -> None:
        here = self._capabilities
        if not here.inside:
            raise Unsupported(
                f"expose: sandboxes are not possible here: the {here.kind} executor cannot reach into running jobs"
            )
        if not here.ports:
            raise Unsupported(f"expose: sandboxes are not possible here: {here.without_ports}")
        if sandbox.snapshots and not here.snapshots:
            raise Unsupported(f"sandboxes cannot be forked here: {here.without_snapshots}")
        if sandbox.egress is not None and not here.egress:
            raise Unsupported(
                f"environment.{EGRESS}: what a sandbox may reach cannot be limited here: jobs have no network of their "
                "own, so the sandbox was not created; `runstead doctor` says what is missing"
            )
        if sandbox.mode is Mode.POOL and not here.compartments:
            raise Unsupported(
                f"labels.{MODE_LABEL}: sandbox pools are not possible here: the {here.kind} executor cannot keep the "
                "sandboxes of one host apart; create dedicated sandboxes instead (`hf sandbox create` without --pool)"
            )


def recognized(spec: JobSpec, secrets: Collection[str]) -> JobSpec:
    """Return the job as the sandbox it is, or as it was given. Raises Invalid for one at odds with itself."""
    if spec.sandbox is not None:  # submitted again: what clients know of is no longer among its volumes
        return spec
    if spec.labels.get(LABEL) != _ENABLED or TOKEN_SECRET not in secrets or PORT not in spec.ports.exposed:
        return spec
    mode = _mode(spec)
    if (given := spec.environment.get(SERVER_PORT, str(PORT))) != str(PORT):
        raise Invalid(f"a sandbox is reached on port {PORT}, not {given[:20]!r}", f"environment.{SERVER_PORT}")
    return replace(
        spec,
        volumes=tuple(volume for volume in spec.volumes if not _is_client_program(volume)),
        sandbox=SandboxSpec(
            mode=mode,
            idle_seconds=_number(spec.environment, IDLE_TIMEOUT, _LONGEST_IDLE_SECONDS) or None,
            capacity=_number(spec.environment, CAPACITY, _LARGEST_CAPACITY) if mode is Mode.POOL else None,
            egress=egress_of(spec.environment, "environment"),
            unmounted=tuple(volume for volume in spec.volumes if _is_client_program(volume)),
        ),
    )


def kept_labels(spec: JobSpec) -> Mapping[str, str]:
    """Return the labels that stay with a sandbox: without them no client could connect to it."""
    if spec.sandbox is None:
        return {}
    return {name: value for name, value in spec.labels.items() if name in KEPT_LABELS}


def _mode(spec: JobSpec) -> Mode:
    text = spec.labels.get(MODE_LABEL, Mode.DEDICATED.value)
    try:
        mode = Mode(text)
    except ValueError:
        raise Invalid(f"should be 'dedicated' or 'pool', not {text[:50]!r}", f"labels.{MODE_LABEL}") from None
    hosting = spec.environment.get(HOST_MODE, "") == _ENABLED
    if hosting != (mode is Mode.POOL):
        raise Invalid(
            f"the label {MODE_LABEL} says {mode}, which {HOST_MODE} contradicts: {hosting}", f"environment.{HOST_MODE}"
        )
    return mode


def _number(environment: Mapping[str, str], name: str, largest: int) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= largest):
        raise Invalid(f"should be a whole number up to {largest}, not {text[:50]!r}", f"environment.{name}")
    return int(text)


def egress_of(environment: Mapping[str, str], field: str) -> tuple[str, ...] | None:
    """Return what a sandbox may reach if that is listed: nothing, for an empty list or the word `none`.

    Raises Invalid, which names the variable in `field`.
    """
    text = environment.get(EGRESS)
    if text is None:
        return None
    entries = tuple(one.strip() for one in text.split(",") if one.strip())
    if entries == ("none",):
        return ()
    if len(entries) > _MOST_TARGETS:
        raise Invalid(f"at most {_MOST_TARGETS} places, not {len(entries)}", f"{field}.{EGRESS}")
    try:
        for one in entries:
            parse_target(one)
    except ValueError as error:
        raise Invalid(str(error), f"{field}.{EGRESS}") from error
    return entries


def _is_client_program(volume: Volume) -> bool:
    """Whether this is the program that the client's command would run: there is no need for it here."""
    return volume.kind is VolumeKind.BUCKET and volume.source == SERVER_BUCKET and volume.mount_path == SERVER_MOUNT
