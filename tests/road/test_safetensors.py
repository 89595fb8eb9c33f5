"""The whole road for a folder of safetensors: script, command line and daemon give what transformers gives."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from localllm import LLM, Tokenizer
from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel, UsageError
from localllm.formats.gguf_read import GGUFFile
from tests.road.test_road import House
from tests.road.tiny_llama import TEXT, make_tiny_llama, their_greedy_ids

pytestmark = pytest.mark.xdist_group("road")

PROMPT = "Redistribution and use in source"
QUESTION = [{"role": "user", "content": "May I use this?"}]
NUM_TOKENS = 12
FAST = {"threads": 1, "kv_pages": 32, "backend": "cpu", "kv_type": "f32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"), LOCALLLM_KV_PAGES="32", LOCALLLM_THREADS="1")
    made.run("daemon", "start", "--backend", "cpu")
    try:
        yield made
    finally:
        made.run("daemon", "stop")


def greedy(llm: LLM, prompt: str = PROMPT) -> list[int]:
    (answer,) = llm.generate(prompt, max_tokens=NUM_TOKENS, temperature=0)
    return answer.token_ids


def test_a_script_runs_the_folder_and_the_file_and_gives_what_transformers_gives(folder: Path) -> None:
    for path in (folder, folder / "model.safetensors"):
        with LLM(path, **FAST) as llm:
            ids = llm.text.tokenizer.encode(PROMPT)
            assert greedy(llm) == their_greedy_ids(folder, ids, NUM_TOKENS)
            assert llm.entry.architecture == "llama" and llm.text.architecture == "llama"


def test_what_the_json_files_say_holds(folder: Path) -> None:
    with LLM(folder, **FAST) as llm:
        assert llm.text.default_sampling == {"temperature": 0.5, "top_k": 5}
        assert llm.text.tokenizer.eog_ids >= {1, 2}
        assert (llm.info.context_length, llm.text.context_length) == (256, 256)
        rendered = llm.text.template.render(QUESTION)
        assert rendered == "<|bos|>user: May I use this?<|end|>assistant:"


def test_a_model_may_have_more_rows_than_its_tokenizer_has_tokens(folder: Path, tmp_path: Path) -> None:
    """Rounded up, as most are; what stands in those rows is anything, and the likeliest one is no text."""
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    padded = Path(shutil.copytree(folder, tmp_path / "padded"))
    tensors = files.load_file(padded / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], 4 * torch.randn(64, 64)])
    files.save_file(tensors, padded / "model.safetensors", {"format": "pt"})
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 576}))
    with LLM(padded, **FAST) as llm:
        said = greedy(llm)
        assert said == their_greedy_ids(padded, llm.text.tokenizer.encode(PROMPT), NUM_TOKENS)
        assert max(said) >= 512
        assert llm.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0)[0].text == llm.text.tokenizer.decode(
            [token for token in said if token < 512]
        )


def test_a_shorter_context_is_the_models_context(folder: Path) -> None:
    with LLM(folder, **FAST, context_length=64) as llm:
        assert llm.info.context_length == 64


def test_the_daemon_answers_over_http_as_the_script_does(house: House, folder: Path) -> None:
    with LLM(folder, **FAST | {"kv_type": "auto"}) as llm:
        expected = llm.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0)[0]
        talked = llm.chat(QUESTION, max_tokens=NUM_TOKENS, temperature=0)
    body = {"model": str(folder), "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}
    answer = httpx.post(f"{house.url}/v1/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["text"] == expected
    chat = {"model": str(folder), "messages": QUESTION, "max_tokens": NUM_TOKENS, "temperature": 0}
    said = httpx.post(f"{house.url}/v1/chat/completions", json=chat, timeout=60).json()
    assert said["choices"][0]["message"]["content"] == talked


def test_every_command_that_takes_a_model_takes_a_folder(house: House, folder: Path, tmp_path: Path) -> None:
    assert house.run("run", str(folder), "hello", "--max-tokens", "4", "--temperature", "0").stderr == ""
    shown = json.loads(house.run("show", str(folder), "--json").stdout)
    assert (shown["architecture"], shown["context_length"], shown["quantization"]) == ("llama", 256, "F32")
    assert "model.embed_tokens.weight" in house.run("show", str(folder), "--verbose").stdout
    assert "message.role" in house.run("show", str(folder), "--template").stdout
    tokens = json.loads(house.run("tokenize", str(folder), PROMPT, "--json").stdout)["tokens"]
    assert tokens == Tokenizer.load(folder).encode(PROMPT, parse_special=False)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    report = json.loads(
        house.run("eval", "ppl", str(folder), "-f", str(text), "--context", "64", "--backend", "cpu", "--json").stdout
    )
    assert report["backend"] == "cpu" and 1 < report["perplexity"] < 10_000


def test_a_backend_is_chosen_per_load_and_ps_shows_it(house: House, folder: Path) -> None:
    ask = ("run", str(folder), "hello", "--max-tokens", "2", "--temperature", "0")
    house.run(*ask)
    done = house.run(*ask, "--backend", "reference", "--kv-type", "f32")
    assert "plain numpy" in done.stderr
    (row,) = json.loads(house.run("ps", "--json").stdout)
    assert (row["backend"], row["kv_type"]) == ("reference", "f32")
    assert "reference" in house.run("ps").stdout
    house.run(*ask)
    assert json.loads(house.run("ps", "--json").stdout)[0]["backend"] == "reference"
    house.run(*ask, "--backend", "cpu")
    assert json.loads(house.run("ps", "--json").stdout)[0]["backend"] == "cpu"


# ---- what is refused


def changed(folder: Path, target: Path, **config: Any) -> Path:
    """A copy with other values in config.json."""
    shutil.copytree(folder, target)
    said = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**said, **config}))
    return target


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        ({"model_type": "mamba9"}, UnsupportedModel, "cannot run the architecture 'mamba9'"),
        ({"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "code.Odd"}}, UnsupportedModel, "never runs"),
        ({"quantization_config": {"quant_method": "aqlm"}}, UnsupportedModel, "AQLM"),
        ({"num_hidden_layers": 3}, BadModelFile, "blk.2"),
        ({"hidden_size": 128}, LocalLLMError, "shape"),
    ],
)
def test_what_cannot_run_is_refused_by_name_and_nothing_is_left_loaded(
    house: House, folder: Path, tmp_path: Path, config: dict[str, Any], kind: type[LocalLLMError], said: str
) -> None:
    bad = changed(folder, tmp_path / "bad", **config)
    with pytest.raises(kind, match=said):
        LLM(bad, **FAST)
    done = house.run("run", str(bad), "hello", check=False)
    assert done.returncode and done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    assert str(bad) not in house.run("ps").stdout


@pytest.mark.parametrize(
    ("lost", "said"),
    [("config.json", "no config.json"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "no model")],
)
def test_a_file_that_is_missing_is_named(folder: Path, tmp_path: Path, lost: str, said: str) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / lost).unlink()
    with pytest.raises(LocalLLMError, match=said):
        LLM(bad, **FAST)


def test_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
    with pytest.raises(BadModelFile, match="can run code"):
        LLM(bad, **FAST)


# ---- rounding while loading


@pytest.mark.parametrize("target", ["q8_0", "q4_0"])
def test_float_weights_are_rounded_while_they_load(folder: Path, target: str) -> None:
    pytest.importorskip("localllm.quantize.source")
    with LLM(folder, **FAST) as exact, LLM(folder, **FAST, quantize=target) as rounded:
        assert rounded.info.weight_bytes < exact.info.weight_bytes
        difference = abs(exact.score(PROMPT).perplexity / rounded.score(PROMPT).perplexity - 1)
        assert 0 < difference < 0.2


def test_ps_shows_the_rounding(house: House, folder: Path) -> None:
    pytest.importorskip("localllm.quantize.source")
    house.run("run", str(folder), "hello", "--max-tokens", "2", "--quantize", "q8_0")
    assert json.loads(house.run("ps", "--json").stdout)[0]["quantize"] == "q8_0"
    assert "cpu, q8_0" in house.run("ps").stdout


def test_weights_that_are_in_blocks_already_are_not_rounded_again(small_model_file: Path) -> None:
    with GGUFFile.open(small_model_file) as file:
        assert any(tensor.type.name.startswith("Q") for tensor in file.tensors.values())
    with pytest.raises(UsageError, match="quantized already"):
        LLM(small_model_file, **FAST, quantize="q8_0")
