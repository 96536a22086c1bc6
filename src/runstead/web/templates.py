"""Pages out of templates. Every value is escaped: what jobs, labels and file names say is only ever text."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from secrets import token_urlsafe
from shlex import join
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

import runstead
from runstead.web import formats
from runstead.web.headers import secure
from runstead.web.static_files import StaticFiles


class Templates:
    """Renders pages."""

    def __init__(self, static: StaticFiles) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        filters: dict[str, Any] = {
            "iso": formats.iso,
            "instant": formats.instant,
            "duration": formats.duration,
            "size": formats.size,
            "command_line": formats.command_line,
            "job_title": formats.job_title,
            "stage_word": formats.stage_word,
            "failure_words": formats.failure_words,
            "reason": formats.reason,
            "segment": formats.segment,
            "path": formats.path,
            "shell": join,
            "fingerprint": fingerprint,
        }
        self._environment.filters.update(filters)
        self._shared = {"static": static.address, "version": runstead.__version__}

    def page(self, name: str, values: Mapping[str, Any], status: int = 200) -> Response:
        """Return a page."""
        nonce = token_urlsafe(16)
        text = self._environment.get_template(name).render({**self._shared, **values, "nonce": nonce})
        return secure(HTMLResponse(text, status), nonce)


def fingerprint(text: str) -> str:
    """Return a short digest, by which a page sees that a part of it changed."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
