"""`localllm config`: the settings in force, where each comes from, and edits to the config file."""

from typing import Annotated, Any

import typer

from localllm.cli.human import with_sentences
from localllm.cli.invocation import Invocation
from localllm.cli.loading import starting
from localllm.cli.output import print_json, print_text, terminal_columns
from localllm.errors import UsageError
from localllm.settings import BY_NAME, SETTINGS, Setting, Settings, parse_value

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of a setting.", show_default=False, autocompletion=starting(BY_NAME)),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WithOrigin = Annotated[bool, typer.Option("--origin", help="Say where the value comes from.")]


def get(ctx: typer.Context, name: Name, as_json: AsJson = False, origin: WithOrigin = False) -> None:
    """Print the value of one setting."""
    settings = Invocation.of(ctx).settings()
    row = setting_named(name)
    if as_json:
        print_json(_as_dict(row, settings))
    else:
        suffix = f"    {settings.origin[row.name]}" if origin else ""
        print_text(_value_text(getattr(settings, row.name)) + suffix)


def list_all(ctx: typer.Context, as_json: AsJson = False, origin: WithOrigin = False) -> None:
    """List all settings and the values in force."""
    settings = Invocation.of(ctx).settings()
    if as_json:
        print_json([_as_dict(row, settings) | {"value": _masked(row, settings)} for row in SETTINGS])
    else:
        print_text(_list_table(settings, origin))


def set_value(
    name: Name, value: Annotated[str, typer.Argument(metavar="VALUE", help="Its new value.", show_default=False)]
) -> None:
    """Write one setting to the config file."""
    from localllm.cli.config_file import set_in_file  # reading needs no writer

    row = setting_named(name)
    set_in_file(_config_file(), row.name, parse_value(row, value))


def unset(name: Name) -> None:
    """Remove one setting from the config file."""
    from localllm.cli.config_file import unset_in_file  # reading needs no writer

    row = setting_named(name)
    if not unset_in_file(_config_file(), row.name):
        raise UsageError(f"{row.name} is not set in {_config_file()}", hint="see `localllm config list --origin`")


def setting_named(name: str) -> Setting:
    """The setting, also for `LOCALLLM_KEEP_ALIVE` and `keep-alive`; UsageError with the nearest name otherwise."""
    plain = name.lower().removeprefix("localllm_").replace("-", "_")
    if plain in BY_NAME:
        return BY_NAME[plain]
    from difflib import get_close_matches  # only for a mistake

    near = get_close_matches(plain, BY_NAME, n=1)
    hint = f"did you mean {near[0]}?" if near else "see `localllm config list`"
    raise UsageError(f"there is no setting named {name!r}", hint=hint)


def _config_file() -> Any:
    from localllm.settings import home_dir  # a broken config file must stay repairable: do not load it here

    return home_dir() / "config.toml"


def _as_dict(row: Setting, settings: Settings) -> dict[str, Any]:
    return {
        "name": row.name,
        "value": getattr(settings, row.name),
        "default": row.default,
        "origin": settings.origin[row.name],
        "environment": row.env,
        "help": row.help,
    }


def _list_table(settings: Settings, with_origin: bool) -> str:
    rows = [
        [row.name, _value_text(_masked(row, settings)), settings.origin[row.name] if with_origin else row.help]
        for row in SETTINGS
    ]
    return with_sentences([["NAME", "VALUE", "ORIGIN" if with_origin else "MEANING"], *rows], terminal_columns())


def _masked(row: Setting, settings: Settings) -> Any:
    """In lists, which people paste into reports, keys are counted only; `config get` shows them."""
    value = getattr(settings, row.name)
    if row.name != "api_keys" or not value:
        return value
    count = len([key for key in value.split(",") if key.strip()])
    return f"({count} hidden)"


def _value_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
