"""`LLM` and `Tokenizer` in a script: what they give, and one sentence for every wrong name, type and value."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm import LLM, Tokenizer
from localllm.errors import BadModelFile, InvalidRequest, LocalLLMError, ModelNotFound, UsageError
from localllm.runtime.names import open_library
from localllm.runtime.presets import behind_opening
from localllm.store.modelfile import parse_modelfile

pytestmark = pytest.mark.xdist_group("llm")

PROMPT = "The capital of France is"
SHOWN = ["[system]Be a bear.[assistant]Grr[user]Hi", "[system]Be a fox.[assistant]Grr"]
IDS = [504, 3575, 282, 4649, 314]


@pytest.fixture(scope="module")
def llm(small_model_home: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALLLM_HOME", str(small_model_home))
        made = LLM("smollm2:135m", threads=1, kv_pages=64, context_length=256)
    with made:
        yield made


def test_a_text_its_ids_and_an_array_of_them_are_one_prompt(llm: LLM) -> None:
    forms: list[Any] = [PROMPT, IDS, tuple(IDS), [PROMPT], [IDS], [np.array(IDS)]]
    answers = [llm.generate(form, max_tokens=4, temperature=0) for form in forms]
    assert answers == [[" Paris.\n\n"]] * len(forms) and answers[0][0].token_ids[0] == 7042


def test_a_seed_gives_its_text_again_alone_and_in_a_batch(llm: LLM) -> None:
    (alone,) = llm.generate([PROMPT], max_tokens=6, seed=3, temperature=1.0)
    batch = llm.generate(["x", PROMPT, "y"], max_tokens=6, seed=3, temperature=1.0)
    assert batch[1] == alone != llm.generate([PROMPT], max_tokens=6, seed=4, temperature=1.0)[0]


def test_stop_logprobs_and_score_agree(llm: LLM) -> None:
    (stopped,) = llm.generate(["Count: 1 2 3"], max_tokens=20, stop="7", temperature=0, logprobs=2)
    assert stopped == " 4 5 6 " and stopped.finish_reason == "stop"
    assert all(len(entry.top_ids) == 2 for entry in stopped.logprobs)
    score = llm.score(PROMPT + " Paris")
    assert score.token_ids == [*IDS, 7042] and score.logprobs[0] is None
    (paris,) = llm.generate(PROMPT, max_tokens=1, temperature=0, logprobs=0)
    assert score.logprobs[-1] == pytest.approx(paris.logprobs[0].logprob, abs=1e-4)


def test_logits_are_what_scores_are_made_of(llm: LLM) -> None:
    logits = llm.logits(IDS)
    assert logits.shape == (len(IDS), llm.text.tokenizer.vocab_size) and logits.dtype == np.float32
    chances = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    chances -= logits.max(axis=1, keepdims=True)
    told = [float(chances[place, token]) for place, token in enumerate(IDS[1:])]
    assert told == pytest.approx(llm.score(IDS).logprobs[1:], abs=1e-3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.generate(None),
        lambda llm: llm.generate(b"bytes"),
        lambda llm: llm.generate([b"bytes"]),
        lambda llm: llm.generate([[1.5]]),
        lambda llm: llm.generate([[-1]]),
        lambda llm: llm.generate([[49152]]),
        lambda llm: llm.generate([""]),
        lambda llm: llm.generate(["x"], temperature="hot"),
        lambda llm: llm.generate(["x"], temperature=-1),
        lambda llm: llm.generate(["x"], top_k=1.5),
        lambda llm: llm.generate(["x"], seed="a"),
        lambda llm: llm.generate(["x"], tempreature=1),
        lambda llm: llm.generate(["x"], max_tokens="a"),
        lambda llm: llm.generate(["x"], max_tokens=-1),
        lambda llm: llm.generate(["x"], max_tokens=True),
        lambda llm: llm.generate(["x"], logprobs=21),
        lambda llm: llm.generate(["x"], stop=3),
        lambda llm: llm.generate(["x"], stop=["a", 3]),
        lambda llm: llm.chat([]),
        lambda llm: llm.chat("Hello"),
        lambda llm: llm.chat([{"role": "user"}]),
        lambda llm: llm.embed([]),
        lambda llm: llm.score(""),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(llm: LLM, ask: Callable[[LLM], object]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(llm)
    assert "\n" not in refused.value.message
    assert llm.generate(PROMPT, max_tokens=1, temperature=0) == [" Paris"]  # and nothing of it stays behind


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threads": "x"}, "threads must be a whole number"),
        ({"threads": -1}, "threads must be between 0 and 256"),
        ({"kv_pages": -1}, "kv_pages must be at least 0"),
        ({"page_size": 0}, "page_size must be at least 1"),
        ({"context_length": -1}, "context_length must be at least 0"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_before_anything_is_loaded(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalLLMError, match=said) as refused:
        LLM("/no/such/model.gguf", **settings)
    assert isinstance(refused.value, UsageError | InvalidRequest)


def test_what_a_modelfile_says_holds_in_a_script_too(small_model_file: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    own = ["PARAMETER temperature 0", "PARAMETER stop 4", "PARAMETER repeat_penalty 1.001"]
    lines = [f"FROM {small_model_file}", *own]
    text = "\n".join([*lines, "SYSTEM Be a bear.", "MESSAGE assistant Grr", f"TEMPLATE {template}"])
    open_library().create("bear", parse_modelfile(text))
    with LLM("bear", backend="cpu", threads=1, kv_pages=64, context_length=256) as bear:
        assert bear.generate("Count: 1 2 3", max_tokens=4) == [" "]
        prompts = [bear.text.tokenizer.encode(text, add_special=False) for text in SHOWN]
        asked = [[{"role": "user", "content": "Hi"}], [{"role": "system", "content": "Be a fox."}]]
        answers = [bear.chat(messages, max_tokens=0) for messages in asked]
        assert [answer.num_prompt_tokens for answer in answers] == [len(ids) for ids in prompts]
        rendered = [bear.text.template.render(behind_opening(bear.entry, messages)) for messages in asked]
        assert rendered == SHOWN
        assert bear._sampling({}).repetition_penalty == 1.001


def test_a_closed_model_says_so(small_model_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLLM_HOME", str(small_model_home))
    closed = LLM("smollm2:135m", backend="cpu", threads=1, kv_pages=8, context_length=64)
    closed.close()
    with pytest.raises(InvalidRequest, match="closed"):
        closed.generate("x")


def test_unknown_names_and_pickles_are_refused_by_both(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"PK\x03\x04" + bytes(64))
    for load in (LLM, Tokenizer.load):
        with pytest.raises(ModelNotFound, match="smolm2"):
            load("smolm2:135m")
        with pytest.raises(BadModelFile, match="can run code"):
            load(checkpoint)


def test_a_file_without_the_usual_suffix_is_known_by_its_bytes(small_model_home: Path, tmp_path: Path) -> None:
    file = next((small_model_home / "store" / "files").rglob("*.gguf"))
    blob = tmp_path / "sha256-0123"  # as Ollama keeps them
    os.symlink(file, blob)
    assert Tokenizer.load(blob).encode(PROMPT) == IDS
