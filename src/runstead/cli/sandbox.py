"""`runstead sandbox`: what there is of sandboxes beyond `hf sandbox`. A client: it needs a token and no server."""

import json
import os
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from runstead.cli.client_checks import stored_token
from runstead.cli.options import AsJson
from runstead.model.errors import Invalid, Unavailable

app = typer.Typer(
    help="Fork sandboxes; all else is done with `hf sandbox`.", no_args_is_help=True, add_completion=False
)

_PATIENCE_SECONDS = 300


@app.callback()
def group() -> None:
    """Keep `fork` a command of its own also while it is the only one."""


@app.command()
def fork(
    sandbox_id: Annotated[str, typer.Argument(metavar="ID", help="A running sandbox: ID, or NAMESPACE/ID.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="How many forks.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Make sandboxes that begin with the files of this one, as they are now, and print their ids.

    The files are kept once and shared; what a fork writes is its own. Programs are not carried over: stop those that
    write before. Connect to a fork as to any sandbox, with the same access token. Uses HF_ENDPOINT and HF_TOKEN.
    """
    namespace, separator, job_id = sandbox_id.rpartition("/")
    if not separator:
        namespace = str(_ask("GET", "/api/whoami-v2")["name"])
    made = _ask("POST", f"/api/jobs/{namespace}/{job_id}/fork", {"count": count})["jobs"]
    if as_json:
        print(json.dumps(made))
        return
    for job in made:
        print(job["id"])


def _ask(method: str, path: str, body: object = None) -> dict[str, Any]:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise Invalid("set HF_ENDPOINT to the URL of the server, as for `hf`", "HF_ENDPOINT")
    token = os.environ.get("HF_TOKEN") or stored_token(os.environ)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(endpoint + path, data, headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Unavailable(_reason(error)) from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"{endpoint} cannot be reached: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"
