"""One request of somebody who signed in, and the kinds of answer there are to it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from runstead.model.accounts import Caller, Permission
from runstead.model.errors import Forbidden, Unauthenticated
from runstead.web.addresses import base_url, check_same_origin, is_secure
from runstead.web.context import WebContext
from runstead.web.forms import read_form
from runstead.web.headers import secure
from runstead.web.sessions import Session, SessionBox
from runstead.web.static_files import StaticFiles
from runstead.web.templates import Templates

SEE_OTHER = 303
FORM_TOKEN = "form_token"  # noqa: S105  the name of a field
VISIT = "runstead.visit"


class Site:
    """The parts that all pages share."""

    def __init__(self, context: WebContext) -> None:
        self.context = context
        self.static = StaticFiles()
        self.templates = Templates(self.static)
        self.sessions = SessionBox(context.key)

    def cookie_name(self, request: Request) -> str:
        """Return the name of the cookie; by https one that no other host or path can have set."""
        prefix = "__Host-" if is_secure(request, self.context.public_url) else ""
        return prefix + self.sessions.name

    async def visit(self, request: Request) -> "Visit | None":
        """Return the visit that a request belongs to, or None without a valid session."""
        cookie = request.cookies.get(self.cookie_name(request))
        session = self.sessions.open(cookie, self.context.clock.now()) if cookie else None
        if session is None:
            return None
        try:
            caller = await self.context.accounts.recognize_digest(session.token_digest)
        except Unauthenticated:
            return None
        visit = request.scope[VISIT] = Visit(self, request, session, caller)
        return visit


@dataclass(frozen=True, slots=True)
class Visit:
    """Who looks at what."""

    site: Site
    request: Request
    session: Session
    caller: Caller

    @property
    def context(self) -> WebContext:
        """The services."""
        return self.site.context

    @property
    def namespaces(self) -> list[str]:
        """The namespaces whose things the caller may see, their own first."""
        names = [self.caller.user.name, *(one.organization.name for one in self.caller.memberships)]
        return [name for name in names if self.caller.may(Permission.READ, name)]

    @property
    def base_url(self) -> str:
        """The URL of this server."""
        return base_url(self.request, self.context.public_url)

    @property
    def shared(self) -> dict[str, Any]:
        """What the frame of every page needs."""
        form_token = self.site.sessions.form_token(self.session)
        return {"visit": self, "form_token": form_token, "namespace": self.caller.user.name}

    async def is_valid(self) -> bool:
        """Say whether the session still holds; what lasts asks again."""
        return await self.site.visit(self.request) is not None

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """Return a page that shows who is signed in."""
        return self.site.templates.page(name, {**self.shared, **values}, status)


Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Visit], Awaitable[Response]]
Kind = Callable[[Site], Endpoint]


def page(answer: Answer) -> Kind:
    """A page: who is not signed in does that first."""

    def kind(site: Site) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            visit = await site.visit(request)
            if visit is None:
                return sign_in_first(request)
            return secure(await answer(visit))

        return endpoint

    return kind


def data(answer: Answer) -> Kind:
    """What a page fetches: who is not signed in gets an error."""

    def kind(site: Site) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            visit = await site.visit(request)
            if visit is None:
                raise Unauthenticated("you are not signed in, or no longer: load the page again")
            return secure(await answer(visit))

        return endpoint

    return kind


def action(answer: Answer) -> Kind:
    """A form that changes something: only from a page of ours, made for this session."""

    def kind(site: Site) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            check_same_origin(request, site.context.public_url)
            visit = await site.visit(request)
            if visit is None:
                return sign_in_first(request)
            form = await read_form(request)
            if not site.sessions.is_form_token(visit.session, form.get(FORM_TOKEN, "")):
                raise Forbidden("this form is from another session, so nothing was done; load the page again")
            return secure(await answer(visit))

        return endpoint

    return kind


def public(answer: Callable[[Site, Request], Awaitable[Response]]) -> Kind:
    """What everybody may have."""

    def kind(site: Site) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return secure(await answer(site, request))

        return endpoint

    return kind


def sign_in_first(request: Request) -> Response:
    """Send the browser to the login page, and back here afterwards."""
    target = "/login"
    if request.method in ("GET", "HEAD"):
        path = request.scope["raw_path"].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        target += "?" + urlencode({"next": f"{path}?{query}" if query else path})
    return secure(RedirectResponse(target, SEE_OTHER))


def see(path: str) -> Response:
    """Send the browser on to another page."""
    return RedirectResponse(path, SEE_OTHER)
