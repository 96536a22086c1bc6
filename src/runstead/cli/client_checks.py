"""Whether the client on this machine talks to a server that knows its token."""

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from runstead.cli.findings import Finding, Level
from runstead.kit.settings import Settings

_OLDEST = (1, 4)


def client() -> list[Finding]:
    """Find the `hf` command and its version."""
    hf = shutil.which("hf")
    if hf is None:
        return [Finding(Level.MISSING, "client", "no `hf` command on PATH", "pip install huggingface_hub")]
    try:
        done = subprocess.run([hf, "version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding(Level.MISSING, "client", f"{hf} does not run: {error}", "pip install huggingface_hub")]
    match = re.search(r"(\d+)\.(\d+)\S*", done.stdout + done.stderr)
    if not match:
        return [Finding(Level.MISSING, "client", f"{hf} does not say its version", "pip install -U huggingface_hub")]
    if (int(match[1]), int(match[2])) < _OLDEST:
        text = f"huggingface_hub {match[0]} at {hf} is too old for jobs"
        return [Finding(Level.MISSING, "client", text, "pip install -U huggingface_hub")]
    return [Finding(Level.OK, "client", f"huggingface_hub {match[0]} at {hf}")]


def endpoint(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Follow HF_ENDPOINT and HF_TOKEN as a client would."""
    url = environment.get("HF_ENDPOINT", "").rstrip("/")
    own = settings.server.public_url or f"http://{settings.server.host}:{settings.server.port}"
    if not url:
        return [Finding(Level.NOTE, "HF_ENDPOINT", "not set: clients here talk to the Hub", f"HF_ENDPOINT={own}")]
    token = environment.get("HF_TOKEN") or stored_token(environment)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if not url.startswith(("http://", "https://")):
        return [Finding(Level.MISSING, "HF_ENDPOINT", f"{url} is no http:// or https:// URL", f"HF_ENDPOINT={own}")]
    try:
        request = urllib.request.Request(f"{url}/api/whoami-v2", headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            name = json.load(answer).get("name")
    except urllib.error.HTTPError as error:
        if error.code == 401:
            remedy = "runstead token add USER, then set HF_TOKEN"
            return [Finding(Level.MISSING, "HF_TOKEN", f"{url} does not know the token in use", remedy)]
        return [Finding(Level.MISSING, "HF_ENDPOINT", f"{url} answers {error.code}", f"HF_ENDPOINT={own}")]
    except (OSError, ValueError) as error:
        return [Finding(Level.NOTE, "HF_ENDPOINT", f"nobody answers at {url}: {error}", "start `runstead serve`")]
    return [Finding(Level.OK, "HF_ENDPOINT", f"{url}, signed in as {name}")]


def stored_token(environment: Mapping[str, str]) -> str | None:
    """Return the token that `hf auth login` stored."""
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = Path(environment.get("HF_TOKEN_PATH") or home / "token")
    return file.read_text().strip() if file.is_file() else None
