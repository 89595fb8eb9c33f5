"""The command line: one table of commands, each imported only when it is typed. Rich and the models stay unloaded."""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple, cast

import typer
import typer.core
import typer.main

from localllm.cli.failures import run_guarded
from localllm.cli.invocation import Invocation

SUMMARY = "Pull a model, run it fast on what you own, and see inside while it runs."
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}


class Leaf(NamedTuple):
    """One command: where its function is (`module:name` below localllm.cli), what it does, where help lists it."""

    target: str
    help: str
    section: str = "Commands"
    is_hidden: bool = False


class Branch(NamedTuple):
    """A command with commands below it."""

    help: str
    commands: Mapping[str, Leaf]
    section: str = "Commands"
    is_hidden: bool = False


CONFIG = Branch(
    "Read and change settings.",
    {
        "get": Leaf("config:get", "Print the value of one setting."),
        "set": Leaf("config:set_value", "Write one setting to the config file."),
        "unset": Leaf("config:unset", "Remove one setting from the config file."),
        "list": Leaf("config:list_all", "List all settings and the values in force."),
    },
    "Setup",
)
DAEMON = Branch(
    "Start, stop and inspect the background daemon.",
    {
        "start": Leaf("daemon:start", "Start the daemon if none runs."),
        "stop": Leaf("daemon:stop", "Stop the daemon; answers under way may finish."),
        "restart": Leaf("daemon:restart", "Stop the daemon and start a new one."),
        "status": Leaf("daemon:status", "Say whether the daemon runs, and where."),
        "logs": Leaf("daemon:logs", "Print the end of the daemon's log."),
    },
    "Daemon",
)
EVAL = Branch(
    "Measure a model's quality.",
    {"ppl": Leaf("evaluate:ppl", "Measure the perplexity of a text, by llama.cpp's method.")},
    "Inside",
)
COMMANDS: Mapping[str, Leaf | Branch] = {
    "run": Leaf("run:run", "Ask a model, or talk to it when no prompt is given.", "Talk"),
    "chat": Leaf("run:chat", "Talk to the default model.", "Talk"),
    "pull": Leaf("pull:pull", "Download a model.", "Models"),
    "list": Leaf("library:list_models", "List the models on this machine.", "Models"),
    "ls": Leaf("library:list_models", "List the models on this machine.", "Models", True),
    "show": Leaf("show:show", "Show what a model is: size, template, parameters, licence.", "Models"),
    "search": Leaf("catalog:search", "Search the catalog and the hub.", "Models"),
    "outdated": Leaf("catalog:outdated", "List the models whose source has a newer version.", "Models"),
    "update": Leaf("catalog:update", "Pull newer versions of models.", "Models"),
    "create": Leaf("create:create", "Make a model from a Modelfile.", "Models"),
    "cp": Leaf("library:copy", "Give a model a second name.", "Models"),
    "rm": Leaf("library:remove", "Remove models.", "Models"),
    "where": Leaf("library:where", "Print the path of a model's file.", "Models"),
    "verify": Leaf("library:verify", "Check model files against their checksums.", "Models"),
    "serve": Leaf("daemon:serve", "Run the daemon in the foreground.", "Daemon"),
    "daemon": DAEMON,
    "ps": Leaf("loaded:ps", "List the models that are loaded.", "Daemon"),
    "stop": Leaf("loaded:stop", "Unload a model.", "Daemon"),
    "tokenize": Leaf("tokenize:tokenize", "Show how a model splits a text into tokens.", "Inside"),
    "eval": EVAL,
    "config": CONFIG,
    "doctor": Leaf("doctor:doctor", "Check this machine and say what would run, and why.", "Setup"),
    "version": Leaf("version:version", "Print the version of this program and of the daemon.", "Setup"),
}


class LazyCommands(Mapping[str, Any]):
    """Looks like a dictionary of typer commands; builds a command when it is looked up."""

    def __init__(self, table: Mapping[str, Leaf | Branch]) -> None:
        self.table = table

    def __getitem__(self, name: str) -> Any:
        entry = self.table[name]
        return _build_group(name, entry) if isinstance(entry, Branch) else _build_command(name, entry)

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self.table.items() if not entry.is_hidden)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class LazyGroup(typer.core.TyperGroup):
    """A group that prints its help from the table, without importing any command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        table = cast(LazyCommands, self.commands).table
        visible = {name: entry for name, entry in table.items() if not entry.is_hidden}
        for section in dict.fromkeys(entry.section for entry in visible.values()):
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in visible.items() if entry.section == section])


def _build_command(name: str, leaf: Leaf) -> Any:
    module_name, _, function_name = leaf.target.partition(":")
    function = getattr(import_module(f"localllm.cli.{module_name}"), function_name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT_SETTINGS)
    app.command(name, context_settings=CONTEXT_SETTINGS)(function)
    return typer.main.get_command(app)


def _build_group(name: str, branch: Branch) -> Any:
    app = _lazy_typer(name, branch.help, no_args_is_help=True, add_completion=False)
    app.callback()(_nothing)
    return _with_commands(app, branch.commands)


def _nothing() -> None:
    pass


def _lazy_typer(name: str, text: str, **options: Any) -> typer.Typer:
    return typer.Typer(
        name=name, help=text, cls=LazyGroup, rich_markup_mode=None, context_settings=CONTEXT_SETTINGS, **options
    )


def _with_commands(app: typer.Typer, table: Mapping[str, Leaf | Branch]) -> Any:
    group = typer.main.get_command(app)
    cast(Any, group).commands = LazyCommands(table)
    return group


def root(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address of the daemon to talk to, as host:port.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
    version: Annotated[bool, typer.Option("--version", "-v", help="Print the version and leave.")] = False,
) -> None:
    ctx.obj = Invocation(host=host, is_offline=offline, is_quiet=quiet, may_color=not no_color)
    if version:
        from localllm.cli.version import print_version  # asked for: worth its imports

        print_version(ctx.obj.settings())
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")


def build_app() -> Any:
    """The whole command line as one typer command; calling it with `args` runs it and raises SystemExit."""
    app = _lazy_typer("localllm", SUMMARY, invoke_without_command=True, add_completion=True)
    app.callback(invoke_without_command=True)(root)
    return _with_commands(app, COMMANDS)


def main() -> None:
    """Entry point of the `localllm` script. Ends the process with one of the exit codes of errors.py."""
    sys.exit(run_guarded(lambda: build_app()(args=sys.argv[1:], prog_name="localllm")))
