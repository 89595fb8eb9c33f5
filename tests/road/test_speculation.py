"""The real small model with and without drafts from the text: the same tokens, in fewer steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm import LLM

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

pytestmark = pytest.mark.xdist_group("road")

LINES = "\n".join(f'{{"id": {n}, "city": "{city}"}}' for n, city in enumerate(("Lyon", "Graz", "Turin", "Ghent")))
COPY = f"Write these lines again, but with Paris instead of Lyon:\n\n{LINES}"
STORY = "Tell me a story about a lighthouse keeper and her cat."
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "random": {"temperature": 0.8, "seed": 3, "top_p": 0.95},
}


@pytest.fixture(scope="module")
def models(small_model_file: Path) -> Iterator[tuple[LLM, LLM]]:
    """Without drafts, and with them."""
    settings: dict[str, Any] = {"backend": "cpu", "context_length": 1024, "kv_pages": 256}
    with (
        LLM(small_model_file, speculation="off", **settings) as plain,
        LLM(small_model_file, speculation="auto", **settings) as drafting,
    ):
        yield plain, drafting


def answer(llm: LLM, question: str, **options: Any) -> Any:
    return llm.chat([{"role": "user", "content": question}], max_tokens=80, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", [COPY, STORY], ids=["copy", "story"])
def test_drafts_change_no_token(models: tuple[LLM, LLM], question: str, way: str) -> None:
    plain, drafted = (answer(llm, question, logprobs=2, **WAYS[way]) for llm in models)
    assert drafted.token_ids == plain.token_ids
    assert drafted.finish_reason == plain.finish_reason
    assert drafted.logprobs == plain.logprobs


def test_a_copy_takes_far_fewer_steps_than_tokens(models: tuple[LLM, LLM]) -> None:
    plain, drafting = models
    before = drafting.engine.snapshot()
    copied = answer(drafting, COPY, temperature=0.0)
    after = drafting.engine.snapshot()
    assert "Paris" in copied
    assert after.num_steps - before.num_steps < 0.6 * len(copied.token_ids)
    assert after.num_accepted_tokens > before.num_accepted_tokens
    assert plain.engine.snapshot().num_drafted_tokens == 0


def test_several_prompts_at_once_answer_as_they_do_alone(models: tuple[LLM, LLM]) -> None:
    plain, drafting = models
    prompts = [f"{LINES}\n{LINES}\n", "The capital of France is", "one two three one two three one two"]
    together = drafting.generate(prompts, max_tokens=40, temperature=0.0)
    assert [one.token_ids for one in together] == [
        plain.generate([prompt], max_tokens=40, temperature=0.0)[0].token_ids for prompt in prompts
    ]
