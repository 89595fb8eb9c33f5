"""The whole road of an adapter: script, command line, Modelfile and daemon give what peft's merged model gives."""

import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from localllm import LLM
from localllm.errors import InvalidRequest, ModelNotFound
from tests.road.test_road import House
from tests.road.tiny_llama import make_tiny_llama, their_greedy_ids

pytestmark = pytest.mark.xdist_group("road")

NUM_TOKENS = 10
FAST = {"threads": 1, "kv_pages": 32, "backend": "cpu", "kv_type": "f32"}
PROMPT = [5, 60, 7, 80, 9, 100, 11, 120, 13, 140, 15, 160, 17, 180, 19, 200, 21, 220]
NAMES = ("red", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters of it, and what it becomes with each of them merged in."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    from transformers import LlamaForCausalLM

    made = tmp_path_factory.mktemp("lora")
    make_tiny_llama(made / "base")
    for seed, name in enumerate(NAMES):
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = LlamaForCausalLM.from_pretrained(made / "base", dtype=torch.float32)
            config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
            adapted = peft.get_peft_model(model, config)
            adapted.save_pretrained(made / name)
            adapted.merge_and_unload().save_pretrained(made / f"merged-{name}")
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    ids = {name: their_greedy_ids(folder / f"merged-{name}", PROMPT, NUM_TOKENS) for name in NAMES}
    ids[""] = their_greedy_ids(folder / "base", PROMPT, NUM_TOKENS)
    assert len({tuple(line) for line in ids.values()}) == 3, "adapters that change nothing"
    return ids


def test_a_script_applies_an_adapter_to_each_prompt(folder: Path, expected: dict[str, list[int]]) -> None:
    with LLM(folder / "base", lora=folder / "red", **FAST) as llm:
        wanted = [folder / "blue", None, "", str(folder / "red")]
        answers = llm.generate([PROMPT] * 4, lora=wanted, max_tokens=NUM_TOKENS, temperature=0, stop=[])
        assert [answer.token_ids for answer in answers] == [expected[name] for name in ("blue", "red", "", "red")]
        again = llm.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0, stop=[], lora=folder / "blue")[0]
        assert again.token_ids == expected["blue"] and again.num_cached_tokens == 16
        other = llm.generate(PROMPT, max_tokens=1, temperature=0, lora=folder / "blue", lora_scale=0.5)[0]
        assert other.num_cached_tokens == 0
        for lora, error in ((folder / "none", ModelNotFound), (["", ""], InvalidRequest), (7, InvalidRequest)):
            with pytest.raises(error):
                llm.generate(PROMPT, lora=lora)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="lora_scale"):
            llm.generate(PROMPT, lora=folder / "blue", lora_scale=1000)


@pytest.fixture(scope="module")
def house(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"), LOCALLLM_KV_PAGES="64", LOCALLLM_THREADS="1", LOCALLLM_KV_TYPE="f32")
    made.run("daemon", "start", "--backend", "cpu", "--lora", f"red={folder / 'red'}", "--lora", str(folder / "blue"))
    try:
        yield made
    finally:
        made.run("daemon", "stop")


def complete(house: House, model: str, **fields: Any) -> list[int]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "return_token_ids": True}
    answer = httpx.post(f"{house.url}/v1/completions", json=body | {"ignore_eos": True} | fields, timeout=60)
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


def test_requests_with_different_adapters_run_together(
    house: House, folder: Path, expected: dict[str, list[int]]
) -> None:
    base = str(folder / "base")
    assert complete(house, base) == expected[""]
    wishes: list[tuple[str, str, dict[str, Any]]] = [
        ("", base, {}),
        ("red", f"{base}+red", {}),
        ("blue", base, {"lora": "blue"}),
        ("red", base, {"lora": [{"id": 0}]}),
        ("blue", f"{base}+blue", {"lora": None}),
        ("blue", base, {"lora": [{"name": "blue", "scale": 1.0}]}),
    ]
    seen: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda at=at, wish=wish: seen.__setitem__(at, complete(house, wish[1], **wish[2])))
        for at, wish in enumerate(wishes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [seen[at] for at in range(len(wishes))] == [expected[name] for name, _, _ in wishes]


def test_the_command_line_and_a_modelfile_apply_an_adapter(
    house: House, folder: Path, tmp_path: Path, expected: dict[str, list[int]]
) -> None:
    base, question = str(folder / "base"), ("hello there", "--temperature", "0", "--max-tokens", "12")
    plain = house.run("run", base, *question).stdout
    adapted = house.run("run", base, *question, "--lora", str(folder / "red")).stdout
    assert adapted != plain
    assert house.run("run", base, *question, "--lora", f"{folder / 'red'}:0").stdout == plain
    (tmp_path / "Modelfile").write_text(f"FROM {base}\nADAPTER {folder / 'red'}\n")
    house.run("create", "tiny:red", "-f", str(tmp_path / "Modelfile"))
    assert house.run("run", "tiny:red", *question).stdout == adapted
    assert complete(house, "tiny:red") == expected["red"]
    assert complete(house, "tiny:red", lora="") == expected[""]
    assert str(folder / "red") in house.run("show", "tiny:red").stdout
    told = json.loads(house.run("show", str(folder / "red"), "--json").stdout)
    assert (told["ranks"], told["kind"]) == ([4], "peft")
    assert "targets" in house.run("show", str(folder / "red")).stdout
    wrong = house.run("run", base, "hello", "--lora", str(folder / "nothing"), check=False)
    assert wrong.returncode != 0 and "nothing" in wrong.stderr
