"""`create -f Modelfile` and `/save`: models of one's own, made of what is here."""

import json
from pathlib import Path

import pytest

from localllm.cli.conversation import Conversation
from localllm.cli.saving import save_conversation
from localllm.settings import load_settings
from tests.cli.conftest import Cli
from tests.store.worlds import tiny_gguf

MODELFILE = 'FROM ./base.gguf\nPARAMETER temperature 0.2\nPARAMETER mirostat 1\nSYSTEM """Be\nbrief."""\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_gguf(tmp_path / "base.gguf")
    (tmp_path / "Modelfile").write_text(MODELFILE)
    return tmp_path


def test_paths_are_relative_to_the_modelfile_and_ignored_parameters_are_said(cli: Cli, folder: Path) -> None:
    outcome = cli("create", "mine", "-f", str(folder / "Modelfile"))
    assert (outcome.code, outcome.out) == (0, "created 'mine:latest'\n")
    assert outcome.err.startswith("Warning: ") and "mirostat" in outcome.err
    shown = json.loads(cli("show", "mine", "--json").out)
    assert shown["system"] == "Be\nbrief." and shown["params"] == {"temperature": 0.2}
    assert shown["path"] == str(folder / "base.gguf")


def test_a_modelfile_may_come_through_a_pipe(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert cli("create", "mine", "-f", "-", stdin="FROM ./base.gguf\n").code == 0


def test_what_show_prints_makes_the_same_model_again(cli: Cli, folder: Path) -> None:
    cli("create", "mine", "-f", str(folder / "Modelfile"))
    printed = cli("show", "mine", "--modelfile").out
    assert cli("create", "again", "-f", "-", stdin=printed).code == 0
    first, second = (json.loads(cli("show", name, "--json").out) for name in ("mine", "again"))
    for field in ("system", "params", "template", "messages", "path", "license"):
        assert first[field] == second[field], field


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no FROM line"),
        ("FRUM x\n", "(line 1): command must be one of"),
        ("FROM x\nMESSAGE judge hi\n", "(line 2): message role must be one of"),
    ],
)
def test_a_wrong_modelfile_names_the_line(cli: Cli, text: str, complaint: str) -> None:
    outcome = cli("create", "mine", "-f", "-", stdin=text)
    assert outcome.code == 2 and complaint in outcome.err


def test_a_missing_modelfile_is_a_sentence(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("create", "mine", "-f", str(tmp_path / "absent"))
    assert outcome.code == 2 and "cannot be read: no such file or directory" in outcome.err


def test_a_saved_conversation_is_a_model_with_its_messages(cli: Cli, folder: Path) -> None:
    cli("create", "mine", "-f", str(folder / "Modelfile"))
    conversation = Conversation("mine", "Be kind.", parameters={"seed": 7, "stop": ["a", "b"]})
    conversation.say("user", 'He said """hi"""\nand left')
    conversation.say("assistant", "Good.")
    save_conversation(load_settings(), conversation, "talk")
    shown = json.loads(cli("show", "talk", "--json").out)
    assert shown["system"] == "Be kind." and shown["messages"] == conversation.messages
    assert shown["params"] == {"temperature": 0.2, "seed": 7, "stop": ["a", "b"]}
