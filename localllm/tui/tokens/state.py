"""What the Tokens screen knows: a text, up to four tokenizers, where the cursor is, and what was asked about it. Draws
nothing and asks nobody."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from localllm import told
from localllm.visible import visible

MAX_PANELS = 4
MAX_CHARS = 100_000
"""More is cut off, and the screen says so: whoever types is answered at once, four tokenizers or not."""
MAX_LISTED = 4096
"""Of each tokenizer; counts are of the whole text."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A word after some merges; `made` is the place of the symbol that the last merge made, -1 before the first."""

    symbols: tuple[str, ...]
    made: int
    merge: told.Merge | None


@dataclass(slots=True)
class TokensState:
    """`names` are the tokenizers side by side, `panel` the one with the cursor, `token` the token under it; `step` of
    the trace is lit, None for the last one."""

    names: list[str] = field(default_factory=list)
    text: str = ""
    explanation: told.Explanation | None = None
    problem: str = ""
    panel: int = 0
    token: int = 0
    traces: dict[str, told.Trace] = field(default_factory=dict)
    facts: told.TokenFacts | None = None
    template: told.TemplateView | None = None
    template_problem: str = ""
    page: told.VocabularyPage | None = None
    query: str = ""
    step: int | None = None
    shows_ids: bool = True

    @property
    def splits(self) -> list[told.SplitText]:
        return self.explanation.tokenizers if self.explanation else []

    @property
    def split(self) -> told.SplitText | None:
        """The tokenizer with the cursor."""
        return self.splits[self.panel] if self.panel < len(self.splits) else None

    @property
    def current(self) -> told.TextToken | None:
        """The token under the cursor."""
        tokens = self.split.tokens if self.split else []
        return tokens[self.token] if self.token < len(tokens) else None

    @property
    def trace(self) -> told.Trace | None:
        return self.traces.get(self.split.model) if self.split else None

    @property
    def cut_text(self) -> str:
        """What is explained of the text."""
        return self.text[:MAX_CHARS]

    def title(self, panel: int) -> str:
        """Of a tokenizer; its name until it has answered."""
        return self.splits[panel].title if panel < len(self.splits) else self.names[panel]

    def explained(self, explanation: told.Explanation) -> None:
        """A new answer: the cursor stays on the characters where it was."""
        place = self.current.start if self.current else 0
        self.explanation, self.problem = explanation, ""
        self.panel = min(self.panel, max(0, len(explanation.tokenizers) - 1))
        self.token = self.token_at(self.panel, place)

    def token_at(self, panel: int, place: int) -> int:
        """The token of a panel that holds the character; the last one where none does."""
        tokens = self.splits[panel].tokens if panel < len(self.splits) else []
        found = bisect_right(tokens, place, key=lambda token: token.start) - 1
        return max(0, min(found, len(tokens) - 1))

    def move(self, by: int) -> None:
        """To another token of the same tokenizer."""
        tokens = self.split.tokens if self.split else []
        self.token = max(0, min(len(tokens) - 1, self.token + by))
        self.step = None

    def turn(self, by: int) -> None:
        """To the next tokenizer, on the same characters."""
        place = self.current.start if self.current else 0
        if self.splits:
            self.panel = (self.panel + by) % len(self.splits)
            self.token = self.token_at(self.panel, place)
            self.step = None

    def go(self, panel: int, token: int) -> None:
        self.panel, self.token, self.step = panel, token, None

    def lit(self, panel: int) -> range:
        """The tokens of a panel that hold the characters under the cursor."""
        token = self.current
        if token is None or panel >= len(self.splits) or token.end <= token.start:
            return range(0)
        tokens = self.splits[panel].tokens
        first = self.token_at(panel, token.start)
        while first < len(tokens) and tokens[first].end <= token.start:
            first += 1
        last = first
        while last < len(tokens) and tokens[last].start < token.end:
            last += 1
        return range(first, last)

    @property
    def num_steps(self) -> int:
        """Of the trace: merges, pieces of the best way, or matches."""
        trace = self.trace
        if trace is None:
            return 0
        if trace.merges is not None:
            return len(trace.merges.steps)
        if trace.lattice is not None:
            return sum(edge.is_taken for edge in trace.lattice.edges)
        return len(trace.matches or [])

    @property
    def lit_step(self) -> int:
        """0 (before the first) to `num_steps`."""
        return self.num_steps if self.step is None else min(self.step, self.num_steps)

    def go_step(self, by: int) -> None:
        self.step = max(0, min(self.num_steps, self.lit_step + by))

    @property
    def other_trace(self) -> told.Trace | None:
        """The same word in the first tokenizer of another kind, to be shown below where there is room."""
        kind, token = self.split.kind if self.split else "", self.current
        if token is None:
            return None
        others = [self.traces.get(split.model) for split in self.splits if split.kind != kind]
        return next((one for one in others if one and one.start < token.end and token.start < one.end), None)

    def title_of(self, model: str) -> str:
        return next((split.title for split in self.splits if split.model == model), model)


def stages(merges: told.Merges) -> Iterator[Stage]:
    """The symbols before the first merge and after each one."""
    symbols = tuple(merges.symbols)
    yield Stage(symbols, -1, None)
    for merge in merges.steps:
        symbols = (*symbols[: merge.position], merge.left + merge.right, *symbols[merge.position + 2 :])
        yield Stage(symbols, merge.position, merge)


def token_text(token: told.TextToken, kind: str, text: str) -> str:
    """A token as the screen shows it. WordPiece marks what goes on in a word, and knows no spaces: one is shown where
    it stands in the text."""
    raw = bytes.fromhex(token.bytes)
    if kind != "WordPiece" or token.is_special:
        return visible(raw)
    if not raw.startswith(b" "):
        return "##" + visible(raw)
    has_space = text[token.start : token.start + 1].isspace()
    return visible(raw if has_space else raw[1:])


def hex_text(raw: str) -> str:
    """Bytes of the API as people read them."""
    return visible(bytes.fromhex(raw))
