"""`localllm tokenize`: tokens as people read them and as programs do; one tokenizer or several, step by step, in a
template. No daemon, no weights."""

import json
from pathlib import Path

import pytest

from localllm.cli.tokenize_views import Look, compared, listed
from localllm.tokens.explainer import Explainer, explanation
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon
from tests.tokens import trained
from tests.tokens.worlds import tiny

GOLDEN = Path(__file__).with_name("help_tokenize.txt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tokenizers of two kinds, in folders of their own."""
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "home"))
    for name, tokenizer in (("word", trained.wordpiece()), ("uni", trained.unigram())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(tokenizer.built.core.to_str(), encoding="utf-8")
    return tmp_path


def test_the_help_is_the_recorded_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli("tokenize", "--help").out == GOLDEN.read_text()


def test_each_token_has_a_row_and_the_counts_follow(cli: Cli, folder: Path) -> None:
    outcome = cli("tokenize", str(folder / "word"), "the cat")
    assert outcome.code == 0
    head, first, second, _, counts = outcome.out.splitlines()
    assert head.split() == ["ID", "PIECE", "CHARACTERS", "BYTES"]
    assert first.split()[1:3] == ["·the", "0-3"] and second.split()[1:3] == ["·cat", "3-7"]
    assert counts == "2 tokens, 3.5 characters each; 7 characters, 7 bytes; WordPiece"


def test_json_has_all_that_the_rows_have(cli: Cli, folder: Path) -> None:
    told = json.loads(cli("tokenize", str(folder / "word"), "-", "--json", stdin="the cat").out)
    assert (told["count"], told["characters"], told["bytes"], told["kind"]) == (2, 7, 7, "WordPiece")
    assert told["spans"] == [[0, 3], [3, 7]] and len(told["tokens"]) == len(told["pieces"]) == 2
    assert bytes.fromhex(told["hex"][1]) == b" cat" and told["characters_per_token"] == 3.5


def test_several_tokenizers_are_shown_side_by_side(cli: Cli, folder: Path) -> None:
    outcome = cli("tokenize", str(folder / "word"), "the cat sat", "--model", str(folder / "uni"), "--no-special")
    assert outcome.code == 0 and "fewest" in outcome.out and "cuts are made by all of them" in outcome.out
    told = json.loads(cli("tokenize", str(folder / "word"), "the cat", "-m", str(folder / "uni"), "--json").out)
    assert [row["kind"] for row in told["tokenizers"]] == ["WordPiece", "Unigram"]
    assert told["agreed_cuts"] >= 1
    outcome = cli("tokenize", "a", "text", *["-m", "b"] * 4)
    assert outcome.code == 2 and "side by side" in outcome.err


@pytest.mark.parametrize(("name", "mark"), [("word", "·the"), ("uni", "best sum")])
def test_each_word_is_shown_step_by_step(cli: Cli, folder: Path, name: str, mark: str) -> None:
    outcome = cli("tokenize", str(folder / name), "the catalog", "--merges")
    assert outcome.code == 0 and outcome.out.count("  = ") == 2
    told = json.loads(cli("tokenize", str(folder / name), "the catalog", "--merges", "--json").out)
    assert [trace["start"] for trace in told] in ([0, 4], [0, 3])
    assert mark in outcome.out or told[0]["matches"]


def test_a_text_is_shown_in_a_template(cli: Cli, folder: Path) -> None:
    outcome = cli("tokenize", str(folder / "uni"), "the cat", "--template")
    assert outcome.code == 0 and "no chat template" in outcome.out
    told = json.loads(cli("tokenize", str(folder / "uni"), "the cat", "--template", "--json").out)
    assert "".join(part["text"] for part in told[0]["parts"]) == "user: the cat\nassistant:"


def test_tokenizers_without_a_model_are_listed_and_say_how_to_get_them(
    cli: Cli, folder: Path, daemon: FakeDaemon
) -> None:
    assert "gpt-4o" in cli("tokenize", "--list").out
    rows = {row["name"]: row for row in json.loads(cli("tokenize", "--list", "--json").out)}
    assert rows["bert"]["kind"] == "WordPiece" and not rows["bert"]["is_here"]
    outcome = cli("tokenize", "gpt-4o", "text")
    assert outcome.code != 0 and "localllm pull gpt-4o" in outcome.err
    outcome = cli("run", "gpt-4o", "hello")
    assert outcome.code == 4 and not daemon.bodies("/v1/chat/completions"), "a tokenizer alone answers nothing"


def test_without_a_text_it_says_what_is_missing(cli: Cli) -> None:
    outcome = cli("tokenize", "gpt-4o")
    assert outcome.code == 2 and "name a model and a text" in outcome.err


def test_what_is_in_a_text_reaches_no_terminal_as_it_is(cli: Cli, folder: Path) -> None:
    outcome = cli("tokenize", str(folder / "uni"), "\x1b[31mred\u202e", "--merges")
    assert "\x1b" not in outcome.out and "\u202e" not in outcome.out


def test_colours_go_to_terminals_only() -> None:
    found = explanation([Explainer(tiny(), "tiny")], "hello w", add_special=False, parse_special=False, most=9)
    assert "\x1b" not in listed(found, Look(False)) and "\x1b[38;2;" in listed(found, Look(True))
    both = explanation(
        [Explainer(tiny(), "a"), Explainer(tiny(), "b")], "hello w", add_special=False, parse_special=False, most=9
    )
    assert "hello|·w" in compared(both, Look(False)) and "\x1b[0m" in compared(both, Look(True))
