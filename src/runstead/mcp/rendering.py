"""Text for a model to read: short, whole identifiers, nothing twice."""

from collections.abc import Mapping, Sequence

from runstead.mcp.outcome import FlavorOutput, Identity, JobOutput, ScheduledJobOutput, SpecOutput, StatsOutcome

_LONGEST_COMMAND = 80


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def job_line(job: JobOutput) -> str:
    """Return the one line that says how a job stands."""
    stage = job.status.stage
    told = f": {job.status.message}" if job.status.message else ""
    ran = f" after {job.running_seconds:g} s" if job.finished_at and job.running_seconds is not None else ""
    return f"Job {job.id} is {stage}{ran}{told}"


def job_text(job: JobOutput) -> str:
    """Return all that is worth reading of a job."""
    rows = [
        job_line(job),
        f"URL: {job.url}",
        f"owner: {job.owner.name}" + (f", created by {job.created_by}" if job.created_by else ""),
        f"created {job.created_at}, started {job.started_at or '-'}, finished {job.finished_at or '-'}",
        *_spec_rows(job),
    ]
    rows += cost_rows(job.cost_usd)
    if job.status.expose_urls:
        rows.append(f"reachable at: {', '.join(job.status.expose_urls)}")
    return "\n".join(rows)


def cost_rows(cost_usd: float | None) -> list[str]:
    """Return what something has cost, if it cost anything."""
    return [f"cost: {cost_usd:.4f} USD"] if cost_usd else []


def labels_text(labels: Mapping[str, str] | None) -> str:
    """Return labels in one line."""
    return ", ".join(f"{key}={value}" for key, value in (labels or {}).items()) or "no labels"


def jobs_table(jobs: Sequence[JobOutput]) -> str:
    """Return a list of jobs."""
    rows = [
        [
            job.id,
            job.status.stage,
            (job.labels or {}).get("name", ""),
            job.docker_image or job.space_id or "",
            _short(" ".join(job.command or ())),
            job.flavor or "",
            job.created_at or "",
        ]
        for job in jobs
    ]
    return table(("id", "stage", "name", "image", "command", "flavor", "created"), rows)


def log_block(lines: Sequence[str], title: str) -> str:
    """Return lines of a log, fenced so that nothing in them is taken for more than a log."""
    if not lines:
        return f"{title}: nothing"
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    return f"{title}:\n{fence}\n" + "\n".join(lines) + f"\n{fence}"


def scheduled_text(scheduled: ScheduledJobOutput) -> str:
    """Return all that is worth reading of a schedule."""
    state = "suspended" if scheduled.suspended else f"next run {scheduled.next_run or 'not known'}"
    if scheduled.suspend_reason:
        state += f" ({scheduled.suspend_reason})"
    last = f"last run {scheduled.last_run}, job {scheduled.last_job_id}" if scheduled.last_job_id else "no run yet"
    rows = [
        f"Schedule {scheduled.id} ({scheduled.schedule}): {state}; {last}",
        f"owner: {scheduled.owner.name}",
        *_spec_rows(scheduled.job_spec),
    ]
    return "\n".join(rows + cost_rows(scheduled.cost_usd))


def schedules_table(schedules: Sequence[ScheduledJobOutput]) -> str:
    """Return a list of schedules."""
    rows = [
        [
            one.id,
            one.schedule or "",
            "yes" if one.suspended else "no",
            one.next_run or "",
            one.last_run or "",
            one.job_spec.docker_image or one.job_spec.space_id or "",
            _short(" ".join(one.job_spec.command or ())),
        ]
        for one in schedules
    ]
    return table(("id", "schedule", "suspended", "next run", "last run", "image", "command"), rows)


def hardware_table(flavors: Sequence[FlavorOutput]) -> str:
    """Return a list of flavors."""
    rows = [
        [
            one.name,
            one.cpu or "",
            one.memory or "",
            one.accelerator or "",
            one.disk or "",
            f"{one.usd_per_minute * 60:.2f} USD/h" if one.usd_per_minute else "free",
        ]
        for one in flavors
    ]
    return table(("flavor", "cpu", "memory", "accelerator", "disk", "price"), rows)


def stats_text(stats: StatsOutcome) -> str:
    """Return what a job uses."""
    rows = [
        f"cpu {stats.cpu_percent:g} % of {stats.cpu_cores:g} cores",
        f"memory {_size(stats.memory_used_bytes)} of {_size(stats.memory_total_bytes)}",
        f"network {stats.received_bits_per_second:g} bit/s in, {stats.sent_bits_per_second:g} out",
        *(
            f"GPU {gpu.id}: {gpu.utilization_percent or 0:g} %, {_size(gpu.memory_used_bytes or 0)} of "
            f"{_size(gpu.memory_total_bytes or 0)}"
            for gpu in stats.gpus
        ),
    ]
    return f"Job {stats.job_id} uses: " + "; ".join(rows)


def identity_text(identity: Identity) -> str:
    """Return who the caller is."""
    if not identity.authenticated:
        return f"Nobody is signed in at {identity.endpoint}: there is no token, or it is not valid."
    orgs = f", member of {', '.join(identity.organizations)}" if identity.organizations else ""
    may = ", ".join(identity.jobs_namespaces) or "nowhere"
    return (
        f"{identity.name} at {identity.endpoint}{orgs}. Token {identity.token_name!r} ({identity.token_role}); "
        f"it may start jobs in: {may}."
    )


def _spec_rows(spec: SpecOutput) -> list[str]:
    rows = [
        f"image: {spec.docker_image or spec.space_id}",
        f"command: {' '.join([*(spec.command or ()), *(spec.arguments or ())])}"[:2000],
        f"flavor: {spec.flavor}, timeout: {spec.timeout_seconds or 0:g} s",
    ]
    if spec.environment_variable_names:
        rows.append(f"env: {', '.join(spec.environment_variable_names)}")
    if spec.secret_names:
        rows.append(f"secrets: {', '.join(spec.secret_names)}")
    if spec.labels:
        rows.append(f"labels: {labels_text(spec.labels)}")
    rows += [
        f"volume: {one.type} {one.source}{'/' + one.path if one.path else ''} at {one.mount_path}"
        + (" (read only)" if one.read_only else "")
        for one in spec.volumes or ()
    ]
    return rows


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 3] + "..."


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
