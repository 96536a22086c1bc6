"""Works out what jobs may see of this machine: its programs yes, its people's files no."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runstead.executors.resolving import network_files
from runstead.node import places
from runstead.node.request import View

# Never shown: private to the job instead, or none of its business.
_PRIVATE = {"root", "home", "tmp", "run", "dev", "proc", "sys", "boot", "lost+found", "workspace", "runstead"}
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A job works with this machine's own system and trusts what that trusts; uv alone would bring its own certificates.
_TRUST = {"UV_SYSTEM_CERTS": "true"}

_PIP_BY_UV = '''"""pip by way of uv, for machines whose Python has no pip."""
import os
import sys

os.execvp("uv", ["uv", "pip", *sys.argv[1:]])
'''


@dataclass(frozen=True, slots=True)
class Programs:
    """What of our own installation jobs get to use."""

    python: str  # the interpreter itself, not a link to it
    prefix: str  # where its installation lies
    uv: str | None
    uvx: str | None
    pip: tuple[str, ...]  # what has to lie in one directory for `import pip`; empty: uv stands in


def find_programs() -> Programs:
    """Find the interpreter, uv and pip."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    uv = _find_uv()
    uvx = Path(uv).with_name("uvx") if uv else None
    return Programs(
        python=python,
        prefix=sys.base_prefix,
        uv=uv,
        uvx=str(uvx) if uvx and uvx.exists() else None,
        pip=_find_pip(),
    )


def _find_uv() -> str | None:
    try:
        from uv import find_uv_bin

        return os.path.realpath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        return os.path.realpath(found) if found else None


def _find_pip() -> tuple[str, ...]:
    own = importlib.util.find_spec("pip")
    folders = [Path(own.origin).parent.parent] if own is not None and own.origin else []
    base = sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    for folder in [*folders, Path(base), Path(sys.base_prefix, "lib/python3/dist-packages")]:
        if (folder / "pip" / "__main__.py").exists():
            return (str(folder / "pip"), *(str(path) for path in folder.glob("pip-*.dist-info")))
    return ()


def prepare_tools(node: Path, programs: Programs) -> None:
    """Make the directories that jobs' PATH and .pth files point to where there is no view of their own."""
    tools = node / "tools"
    shutil.rmtree(tools / "pip", ignore_errors=True)
    (tools / "pip" / "pip").mkdir(parents=True, exist_ok=True)
    (tools / "bin").mkdir(exist_ok=True)
    (tools / "pip" / "pip" / "__init__.py").write_text("", encoding="utf-8")
    (tools / "pip" / "pip" / "__main__.py").write_text(_PIP_BY_UV, encoding="utf-8")
    if programs.pip:
        shutil.rmtree(tools / "pip" / "pip")
        for path in programs.pip:
            (tools / "pip" / Path(path).name).symlink_to(path)
    for name, path in (("uv", programs.uv), ("uvx", programs.uvx)):
        link = tools / "bin" / name
        link.unlink(missing_ok=True)
        if path:
            link.symlink_to(path)


def plain_view(node: Path, programs: Programs, environment: Mapping[str, str]) -> View:
    """Return the view of jobs that run without namespaces: the machine's own, with our tools first."""
    return View(
        trees=[],
        links=[],
        hidden=[],
        binds=[],
        files=[],
        sys=[],
        python=programs.python,
        python_version=sys.version.split()[0],
        pip_paths=[str(node / "tools" / "pip")],
        path=f"{node / 'tools' / 'bin'}:{os.environ.get('PATH', _SYSTEM_PATH)}",
        environment={**_TRUST, **environment},
    )


def isolated_view(
    data_dir: Path,
    programs: Programs,
    environment: Mapping[str, str],
    *,
    private_network: bool,
    gpus: bool,
) -> View:
    """Return the view of jobs in namespaces of their own."""
    trees, links = _top_level()
    hidden = [path for path in _secret_places(data_dir) if _inside(path, trees) and Path(path).is_dir()]
    covered = [*(f"/{name}" for name in _PRIVATE), *hidden]
    binds = [[path, path] for path in _wanted(programs, environment) if _inside(path, covered)]
    for name, source in (("uv", programs.uv), ("uvx", programs.uvx)):
        if source:
            binds.append([source, f"{places.PROGRAMS}/{name}"])
    tools = data_dir / "node" / "tools"
    pip = programs.pip or (str(tools / "pip" / "pip"),)
    binds.extend([path, f"{places.PIP}/{Path(path).name}"] for path in pip)
    return View(
        trees=trees,
        links=links,
        hidden=hidden,
        binds=binds,
        files=_replaceable(network_files(private_network)),
        sys=["/sys"] if gpus else ["/sys/devices/system"],
        python=programs.python,
        python_version=sys.version.split()[0],
        pip_paths=[places.PIP],
        path=_SYSTEM_PATH,
        environment={**_TRUST, **environment},
    )


def _top_level() -> tuple[list[str], list[list[str]]]:
    trees: list[str] = []
    links: list[list[str]] = []
    with os.scandir("/") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name in _PRIVATE:
                continue
            if entry.is_symlink():
                links.append([entry.path, str(Path(entry.path).readlink())])
            elif entry.is_dir():
                trees.append(entry.path)
    return trees, links


def _secret_places(data_dir: Path) -> list[str]:
    """Return the directories inside of shown trees that hold what is not for jobs."""
    own_home = str(Path.home().resolve())
    return list(dict.fromkeys([str(data_dir.resolve()), *([own_home] if own_home != "/" else [])]))


def _wanted(programs: Programs, environment: Mapping[str, str]) -> list[str]:
    """Return what jobs need even where it lies in a place that they do not see."""
    wanted = [programs.prefix]
    if not _inside(programs.python, [programs.prefix]):
        wanted.append(programs.python)
    wanted.extend(value for value in environment.values() if value.startswith("/") and Path(value).exists())
    return wanted


def _inside(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _replaceable(files: list[list[str]]) -> list[list[str]]:
    """Keep the files that can be shown to a job: in /etc only what is there; /run is its own and starts empty."""
    targets = [(os.path.realpath(path), text) for path, text in files]
    return [[path, text] for path, text in targets if Path(path).is_file() or _inside(path, ["/run"])]
