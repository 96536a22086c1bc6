"""`runstead mcp`: the `hf_jobs` tool for agents on this machine."""

import asyncio
import importlib.util
from typing import Annotated

import typer

from runstead.model.errors import Unavailable

app = typer.Typer(add_completion=False)


@app.command()
def mcp(
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="HF_ENDPOINT", help="The server to use. Without it, the hosted Hub."),
    ] = None,
) -> None:
    """Serve the tools hf_jobs and hf_whoami over standard input and output, for the agent that starts this.

    The token is what every client of the Hub uses: HF_TOKEN, or what `hf auth login` stored. Needs the extra
    `runstead[mcp]`. A server of ours serves the same tools itself, at /mcp.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Unavailable("this needs the client library: pip install 'runstead[mcp]'")
    from huggingface_hub import constants, get_token

    from runstead.mcp.stdio import serve

    asyncio.run(serve(endpoint or constants.ENDPOINT, get_token()))
