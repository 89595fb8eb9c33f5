"""The help, word for word, and the promise that asking for it loads nothing."""

from pathlib import Path

import pytest

from localllm.cli.commands import COMMANDS
from localllm.cli.lazy import Branch, LazyCommands, Leaf
from tests.cli.conftest import Cli, in_new_process

GOLDEN = Path(__file__).with_name("help.txt")
HEAVY = (
    "torch",
    "transformers",
    "mlx",
    "textual",
    "fastapi",
    "uvicorn",
    "httpx",
    "numpy",
    "huggingface_hub",
    "rich",
    "pydantic",
)
WHICH = f"import sys\nsys.stderr.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
AFTER_MAIN = f"from localllm.cli.app import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n{WHICH}"

LEAVES = {
    **{name: leaf for name, leaf in COMMANDS.items() if isinstance(leaf, Leaf)},
    **{
        f"{a} {b}": leaf
        for a, entry in COMMANDS.items()
        if isinstance(entry, Branch)
        for b, leaf in entry.commands.items()
    },
}


def test_the_help_is_the_recorded_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli("--help").out == GOLDEN.read_text()


def test_the_bare_command_prints_the_help(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli()
    assert (outcome.code, outcome.out) == (0, GOLDEN.read_text())


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_command_exists_and_begins_its_help_as_the_table_says(cli: Cli, name: str) -> None:
    outcome = cli(*name.split(), "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert LEAVES[name].help.rstrip(".") in text


def test_hidden_names_work_but_are_not_listed() -> None:
    commands = LazyCommands(COMMANDS)
    assert "ls" not in list(commands) and commands["ls"] is not None


@pytest.mark.parametrize("line", ["--help", "list", "config list", "list --json", "--version"])
def test_quick_commands_load_nothing_heavy(line: str) -> None:
    outcome = in_new_process(*line.split(), code=AFTER_MAIN)
    assert outcome.out and outcome.err == ""


def test_numbers_and_texts_are_converted_as_typer_would(cli: Cli) -> None:
    wrong = cli("run", "tiny", "hi", "--seed", "many")
    assert wrong.code == 2 and "--seed" in wrong.err and "integer" in wrong.err
    out_of_range = cli("serve", "--port", "70000")
    assert out_of_range.code == 2 and "--port" in out_of_range.err


def test_the_client_loads_nothing_heavy() -> None:
    assert in_new_process(code=f"import localllm.client\n{WHICH}").err == ""
