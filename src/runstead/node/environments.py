"""The environment of a job's command. What the launch says is always stronger than what we know."""

from runstead.node import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.request import Container, Request, View

_IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def plain(request: "Request", view: "View", venv: str, shared: str, own: str) -> dict[str, str]:
    """Return that of a job without namespaces, whose own files are in `own`."""
    first = {"HOME": f"{own}/home", "TMPDIR": f"{own}/tmp"}
    return {**first, **_on_machine(request, view, venv, shared, f"{venv}/bin:{view.path}")}


def isolated(request: "Request", view: "View", venv: str) -> dict[str, str]:
    """Return that of a job in namespaces over the machine's own system."""
    path = f"{venv}/bin:{places.HOME}/.local/bin:{places.PROGRAMS}:{view.path}"
    first = {"HOME": places.HOME, "USER": "root", "LOGNAME": "root"}
    return {**first, **_on_machine(request, view, venv, places.SHARED, path)}


def _on_machine(request: "Request", view: "View", venv: str, shared: str, path: str) -> dict[str, str]:
    return {
        "LANG": "C.UTF-8",
        **view.environment,
        **places.cache_environment(shared),
        "VIRTUAL_ENV": venv,
        "PATH": path,
        **request.environment,
    }


def contained(request: "Request", container: "Container") -> dict[str, str]:
    """Return that of a job from an image, except HOME: the image says whose it is."""
    return {
        "LANG": "C.UTF-8",
        "PATH": _IMAGE_PATH,
        "HOSTNAME": request.job_id,
        **places.cache_environment(places.SHARED),
        "UV_LINK_MODE": "copy",  # the cache is on another mount than the root: no hard links
        **container.passed,
        **container.environment,
        **request.environment,
    }
