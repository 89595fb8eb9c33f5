"""What the daemon answers about tokenizers, from tokenizers in this process."""

from collections.abc import Mapping, Sequence
from typing import Any

from localllm import told
from localllm.errors import LocalLLMError, ModelNotFound
from localllm.tokens.explainer import Explainer, explanation
from localllm.tokens.template_view import template_view
from localllm.tokens.tokenizer import Tokenizer
from tests.tui.fakes import FakeClient

ALONE = told.TokenizerRow(name="faraway", title="Far away", kind="BPE", license="mit")


class FakeTokens:
    """`client.tokens` over given tokenizers; `asked` counts the calls. `error` is what every call raises."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer], titles: Mapping[str, str]) -> None:
        self._explainers = {name: Explainer(one, name, titles.get(name, "")) for name, one in tokenizers.items()}
        self.asked: list[str] = []
        self.error: LocalLLMError | None = None
        self.alone = ALONE

    def tokenizers(self) -> list[told.TokenizerRow]:
        self._note("tokenizers")
        rows = [
            told.TokenizerRow(name=name, title=each.title, kind=each.tokenizer.kind, is_here=True, is_model=not n)
            for n, (name, each) in enumerate(self._explainers.items())
        ]
        return [*rows, self.alone]

    def explain(self, text: str, models: Sequence[str], *, most: int = 4096, **_: Any) -> told.Explanation:
        self._note("explain")
        asked = [self._named(name) for name in models]
        return explanation(asked, text, add_special=False, parse_special=True, most=most)

    def trace(self, text: str, model: str, at: int = 0) -> told.Trace:
        self._note("trace")
        return self._named(model).trace(text, at)

    def facts(self, model: str, token_id: int) -> told.TokenFacts:
        self._note("facts")
        return self._named(model).facts(token_id)

    def vocabulary(self, model: str, **asked: Any) -> told.VocabularyPage:
        self._note("vocabulary")
        return self._named(model).page(**asked)

    def template(self, model: str, messages: Sequence[Mapping[str, str]], **_: Any) -> told.TemplateView:
        self._note("template")
        tokenizer = self._named(model).tokenizer

        def render(chat: Sequence[Mapping[str, Any]], opening: bool) -> str:
            return tokenizer.apply_chat_template(chat, add_generation_prompt=opening)

        return template_view(tokenizer, model, messages, render, add_generation_prompt=True)

    def _named(self, name: str) -> Explainer:
        if name not in self._explainers:
            raise ModelNotFound(f"the tokenizer {name} is not here", hint=f"get it with: localllm pull {name}")
        return self._explainers[name]

    def _note(self, call: str) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append(call)


def client_with(tokenizers: Mapping[str, Tokenizer], **titles: str) -> FakeClient:
    client = FakeClient()
    client.tokens = FakeTokens(tokenizers, titles)  # type: ignore[attr-defined]  # as fakes.py says
    return client
