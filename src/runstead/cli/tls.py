"""`runstead tls`: the certificates that this server makes."""

import typer

from runstead.cli.options import Config, DataDir, settings_at

app = typer.Typer(help="Show what clients need for https.", no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Keep `ca` a command of its own also while it is the only one."""


@app.command()
def ca(config: Config = None, data_dir: DataDir = None) -> None:
    """Print the file with the certificate of this server's own authority; it is made if it is not there.

    Clients trust the server with it: `SSL_CERT_FILE=$(runstead tls ca)` for Python, `curl --cacert`. The server uses
    it with `proxy.tls = "own"`.
    """
    from runstead.kit.clock import SystemClock
    from runstead.proxy.certificates import OwnCertificates

    settings = settings_at(config, data_dir)
    print(OwnCertificates(settings.server.data_dir / "tls", SystemClock()).ensure_authority())
