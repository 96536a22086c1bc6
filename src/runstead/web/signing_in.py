"""Signing in with a token, and out again. The token goes into one request and nowhere else."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from runstead.model.errors import Unauthenticated
from runstead.services.accounts import digest
from runstead.web.addresses import check_same_origin, is_secure, safe_next
from runstead.web.forms import read_form
from runstead.web.sessions import LIFETIME_SECONDS
from runstead.web.visit import SEE_OTHER, Site, Visit

_UNAUTHORIZED = 401


async def show_login(site: Site, request: Request) -> Response:
    """Ask for a token."""
    return _login_page(site, safe_next(request.query_params.get("next")))


async def login(site: Site, request: Request) -> Response:
    """Open a session for whoever has a valid token."""
    context = site.context
    check_same_origin(request, context.public_url)
    form = await read_form(request)
    target = safe_next(form.get("next"))
    token = form.get("token", "").strip()
    try:
        await context.accounts.recognize(token or None)
    except Unauthenticated:
        return _login_page(site, target, "This token is not known here, has expired, or was revoked.")
    _, cookie = site.sessions.begin(digest(token), context.clock.now())
    response = RedirectResponse(target, SEE_OTHER)
    response.set_cookie(
        site.cookie_name(request),
        cookie,
        max_age=LIFETIME_SECONDS,
        secure=is_secure(request, context.public_url),
        httponly=True,
        samesite="lax",  # a link in a terminal, a mail or a chat leads to a page, not to the login
    )
    return response


async def show_logout(visit: Visit) -> Response:
    """Offer to sign out: a mere link must not do it."""
    return visit.page("logout.html")


async def logout(visit: Visit) -> Response:
    """Make the browser forget the session."""
    response = RedirectResponse("/login", SEE_OTHER)
    name = visit.site.cookie_name(visit.request)
    response.delete_cookie(name, secure=name.startswith("__Host-"), httponly=True, samesite="lax")
    return response


def _login_page(site: Site, target: str, problem: str | None = None) -> Response:
    values = {"next": target, "problem": problem, "visit": None}
    return site.templates.page("login.html", values, _UNAUTHORIZED if problem else 200)
