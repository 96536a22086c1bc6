"""The list of jobs of a namespace."""

from urllib.parse import quote

from starlette.responses import Response

from runstead.web.job_filters import SHOWN_STAGES, read_query
from runstead.web.visit import Visit, see

PAGE = 50


async def start(visit: Visit) -> Response:
    """Lead to the caller's own jobs, or to those of the first namespace they may look at."""
    namespaces = visit.namespaces
    if not namespaces:
        return visit.page("no_namespace.html")
    return see(f"/jobs/{quote(namespaces[0], safe='')}")


async def job_list(visit: Visit) -> Response:
    """Show jobs, newest first."""
    request, jobs = visit.request, visit.context.jobs
    namespace: str = request.path_params["namespace"]
    query = read_query(f"/jobs/{quote(namespace, safe='')}", request.query_params)
    after = request.query_params.get("after")
    before_seq = (await jobs.get(visit.caller, namespace, after)).seq if after else None
    found, more = await jobs.page(visit.caller, namespace, query.wanted, before_seq, PAGE)
    return visit.page(
        "job_list.html",
        namespace=namespace,
        query=query,
        stages=SHOWN_STAGES,
        jobs=found,
        messages={job.id: jobs.message(job) for job in found if not job.stage.is_terminal},
        later=query.after(found[-1].id) if more is not None else None,
        is_first=not after,
    )
