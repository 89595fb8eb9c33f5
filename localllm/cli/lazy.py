"""Typer commands that are imported when they are typed. `--help` of a group is printed from a table, without them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple, cast

import typer
import typer.core
import typer.main

DEFAULT = ""
"""The name, in a branch, of the command that is meant where the first word is none of the others."""
BARE: Mapping[str, str] = {"--think": "true"}
"""Options whose value may be left out, and what is meant then. A value needs its `=`: the next word is none."""
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}


class Leaf(NamedTuple):
    """One command: where its function is (`module:name` below localllm.cli), what it does, where help lists it.

    `takes_dashes`: an argument may be `-1`.
    """

    target: str
    help: str
    section: str = "Commands"
    is_hidden: bool = False
    takes_dashes: bool = False


class Branch(NamedTuple):
    """A command with commands below it."""

    help: str
    commands: Mapping[str, Leaf]
    section: str = "Commands"
    is_hidden: bool = False


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


class QuickCommand(typer.core.TyperCommand):
    """A command whose own `--help` costs nothing when it is not asked for."""

    def get_help_option(self, ctx: Any) -> Any:
        return _coerced_cheaply(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name: param for param in self.params for name in param.opts}
        try:
            return super().parse_args(ctx, _with_bare_values(args, own) if own.keys() & BARE.keys() else args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:  # a usage error that does not know its command: see `--help` of it
                vars(error).update(ctx=ctx, cmd=self)
            raise

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        # the default command of a branch has no name, and would leave two blanks
        formatter.write_usage(" ".join(ctx.command_path.split()), " ".join(self.collect_usage_pieces(ctx)))


def _with_bare_values(args: list[str], options: Mapping[str, Any]) -> list[str]:
    made: list[str] = []
    is_value = False  # of the option before it
    for place, arg in enumerate(args):
        if arg == "--" and not is_value:
            return made + args[place:]
        is_bare = arg in BARE and not is_value
        made.append(f"{arg}={BARE[arg]}" if is_bare else arg)
        is_value = not (is_value or is_bare) and arg in options and not getattr(options[arg], "is_flag", True)
    return made


class LazyGroup(typer.core.TyperGroup):
    """A group that prints its help from the table, without importing any command."""

    def get_help_option(self, ctx: Any) -> Any:
        return _coerced_cheaply(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        table = cast(LazyCommands, self.commands).table
        if args[:1] == ["help"] and not {"help", DEFAULT} & table.keys():  # as git and Ollama have it
            args = [*args[1:], "--help"]
        is_named = bool(args and args[0]) and args[0] in table
        if DEFAULT in table and not is_named and not (ctx.resilient_parsing and not args):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

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
    context_settings = {**CONTEXT_SETTINGS, "ignore_unknown_options": leaf.takes_dashes}
    app.command(name, cls=QuickCommand, context_settings=context_settings)(function)
    return _quick(typer.main.get_command(app))


def _build_group(name: str, branch: Branch) -> Any:
    app = lazy_typer(name, branch.help, no_args_is_help=True, add_completion=False)
    app.callback()(_nothing)
    return with_commands(app, branch.commands)


def _nothing() -> None:
    pass


def lazy_typer(name: str, text: str, **options: Any) -> typer.Typer:
    """An application for `with_commands`; `options` are typer's."""
    return typer.Typer(
        name=name, help=text, cls=LazyGroup, rich_markup_mode=None, context_settings=CONTEXT_SETTINGS, **options
    )


def with_commands(app: typer.Typer, table: Mapping[str, Leaf | Branch]) -> Any:
    """The application as a command whose commands are those of `table`."""
    group = _quick(typer.main.get_command(app))
    cast(Any, group).commands = LazyCommands(table)
    return group


class _PlainCoercion:
    """Texts and plain numbers without pydantic, which typer would load for every command; the rest is typer's."""

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        is_multiple = param.multiple or param.nargs == -1
        if value is None:
            return () if is_multiple else None
        if self._annotation in (str, int, float) and not is_multiple and param.min is None and param.max is None:
            with suppress(ValueError):  # typer finds the words for a wrong value
                return self._annotation(value)
        if self._annotation == list[str] and is_multiple and all(type(item) is str for item in value):
            return value
        param._runtime_param = None  # typer makes its own when it is asked now
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _quick(command: Any) -> Any:
    for param in command.params:
        _coerced_cheaply(param)
    return command


def _coerced_cheaply(param: Any) -> Any:
    # older versions of typer have no such field, and load no pydantic; some commands have no help option
    if getattr(param, "_runtime_param", param) is None:
        param._runtime_param = _PlainCoercion(param.type_descriptor.annotation)
    return param
