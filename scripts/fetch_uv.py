"""Find uv, or fetch the pinned one with nothing but Python's standard library.

Tried in this order: the one fetched before, PATH, the checkout's environment, the configured package index, pip
(the interpreter's, or the wheel inside ensurepip), and pip as Debian and Ubuntu carry it in their archive. Whatever
comes must have a SHA-256 that requirements/uv.txt names.
"""

import base64
import configparser
import contextlib
import hashlib
import html.parser
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
OWN_BUNDLE = CACHE / "certificates.pem"
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class SetupError(Exception):
    """Something only the reader can put right; the message says how."""


def say(text: str) -> None:
    """Tell the reader what is being done."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def find_uv() -> Path:
    """Return a uv that runs: ours, the one on PATH, the environment's, else a freshly fetched one."""
    for candidate in (CACHE / "bin" / "uv", shutil.which("uv"), VENV / "bin" / "uv"):
        if candidate and runs(Path(candidate)):
            return Path(candidate)
    pinned = (REQUIREMENTS / "uv.txt").read_text()
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", pinned))
    with tempfile.TemporaryDirectory(prefix="runstead-setup-") as scratch:
        wheel = _fetch_wheel(pinned, hashes, Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() not in hashes:
            raise SetupError(f"{wheel.name} is not what requirements/uv.txt pins: its SHA-256 differs")
        return _unpack(wheel)


def runs(program: Path) -> bool:
    """Say whether the program starts at all."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _fetch_wheel(pinned: str, hashes: set[str], scratch: Path) -> Path:
    version = re.search(r"^uv==(\S+)", pinned, re.MULTILINE)
    assert version
    tried: list[str] = []
    for index in configured_indexes():
        say(f"fetching uv {version[1]} from the configured package index")
        try:
            return _from_index(index, version[1], hashes, scratch)
        except (OSError, LookupError) as error:
            tried.append(f"the configured package index: {error}")
    for describe, find in (("pip", _installed_pip), ("the distribution's pip", _debian_pip)):
        pip = find(scratch)
        if pip is None:
            tried.append(f"{describe}: there is none")
            continue
        say(f"fetching uv {version[1]} with {describe}")
        command = [*pip, "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--dest", str(scratch), "-r", str(REQUIREMENTS / "uv.txt")]
        authorities = certificates()  # said outright: a Debian pip looks at one fixed place, which may be empty
        done = subprocess.run(
            [*command, *(["--cert", authorities] if authorities else [])], capture_output=True, text=True
        )
        wheels = list(scratch.glob("uv-*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
        tried.append(f"{describe}: {(done.stderr.strip().splitlines() or ['no wheel came'])[-1]}")
    raise SetupError(
        "uv is needed and could not be fetched:\n  "
        + "\n  ".join(tried)
        + "\nInstall uv or pip, or name a package index in PIP_INDEX_URL, and run this again."
    )


def _unpack(wheel: Path) -> Path:
    target = CACHE / "bin"
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.fullmatch(r"uv-[^/]+\.data/scripts/uvx?", name):
                program = target / Path(name).name
                fresh = program.with_suffix(".new")
                fresh.write_bytes(archive.read(name))
                fresh.chmod(0o755)
                fresh.replace(program)
    if not runs(target / "uv"):
        raise SetupError(f"{target / 'uv'} does not run on this machine ({platform.platform()})")
    return target / "uv"


# uv from a package index, with nothing but the standard library


def configured_indexes() -> list[str]:
    """Return the package indexes that pip or uv are configured with, the main one first; none is built in here."""
    named = [os.environ.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")]
    extra = [os.environ.get(name, "") for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")]
    section = pip_configuration()
    named.append(section.get("index-url", ""))
    extra.append(section.get("extra-index-url", ""))
    words = " ".join([*named, *extra]).split()
    return list(dict.fromkeys(re.sub(r"^[\w.-]+=(?=\w+://)", "", word) for word in words))


def pip_configuration() -> dict[str, str]:
    """Return the [global] section of pip's configuration files, the later file winning."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", home / "pip" / "pip.conf"]
    if os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(os.environ["PIP_CONFIG_FILE"]))
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error):
        parser.read(files)
    return dict(parser["global"]) if parser.has_section("global") else {}


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _from_index(index: str, version: str, hashes: set[str], scratch: Path) -> Path:
    page_url = index.rstrip("/") + "/uv/"
    links = _Links()
    links.feed(_get(page_url).decode())
    for link in links.found:
        url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(page_url, link))
        name = urllib.parse.unquote(url.rpartition("/")[2])
        if name.startswith(f"uv-{version}-") and name.endswith(".whl") and _fits(name):
            content = _get(url)
            digest = hashlib.sha256(content).hexdigest()
            if fragment.startswith("sha256=") and fragment.removeprefix("sha256=") != digest:
                raise LookupError(f"{name} is damaged: its SHA-256 is not what the index says")
            if digest in hashes:
                (scratch / name).write_bytes(content)
                return scratch / name
    raise LookupError(f"it has no uv {version} for this machine")


