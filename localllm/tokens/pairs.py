"""Two texts as one sequence of tokens, as a model that judges pairs was trained on them. Texts never become control
tokens, whatever they spell."""

from __future__ import annotations

import re
from dataclasses import dataclass

from localllm.errors import ContextExceeded, UnsupportedModel
from localllm.tokens.tokenizer import Tokenizer

QUERY, DOCUMENT = "{query}", "{document}"
QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""What Qwen3-Reranker is asked, as its authors' examples write it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Ids of both texts with what is around them; the second begins at `second_from`, 0: one cannot tell.
    `num_tokens`: before the document was cut."""

    ids: list[int]
    second_from: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PairForm:
    """How a model wants pairs. `template` has the places of {query} and {document}; without one the tokenizer's own
    tokens are around and between the texts."""

    template: str = ""

    def __post_init__(self) -> None:
        if self.template and not (QUERY in self.template and DOCUMENT in self.template):
            raise UnsupportedModel("the template for pairs of texts has no places for {query} and {document}")

    def pair(self, tokenizer: Tokenizer, query: str, document: str, longest: int, *, cuts: bool = False) -> Pair:
        """ContextExceeded for more than `longest` tokens, unless it `cuts`: then the document loses its end."""
        if self.template:
            return self._written(tokenizer, query, document, longest, cuts=cuts)
        first, second = (tokenizer.encode(text, add_special=False, parse_special=False) for text in (query, document))
        special = tokenizer.built.special
        head = [*special.prefix_ids, *first, *special.between_ids]
        tail = [*special.suffix_ids]
        num_tokens = len(head) + len(second) + len(tail)
        room = longest - len(head) - len(tail)
        if num_tokens > longest:
            if not cuts or room <= 0:
                raise ContextExceeded(num_tokens, longest)
            second = second[:room]
        return Pair([*head, *second, *tail], len(head), num_tokens)

    def _written(self, tokenizer: Tokenizer, query: str, document: str, longest: int, *, cuts: bool) -> Pair:
        ids = self._filled(tokenizer, query, document)
        num_tokens, over = len(ids), len(ids) - longest
        while over > 0:
            kept = tokenizer.encode(document, add_special=False, parse_special=False)[:-over]
            if not cuts or not kept:
                raise ContextExceeded(num_tokens, longest)
            document = tokenizer.decode(kept)
            ids = self._filled(tokenizer, query, document)
            over = max(0, len(ids) - longest)
        return Pair(ids, 0, num_tokens)

    def _filled(self, tokenizer: Tokenizer, query: str, document: str) -> list[int]:
        texts = tokenizer.built.texts
        marks = {texts[one]: one for one in tokenizer.special_ids if texts[one]}
        found = [re.escape(mark) for mark in sorted(marks, key=len, reverse=True) if mark in self.template]
        parts = re.split(f"({'|'.join(found)})", self.template) if found else [self.template]
        ids: list[int] = []
        for part in parts:
            if part in marks:
                ids.append(marks[part])
            elif part:
                filled = _filled(part, query, document)
                ids.extend(tokenizer.encode(filled, add_special=False, parse_special=False))
        return ids


def _filled(part: str, query: str, document: str) -> str:
    """Both at once: a query may speak of {document}."""
    values = {QUERY: query, DOCUMENT: document}
    return re.sub(r"\{query\}|\{document\}", lambda found: values[found[0]], part)
