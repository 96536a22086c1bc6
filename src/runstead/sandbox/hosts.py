"""The sandboxes of a pool's host."""

from runstead.model.jobs import Job
from runstead.sandbox import wire
from runstead.sandbox.exchange import Exchange
from runstead.services.sandboxes.sandboxes import Sandboxes

_LONGEST_BODY = 2**20


async def create(exchange: Exchange, sandboxes: Sandboxes, job: Job) -> None:
    """Make sandboxes. That there is no room for more is said, and no error."""
    wanted, count = wire.new_sandboxes(await exchange.json(_LONGEST_BODY))
    made, rejected = await sandboxes.create(job, exchange.token, wanted, count)
    await exchange.answer_json({"sandboxes": [wire.created_json(member) for member in made], "rejected": rejected})


async def page(exchange: Exchange, sandboxes: Sandboxes, job: Job) -> None:
    """List the sandboxes."""
    await exchange.answer_json([wire.member_json(one) for one in await sandboxes.members(job, exchange.token)])


async def token(exchange: Exchange, sandboxes: Sandboxes, job: Job, sandbox_id: str) -> None:
    """Tell the token of a sandbox."""
    await exchange.answer_json(wire.token_json(await sandboxes.member(job, exchange.token, sandbox_id)))


async def remove(exchange: Exchange, sandboxes: Sandboxes, job: Job, sandbox_id: str) -> None:
    """Remove a sandbox."""
    await sandboxes.remove(job, exchange.token, sandbox_id)
    await exchange.answer_json({"id": sandbox_id, "deleted": True})


async def remove_all(exchange: Exchange, sandboxes: Sandboxes, job: Job) -> None:
    """Remove all sandboxes."""
    await exchange.answer_json({"deleted": await sandboxes.remove_all(job, exchange.token)})
