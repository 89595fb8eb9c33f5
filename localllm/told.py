"""What is told of tokenizers: the daemon sends it, the client reads it, the command prints it.

Bytes are hexadecimal strings: tokens need not be text. Places are characters of the text that was asked about, ends
exclusive.
"""

from typing import Literal

import msgspec

Kind = Literal["BPE", "Unigram", "WordPiece"]
KINDS = ("BPE", "Unigram", "WordPiece")


class TokenizerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer that can be asked, or could be pulled. `is_model`: it came with a model; the others never chat.
    `kind` and `vocab_size` are "" and 0 where nobody has opened it yet."""

    name: str
    title: str
    kind: str = ""
    vocab_size: int = 0
    is_model: bool = False
    is_here: bool = False
    license: str = ""
    note: str = ""


class TokenizerRows(msgspec.Struct, frozen=True):
    tokenizers: list[TokenizerRow]


class TextToken(msgspec.Struct, frozen=True, kw_only=True):
    """One token of a text. `agrees`: all tokenizers that were asked cut the text at its end."""

    id: int
    bytes: str
    start: int
    end: int
    is_special: bool = False
    agrees: bool = True


class SplitText(msgspec.Struct, frozen=True, kw_only=True):
    """A text as one tokenizer sees it. `tokens` are the first of `count`; `num_agreed` of its cuts are everybody's.
    `problem` is why it cannot read this text; the rest is empty then."""

    model: str
    title: str
    kind: str = ""
    vocab_size: int = 0
    count: int = 0
    tokens: list[TextToken] = []
    num_agreed: int = 0
    problem: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A text through several tokenizers. `num_listed` is how many tokens of each are listed at most."""

    num_chars: int
    num_bytes: int
    num_listed: int
    tokenizers: list[SplitText]


# ---- one word, step by step


class Merge(msgspec.Struct, frozen=True, kw_only=True):
    """Symbols `position` and the next one became one; the rule of the lowest rank goes first."""

    position: int
    left: str
    right: str
    rank: int


class Merges(msgspec.Struct, frozen=True, kw_only=True):
    """BPE: the bytes of each symbol before the first step, and the steps."""

    symbols: list[str]
    steps: list[Merge]


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A piece that could be cut between two places of the word; `id` -1 stands for one character that is unknown.
    `score` is a log probability; `best` is the best sum of a way from the word's start to the piece's end."""

    start: int
    end: int
    id: int
    bytes: str
    score: float
    best: float
    is_taken: bool


class Lattice(msgspec.Struct, frozen=True, kw_only=True):
    """Unigram: all pieces there are in a word (as the tokenizer normalized it), and which were taken."""

    edges: list[Edge]
    score: float


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """WordPiece: what was `tried`, longest first, before `piece` was found; `rest` is what is left behind it.
    `tried` lists the first and the last few of `num_tried`. An id of -1: nothing was found, the word is unknown."""

    id: int
    piece: str
    rest: str
    tried: list[str]
    num_tried: int


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """How one word became tokens. `word` is its text as the tokenizer spells it, with spaces as spaces; `note` says
    why there are no steps."""

    model: str
    kind: str
    word: str
    start: int
    end: int
    ids: list[int]
    merges: Merges | None = None
    lattice: Lattice | None = None
    matches: list[Match] | None = None
    note: str = ""


# ---- vocabulary


class VocabularyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """`rank` is that of the merge that makes the token (BPE), `score` a log probability (Unigram); null where there is
    none."""

    id: int
    bytes: str
    type: str
    rank: int | None = None
    score: float | None = None


class VocabularyPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries that were found, from `offset` on, of `total`. `as_tokens`: what the text that was looked up becomes;
    one id says that it is a token."""

    model: str
    vocab_size: int
    total: int
    offset: int
    entries: list[VocabularyEntry]
    as_tokens: list[int] = []


class TokenFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One token. `merged_from` are the bytes of the two symbols of its merge (BPE); `also_in` are some of the
    `num_also_in` entries whose bytes hold the token's."""

    model: str
    id: int
    bytes: str
    type: str
    rank: int | None = None
    score: float | None = None
    merged_from: list[str] = []
    also_in: list[VocabularyEntry] = []
    num_also_in: int = 0


# ---- chat templates

PartKind = Literal["special", "role", "content", "frame", "opening"]


class TemplatePart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the text a model reads. `message` is the one it came from, -1 for none; `id` that of a special token.
    `opening` is where the answer is to begin."""

    kind: PartKind
    text: str
    message: int = -1
    role: str = ""
    id: int = -1


class TemplateView(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as the model reads it: the parts joined are the whole text. `is_exact` is false where the template
    changes what messages say, so that the parts were found by looking for their words; `note` is for people."""

    model: str
    parts: list[TemplatePart]
    num_tokens: int
    num_special: int
    is_exact: bool
    note: str = ""
