"""`cove up`: become the server."""

from __future__ import annotations

import os
import sys

import click

from cove.cli.options import Options, command


@command(name="up")
@click.option("--listen", metavar="HOST:PORT", help="Where to serve [127.0.0.1:7070].")
@click.option("--domain", metavar="DOMAIN", help="Functions are at NAME.DOMAIN [localhost].")
@click.option(
    "--driver",
    type=click.Choice(["auto", "oci", "process"]),
    help="How functions are isolated [auto: the best that this machine can].",
)
@click.option(
    "--keep-instances",
    is_flag=True,
    help="When stopped, leave instances with sessions running, for the next `cove up`.",
)
def up(
    options: Options,
    listen: str | None,
    domain: str | None,
    driver: str | None,
    keep_instances: bool,
) -> None:
    """Start the server, in the foreground."""
    given = {
        "--data": str(options.location().data),
        "--listen": listen,
        "--domain": domain,
        "--driver": driver,
    }
    argv = [sys.executable, "-m", "cove.server"]
    for name, value in given.items():
        argv += [name, value] if value else []
    argv += ["--keep-instances"] * keep_instances
    # This process becomes the server: a supervisor that stops `cove up` stops the server itself.
    os.execv(sys.executable, argv + ["--json"] * options.json)  # noqa: S606
