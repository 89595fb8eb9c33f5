"""The commands on the store: tables as Ollama prints them, JSON that stays the same, and no daemon anywhere."""

import json
import re
import time
from pathlib import Path

import pytest

from localllm.cli.library import complete_name
from localllm.cli.show import info_text
from localllm.settings import load_settings
from localllm.store.entry import Entry, ModelFile
from localllm.store.manifests import Manifests
from localllm.store.names import parse_ref
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

DAY_S = 86400


def entry(tmp_path: Path, name: str, age_days: float = 0.0) -> Entry:
    path = tmp_path / f"{name.replace(':', '-')}.gguf"
    path.write_bytes(b"GGUF" + bytes(96))
    return Entry(
        name=name,
        path=str(path),
        source="path",
        files=(ModelFile(path=str(path), size_bytes=100),),
        digest="500a1f067a9f" + "0" * 52,
        size_bytes=5_200_000_000,
        modified=time.time() - age_days * DAY_S - 1,
        architecture="qwen3",
        parameters="8.2B",
        quantization="Q4_K_M",
        context_length=40960,
        embedding_length=4096,
        capabilities=("completion", "tools"),
        params={"top_k": 20, "stop": ["<|im_start|>", "<|im_end|>"]},
        template="{{ messages }}",
        system="Be brief.",
        license="Apache License\nVersion 2.0\n\nTerms",
        messages=({"role": "user", "content": "hi"},),
    )


@pytest.fixture
def store(tmp_path: Path) -> list[Entry]:
    entries = [entry(tmp_path, "qwen3:8b", 14), entry(tmp_path, "new:latest", 3)]
    manifests = Manifests(load_settings().store_dir)
    return [manifests.put(parse_ref(each.name), each) for each in entries]


def test_the_list_is_ollamas_table_newest_first(cli: Cli, store: list[Entry]) -> None:
    old, new = (each.digest[:12] for each in store)
    assert cli("list").out == (
        "NAME          ID              SIZE      MODIFIED       \n"
        f"new:latest    {new}    5.2 GB    3 days ago     \n"
        f"qwen3:8b      {old}    5.2 GB    2 weeks ago    \n"
    )


def test_ls_takes_a_prefix_in_any_case_and_quiet_prints_names(cli: Cli, store: list[Entry]) -> None:
    assert cli("ls", "QWEN", "-q").out == "qwen3:8b\n"
    assert cli("list", "-q").out == "new:latest\nqwen3:8b\n"


def test_the_tab_key_offers_the_names_of_models(store: list[Entry]) -> None:
    assert complete_name("q") == ["qwen3:8b"]


def test_an_empty_store_is_an_empty_table_and_an_empty_list(cli: Cli) -> None:
    assert cli("list").out.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert json.loads(cli("list", "--json").out) == []


def test_the_json_of_a_model_has_these_fields(cli: Cli, store: list[Entry]) -> None:
    (found,) = json.loads(cli("list", "qwen", "--json").out)
    assert {key: value for key, value in found.items() if key not in ("modified", "path", "digest")} == {
        "name": "qwen3:8b",
        "size_bytes": 5_200_000_000,
        "source": "path",
        "architecture": "qwen3",
        "parameters": "8.2B",
        "quantization": "Q4_K_M",
        "context_length": 40960,
        "embedding_length": 4096,
        "capabilities": ["completion", "tools"],
        "license": "Apache License",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["modified"])


def test_show_has_ollamas_sections(store: list[Entry]) -> None:
    assert info_text(store[0]) == (
        "  Model\n"
        "    architecture        qwen3\n"
        "    parameters          8.2B\n"
        "    context length      40960\n"
        "    embedding length    4096\n"
        "    quantization        Q4_K_M\n"
        "\n"
        "  Capabilities\n"
        "    completion\n"
        "    tools\n"
        "\n"
        "  Parameters\n"
        "    top_k    20\n"
        '    stop     "<|im_start|>"\n'
        '    stop     "<|im_end|>"\n'
        "\n"
        "  System\n"
        "    Be brief.\n"
        "\n"
        "  License\n"
        "    Apache License\n"
        "    Version 2.0\n"
        "    ...\n"
        "\n"
    )


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("--system", "Be brief.\n"),
        ("--template", "{{ messages }}\n"),
        ("--license", "Apache License\nVersion 2.0\n\nTerms\n"),
        ("--parameters", 'top_k    20\nstop     "<|im_start|>"\nstop     "<|im_end|>"\n'),
    ],
)
def test_show_prints_one_part(cli: Cli, store: list[Entry], part: str, shown: str) -> None:
    assert cli("show", "qwen3:8b", part).out == shown


