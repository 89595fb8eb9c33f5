"""`localllm version`: this program's version, and a word when the daemon is of another one."""

from typing import Annotated

import typer

from localllm import __version__
from localllm.cli.connect import running_client
from localllm.cli.failures import print_warning
from localllm.cli.invocation import Invocation
from localllm.cli.output import print_json, print_text
from localllm.errors import LocalLLMError
from localllm.settings import Settings


def version(ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the version of this program and of the daemon."""
    settings = Invocation.of(ctx).settings()
    if as_json:
        print_json({"version": __version__, "daemon_version": daemon_version(settings) or None})
    else:
        print_version(settings)


def print_version(settings: Settings) -> None:
    print_text(f"localllm version is {__version__}")
    other = daemon_version(settings)
    if other and other != __version__:
        print_warning(f"the daemon that runs has version {other}; restart it with `localllm daemon restart`")


def daemon_version(settings: Settings) -> str:
    """Version of the running daemon; empty when none runs or it does not answer."""
    try:
        client = running_client(settings)
        return client.health().version if client else ""
    except LocalLLMError:
        return ""
