"""`localllm tui`: the terminal application, here or in a browser. Starts the daemon; leaving does not end it."""

import os
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from localllm.cli.config_file import set_in_file
from localllm.cli.connect import elsewhere, first_key, started_client
from localllm.cli.invocation import Invocation
from localllm.cli.output import print_text
from localllm.errors import LocalLLMError, UsageError

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.settings import Settings

Theme = Literal["dark", "light", "contrast", "mono"]
Screen = Literal["chat", "tokens", "dashboard", "models"]
SERVE_PORT = 11436


def tui(
    ctx: typer.Context,
    screen: Annotated[Screen, typer.Option(help="The screen that is shown first.")] = "chat",
    theme: Annotated[Theme | None, typer.Option(help="Colours; `config set theme` keeps them.")] = None,
    ascii: Annotated[bool, typer.Option("--ascii", help="Draw with plain signs, for consoles without others.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Offer it in a browser, to this machine only.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of --serve.")] = SERVE_PORT,
) -> None:
    """Open the terminal application: chat, tokens, pages and models."""
    invocation: Invocation = ctx.obj
    if serve:
        serve_application(invocation, screen, theme, port)
    else:
        open_application(invocation, screen, theme, is_ascii=ascii)


def open_application(
    invocation: Invocation, screen: Screen = "chat", theme: Theme | None = None, *, is_ascii: bool = False
) -> None:
    """Returns when the person leaves. UsageError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) and not os.environ.get("TEXTUAL_DRIVER"):
        raise UsageError("the application needs a terminal", hint="use `localllm run` in scripts and pipes")
    from localllm.tui.app import LocalApp  # textual: only when it is shown
    from localllm.tui.terminal import calm_collector, draws_wide

    settings = invocation.settings(theme=theme)
    if not invocation.may_color:
        os.environ["NO_COLOR"] = "1"
    app = LocalApp(
        _client(settings),
        home=settings.home,
        theme=settings.theme,
        default_model=settings.default_model,
        start=None if elsewhere(settings) else lambda: started_client(settings),
        log_path=None if elsewhere(settings) else settings.log_file,
        remember=_keeper(settings),
        keys=read_bindings(settings.bindings_file),
        is_ascii=is_ascii or os.environ.get("TERM") == "linux" or draws_wide(),
        first=screen,
    )
    calm_collector()
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def serve_application(invocation: Invocation, screen: Screen, theme: Theme | None, port: int) -> None:
    """Serves until it is interrupted. UsageError where textual-serve is not installed."""
    try:
        from localllm.tui.serving import LoopbackServer  # an extra
    except ImportError:
        hint = "install it with `pip install 'localllm[web]'`"
        raise UsageError("--serve needs textual-serve, which is not installed", hint=hint) from None
    settings = invocation.settings(theme=theme)
    _client(settings)  # what cannot start says so here, and not in a browser
    command = [sys.executable, "-m", "localllm", "tui", "--screen", screen, "--theme", settings.theme]
    if invocation.host:
        command[3:3] = ["--host", invocation.host]
    LoopbackServer(shlex.join(command), port, print_text).serve()


def _client(settings: "Settings") -> "Client":
    """A daemon that does not answer is no reason not to open: the banner says so. One that cannot start is."""
    try:
        return started_client(settings)
    except LocalLLMError:
        if (url := elsewhere(settings)) is None:
            raise
        from localllm.client import Client  # as the others that talk to a daemon

        return Client(url, first_key(settings))


def _keeper(settings: "Settings") -> Callable[[str, str], None]:
    return lambda name, value: set_in_file(settings.config_file, name, value)


def read_bindings(path: Path) -> dict[str, str]:
    """Keys by the ids of bindings. UsageError for a file that is none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="correct it or remove it") from None
    if wrong := [name for name, keys in table.items() if not isinstance(keys, str)]:
        raise UsageError(f'{path}: {wrong[0]} must be a text, such as "ctrl+s"', hint="see docs/tui.md for the ids")
    return table