def test_two_parts_at_once_are_refused_in_ollamas_words(cli: Cli, store: list[Entry]) -> None:
    outcome = cli("show", "qwen3:8b", "--license", "--system")
    assert outcome.code == 2
    expected = "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified"
    assert expected in outcome.err


def test_a_modelfile_that_is_shown_makes_the_same_model_again(
    cli: Cli, store: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localllm.store.modelfile import parse_modelfile

    modelfile = parse_modelfile(cli("show", "qwen3:8b", "--modelfile").out)
    assert modelfile.system == "Be brief." and modelfile.params == store[0].params
    assert modelfile.from_ == (store[0].path,) and modelfile.messages == store[0].messages


def test_where_prints_the_path_alone(cli: Cli, store: list[Entry]) -> None:
    assert cli("where", "qwen3:8b").out == store[0].path + "\n"
    assert json.loads(cli("where", "qwen3:8b", "--json").out)["files"] == [store[0].path]


def test_a_copy_and_a_removal_say_what_they_did(cli: Cli, store: list[Entry], no_daemon: None) -> None:
    assert cli("cp", "qwen3:8b", "mine").out == "copied 'qwen3:8b' to 'mine'\n"
    assert cli("rm", "mine", "qwen3:8b").out == "deleted 'mine:latest'\ndeleted 'qwen3:8b'\n"
    assert cli("list", "-q").out == "new:latest\n"


def test_all_that_are_named_are_removed_or_none(cli: Cli, store: list[Entry], no_daemon: None, tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    for wrong in ("absent", str(tmp_path / "file.gguf"), ""):
        outcome = cli("rm", "qwen3:8b", wrong)
        assert outcome.code in (1, 2, 4) and outcome.out == "" and outcome.err.count("\n") == 2
    assert "\n  `localllm list` names" in cli("rm", "absent").err
    assert cli("rm", "qwen3:8b", "qwen3:8b").out == "deleted 'qwen3:8b'\n"
    assert cli("list", "-q").out == "new:latest\n"


def test_a_removal_unloads_first(cli: Cli, store: list[Entry], daemon: FakeDaemon) -> None:
    daemon.loaded, daemon.models = [{"name": "qwen3:8b"}], {"qwen3:8b"}
    assert cli("rm", "qwen3:8b").code == 0
    assert daemon.bodies("/localllm/v1/stop") == [{"model": "qwen3:8b"}]


def test_verify_names_damaged_manifests_and_ends_badly(cli: Cli) -> None:
    manifest = load_settings().store_dir / "manifests" / "cut@latest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{cut")
    outcome = cli("verify")
    assert outcome.code == 1 and str(manifest) in outcome.err


@pytest.mark.parametrize("line", ["show absent", "where absent", "rm absent", "cp absent b", "verify absent"])
def test_an_unknown_model_ends_with_four(cli: Cli, store: list[Entry], line: str) -> None:
    outcome = cli(*line.split())
    assert outcome.code == 4 and "there is no model absent" in outcome.err and outcome.out == ""


def test_a_name_from_a_hostile_store_cannot_move_the_cursor(cli: Cli, tmp_path: Path) -> None:
    from localllm.cli.library import list_table

    shown = list_table([entry(tmp_path, "a\x1b[2Jb\u202e\nc")], time.time())
    assert "\x1b" not in shown and "\u202e" not in shown and shown.count("\n") == 2


def test_a_damaged_record_is_a_warning_and_the_others_are_listed(cli: Cli, store: list[Entry]) -> None:
    folder = load_settings().store_dir / "manifests"
    next(path for path in folder.rglob("*qwen3*") if path.is_file()).write_text("{")
    outcome = cli("list", "-q")
    assert (outcome.code, outcome.out) == (0, "new:latest\n") and outcome.err.startswith("Warning: ")
    assert "localllm rm" in outcome.err, "and what to do about it"
