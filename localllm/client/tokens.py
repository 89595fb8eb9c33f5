"""Text as tokenizers see it. No model is loaded for any of these calls."""

from collections.abc import Mapping, Sequence
from typing import Any

from localllm import told
from localllm.client.transport import Transport

_BASE = "/localllm/v1/tokenizers"


class TokenCalls:
    """Text as tokenizers see it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def tokenizers(self) -> list[told.TokenizerRow]:
        """Those of installed models, then those that come without a model."""
        return self._transport.get(_BASE, told.TokenizerRows).tokenizers

    def explain(
        self,
        text: str,
        models: Sequence[str],
        *,
        add_special: bool = False,
        parse_special: bool = True,
        most: int = 4096,
    ) -> told.Explanation:
        """A text through one to four tokenizers; `most` tokens of each are listed, counts are of the whole text."""
        body = {"text": text, "models": list(models), "add_special": add_special, "parse_special": parse_special}
        return self._transport.post(f"{_BASE}/explain", {**body, "most": most}, told.Explanation)

    def trace(self, text: str, model: str, at: int = 0, *, parse_special: bool = True) -> told.Trace:
        """How the word around the character `at` becomes tokens."""
        body = {"text": text, "model": model, "at": at, "parse_special": parse_special}
        return self._transport.post(f"{_BASE}/trace", body, told.Trace)

    def facts(self, model: str, token_id: int) -> told.TokenFacts:
        """What there is to know of one token."""
        return self._transport.post(f"{_BASE}/token", {"model": model, "id": token_id}, told.TokenFacts)

    def vocabulary(
        self,
        model: str,
        *,
        text: str | None = None,
        token_id: int | None = None,
        raw: bytes | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> told.VocabularyPage:
        """Entries by text, by id or by bytes; all of them where nothing is asked for."""
        asked: dict[str, Any] = {"text": text, "id": token_id, "bytes": raw.hex() if raw is not None else None}
        body = {name: value for name, value in asked.items() if value is not None}
        page = {"model": model, "offset": offset, "limit": limit}
        return self._transport.post(f"{_BASE}/vocabulary", {**page, **body}, told.VocabularyPage)

    def template(
        self, model: str, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> told.TemplateView:
        """A conversation (roles and contents) as the model reads it, part by part."""
        body = {"model": model, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return self._transport.post(f"{_BASE}/template", body, told.TemplateView)