def _fits(wheel: str) -> bool:
    tags = wheel.removesuffix(".whl").split("-")[-1]
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin":
        return "macosx" in tags and tags.endswith((machine, "universal2"))
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return libc in tags and tags.endswith(machine)


def _get(url: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        path = Path(urllib.parse.unquote(parts.path))
        return (path / "index.html" if path.is_dir() else path).read_bytes()
    if parts.scheme not in ("http", "https"):
        raise LookupError(f"an index of kind {parts.scheme!r} is not supported here")
    headers: dict[str, str] = {}
    if parts.username:
        words = (urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or ""))
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(words).encode()).decode()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - scheme checked above
    context = ssl.create_default_context(cafile=certificates())
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310
        return answer.read()


def certificates() -> str | None:
    """Return the file of certificate authorities that this machine is configured with, if any."""
    named = [os.environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    candidates = [*named, pip_configuration().get("cert"), *BUNDLES, str(OWN_BUNDLE)]
    return next((file for file in candidates if file and Path(file).is_file()), None)


# uv through pip: the interpreter's, or the one that a Debian carries in its archive


def _installed_pip(_scratch: Path) -> list[str] | None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    with contextlib.suppress(ImportError):
        import ensurepip

        for wheel in (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"):
            return [sys.executable, str(wheel / "pip")]
    return _pip_wheel(Path("/usr/share/python-wheels"))


def _pip_wheel(folder: Path) -> list[str] | None:
    wheels = sorted(folder.glob("pip-*.whl"))
    return [sys.executable, str(wheels[-1] / "pip")] if wheels else None


def _debian_pip(scratch: Path) -> list[str] | None:
    """Fetch Debian's own pip wheel with apt, which checks its signature, and install nothing; root is not needed."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return None
    packages = ["python3-pip-whl"] if certificates() else ["python3-pip-whl", "ca-certificates"]
    say("fetching " + " and ".join(packages) + " with apt, without installing")
    apt = scratch / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    quiet = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache={apt / 'cache'}"]
    own_lists = ["-o", f"Dir::State::lists={apt / 'lists'}"]
    if not _apt([*quiet, "download", *packages], apt) and not (
        _apt([*quiet, *own_lists, "update"], apt) and _apt([*quiet, *own_lists, "download", *packages], apt)
    ):
        return None
    for package in apt.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, apt / "root"], check=True)
    _adopt_certificates(apt / "root")
    return _pip_wheel(apt / "root" / "usr/share/python-wheels")


def _apt(command: list[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def _adopt_certificates(unpacked: Path) -> None:
    """Keep the certificate authorities a bare Debian lacks, for pip and uv of this and later calls."""
    authorities = sorted((unpacked / "usr/share/ca-certificates").rglob("*.crt"))
    if authorities and not certificates():
        OWN_BUNDLE.parent.mkdir(parents=True, exist_ok=True)
        OWN_BUNDLE.write_text("".join(file.read_text() for file in authorities))
