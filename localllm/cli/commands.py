"""The command line: one table of commands, and the global flags."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from localllm.cli.invocation import Invocation
from localllm.cli.lazy import DEFAULT, Branch, Leaf, lazy_typer, with_commands

SUMMARY = "Pull a model, run it fast on what you own, and see inside while it runs."


CONFIG = Branch(
    "Read and change settings.",
    {
        "get": Leaf("config:get", "Print the value of one setting."),
        "set": Leaf("config:set_value", "Write one setting to the config file.", takes_dashes=True),
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
KEYS = Branch(
    "Manage the API keys that clients of the daemon send.",
    {
        "create": Leaf("keys:create", "Make an API key and show it, once."),
        "list": Leaf("keys:list_keys", "List the keys by name."),
        "revoke": Leaf("keys:revoke", "Make a key worthless, at once."),
    },
    "Daemon",
)
EVAL = Branch(
    "Measure a model's quality.",
    {
        "ppl": Leaf("evaluate:ppl", "Measure the perplexity of a text, by llama.cpp's method."),
        "kl": Leaf("evaluate:kl", "Measure how far a model is from the one that it was made from."),
    },
    "Inside",
)
BENCH = Branch(
    "Measure how fast a model runs here.",
    {
        DEFAULT: Leaf("bench:bench", "Measure how fast a model reads and writes, in this process.", is_hidden=True),
        "serve": Leaf("bench_serve:serve", "Measure how a server bears several clients."),
    },
    "Inside",
)
BATCH = Branch(
    "Answer many requests from a file.",
    {"run": Leaf("batch:run", "Answer the requests of a file.")},
    "Talk",
)
CHATS = Branch(
    "List, search, export and remove kept chats.",
    {
        "list": Leaf("chats:list_chats", "List the chats that are kept, the one used last first."),
        "search": Leaf("chats:search", "List the chats in which these words were said."),
        "export": Leaf("chats:export", "Write a chat as Markdown, JSON or HTML."),
        "import": Leaf("chats:import_chats", "Keep chats that were exported as JSON."),
        "rename": Leaf("chats:rename", "Give a chat another title."),
        "rm": Leaf("chats:remove", "Remove chats."),
    },
    "Talk",
)
COMMANDS: Mapping[str, Leaf | Branch] = {
    "run": Leaf("run:run", "Ask a model, or talk to it when no prompt is given.", "Talk"),
    "chat": Leaf("chat:chat", "Talk to the default model.", "Talk"),
    "chats": CHATS,
    "tui": Leaf("tui:tui", "Open the terminal application: chat, tokens, pages and models.", "Talk"),
    "batch": BATCH,
    "pull": Leaf("pull:pull", "Download a model.", "Models"),
    "list": Leaf("library:list_models", "List the models on this machine.", "Models"),
    "ls": Leaf("library:list_models", "List the models on this machine.", "Models", True),
    "show": Leaf("show:show", "Show what a model is: size, template, parameters, licence.", "Models"),
    "search": Leaf("catalog:search", "Search the catalog and the hub.", "Models"),
    "outdated": Leaf("catalog:outdated", "List the models whose source has a newer version.", "Models"),
    "update": Leaf("catalog:update", "Pull newer versions of models.", "Models"),
    "create": Leaf("create:create", "Make a model from a Modelfile.", "Models"),
    "convert": Leaf("convert:convert", "Write a model in safetensors as one GGUF file.", "Models"),
    "quantize": Leaf("quantize:quantize", "Write a model in fewer bits, and say what that costs.", "Models"),
    "imatrix": Leaf("imatrix:imatrix", "Find out on a text which columns of a model's weights count.", "Models"),
    "cp": Leaf("library:copy", "Give a model a second name.", "Models"),
    "rm": Leaf("library:remove", "Remove models.", "Models"),
    "where": Leaf("library:where", "Print the path of a model's file.", "Models"),
    "fit": Leaf("fit:fit", "Say whether a model has room on this machine.", "Models"),
    "verify": Leaf("library:verify", "Check model files against their checksums.", "Models"),
    "serve": Leaf("daemon:serve", "Run the daemon in the foreground.", "Daemon"),
    "daemon": DAEMON,
    "ps": Leaf("loaded:ps", "List the models that are loaded.", "Daemon"),
    "stop": Leaf("loaded:stop", "Unload a model.", "Daemon"),
    "cancel": Leaf("requests:cancel", "End a request that is under way.", "Daemon"),
    "keys": KEYS,
    "tokenize": Leaf("tokenize:tokenize", "Show how a model splits a text into tokens.", "Inside"),
    "embed": Leaf("embed:embed", "Turn texts into vectors.", "Inside"),
    "attention": Leaf("attention:attention", "Show which tokens each token of a text looks at.", "Inside"),
    "eval": EVAL,
    "bench": BENCH,
    "config": CONFIG,
    "doctor": Leaf("doctor:doctor", "Check this machine and say what would run, and why.", "Setup"),
    "version": Leaf("version:version", "Print the version of this program and of the daemon.", "Setup"),
}


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
    if ctx.invoked_subcommand is None and sys.stdin.isatty() and sys.stdout.isatty():
        from localllm.cli.tui import open_application  # textual

        open_application(ctx.obj)
    elif ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")


def build_app() -> Any:
    """The whole command line as one typer command; calling it with `args` runs it and raises SystemExit."""
    app = lazy_typer("localllm", SUMMARY, invoke_without_command=True, add_completion=True)
    app.callback(invoke_without_command=True)(root)
    return with_commands(app, COMMANDS)
