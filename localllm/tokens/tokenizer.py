"""Text to token ids and back, by the model's own rules. Token bytes are exact; text is decoded from joined bytes."""

import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from localllm.errors import InvalidRequest
from localllm.tokens.alphabet import spelled_bytes
from localllm.tokens.build import SPACE_MARK, BuiltTokenizer, build_from_gguf
from localllm.tokens.chat import (
    ChatTemplate,
    check_allowed,
    chosen_template,
    default_template,
    made_up,
    render_text,
)
from localllm.tokens.folder import build_from_folder, is_tokenizer_file
from localllm.tokens.specials import TokenType

MAX_TEXT_CHARS = 16 << 20
# A split expression that came with the model may backtrack: its step limit holds per position, so we limit those.
_UNTRUSTED_MAX_CHARS = 1 << 18


@dataclass(frozen=True, slots=True)
class Explained:
    """One token of a text. Ends are exclusive; offsets are into the text's UTF-8 bytes and into its characters.

    A token that holds part of a character spans the whole character in `char_start`/`char_end`. Tokens that come from
    no text (a beginning-of-sequence token, a space prefix) span nothing.
    """

    id: int
    piece: str
    bytes: bytes
    byte_start: int
    byte_end: int
    char_start: int
    char_end: int
    is_special: bool
    is_byte: bool


class Tokenizer:
    """A model's tokenizer. Safe to call from several threads."""

    def __init__(self, built: BuiltTokenizer) -> None:
        self.built = built
        self._core = built.core
        # the package keeps "match special tokens" as a state of the object, so each call sets it under a lock
        self._lock = threading.Lock()
        special = built.special
        self.bos_id, self.eos_id = special.bos_id, special.eos_id
        self.eot_id, self.pad_id = special.eot_id, special.pad_id
        self.eog_ids = special.eog_ids
        self.add_bos = bool(special.prefix_ids)
        self._bytes_cache: dict[int, bytes] = {}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """From a GGUF file's metadata. Raises UnsupportedModel or BadModelFile."""
        return cls(build_from_gguf(metadata))

    @classmethod
    def from_folder(cls, path: str | Path) -> Self:
        """From a folder with tokenizer.json or an older tokenizer. Raises UnsupportedModel or BadModelFile."""
        return cls(build_from_folder(path))

    @classmethod
    def from_path(cls, path: str | Path) -> Self:
        """From a GGUF file (weights are not read), a folder, or a tokenizer's own file (tokenizer.json or older)."""
        if Path(path).is_dir() or is_tokenizer_file(path):
            return cls.from_folder(path)
        from localllm.formats.gguf_read import GGUFFile  # only here: the rest of this room needs no file format

        with GGUFFile.open(path) as file:
            return cls.from_gguf(file.metadata)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of this tokenizer, one sentence each."""
        return self.built.notes

    @property
    def kind(self) -> str:
        """BPE, Unigram or WordPiece."""
        return type(self._core.model).__name__

    @property
    def vocab_size(self) -> int:
        return self.built.vocab_size

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control and unknown tokens: those that `skip_special` leaves out."""
        special = (TokenType.CONTROL, TokenType.UNKNOWN)
        return frozenset(token_id for token_id, kind in enumerate(self.built.types) if kind in special)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text; surrogates that stand alone are read as U+FFFD.

        `add_special` puts the model's own beginning and end around it; with `parse_special=False` the spelling of a
        control token is plain text. Raises InvalidRequest for a text past `MAX_TEXT_CHARS`.
        """
        text = clean_text(text)
        self._check_length(text)
        ids = self._encode_plainly(text, parse_special).ids if text else []
        special = self.built.special
        return [*special.prefix_ids, *ids, *special.suffix_ids] if add_special else ids

    def count(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> int:
        """How many tokens `encode` gives."""
        return len(self.encode(text, add_special=add_special, parse_special=parse_special))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, continuation: bool = False) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD. Raises InvalidRequest for an id out of range.

        The space that the model's tokenizer puts before every text is taken away again, except in a `continuation` of
        text that came before.
        """
        pieces = [self.token_bytes(token_id) for token_id in self.kept_ids(ids, skip_special=skip_special)]
        joined = b"".join(pieces)
        if self.built.adds_space_prefix and not continuation:
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", errors="replace")

    def kept_ids(self, ids: Sequence[int], *, skip_special: bool) -> Iterator[int]:
        """The ids, all of them checked, without the special ones if they are to be skipped."""
        for token_id in ids:
            self._check_id(token_id)
            if not (skip_special and token_id in self.special_ids):
                yield token_id

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for. Raises InvalidRequest for an id out of range."""
        known = self._bytes_cache.get(token_id)
        if known is None:
            self._check_id(token_id)
            known = self._bytes_cache[token_id] = self._read_bytes(token_id)
        return known

    def said_bytes(self, token_id: int) -> bytes:
        """`token_bytes`, of ids that come from a model: its rows are often more than there are tokens, rounded up to
        what computes well, and a row without a token that it came to say is no text."""
        return self.token_bytes(token_id) if token_id < self.vocab_size else b""

    def piece(self, token_id: int) -> str:
        """The token as text for display: its bytes if they are UTF-8, else `<0xE2><0x80>`."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode("utf-8") if raw else self.built.texts[token_id]
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def explain(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[Explained]:
        """What `encode` gives, token by token, with where in the text each one lies."""
        text = clean_text(text)
        self._check_length(text)
        tokens = self._explain_plainly(text, parse_special) if text else []
        if not add_special:
            return tokens
        special, end_chars, end_bytes = self.built.special, len(text), len(text.encode())
        before = [self._explained(token_id, (0, 0), (0, 0)) for token_id in special.prefix_ids]
        after = [self._explained(token_id, (end_bytes,) * 2, (end_chars,) * 2) for token_id in special.suffix_ids]
        return [*before, *tokens, *after]

    def cuts(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[tuple[int, int, int]]:
        """What `explain` gives, in short: the id of each token, and the characters where it begins and ends."""
        text = clean_text(text)
        self._check_length(text)
        located = self._located(text, parse_special, _Places(text)) if text else ()
        found = [(token_id, *chars) for token_id, _, chars in located]
        if not add_special:
            return found
        special, end = self.built.special, len(text)
        before, after = special.prefix_ids, special.suffix_ids
        return [*((one, 0, 0) for one in before), *found, *((one, end, end) for one in after)]

    def spelled_words(self, text: str, *, parse_special: bool = True) -> list["SpelledWord"]:
        """The words that the pre-tokenizer cut, with how each token is spelled and how many tokens come before.

        Raises InvalidRequest for a text past `MAX_TEXT_CHARS`.
        """
        text = clean_text(text)
        self._check_length(text)
        encoding = self._encoding(text, parse_special) if text else None
        if encoding is None:
            return []
        rows = zip(encoding.word_ids, encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        words: list[SpelledWord] = []
        for _, group in groupby(rows, key=itemgetter(0)):
            _, ids, spellings, spans = zip(*group, strict=True)
            words.append(SpelledWord(ids, spellings, spans, words[-1].next_token if words else 0))
        return words

    def words(self, text: str) -> list[list[int]]:
        """Ids of `encode(text, add_special=False)`, grouped by the words that the pre-tokenizer cut."""
        if not text:
            return []
        encoded = self._encode_plainly(text, parse_special=True)
        grouped = groupby(zip(encoded.ids, encoded.word_ids, strict=True), key=itemgetter(1))
        return [[token_id for token_id, _ in group] for _, group in grouped]

    def chat_template(self, name: str = "default", *, source: str | None = None, isolated: bool = True) -> ChatTemplate:
        """`source` where one is given, else the model's template of that name, else its default one, else a made-up one
        (its `note` says so)."""
        templates = self.built.chat_templates
        source = source or templates.get(name) or templates.get("default")
        tokens = self._template_tokens
        bos, eos = tokens.get("bos_token", ""), tokens.get("eos_token", "")
        if source is None:
            bos = bos if self.add_bos else ""
            return default_template(self.built.texts, bos_token=bos, eos_token=eos, isolated=isolated)
        return ChatTemplate(source, bos_token=bos, eos_token=eos, special_tokens=tokens, isolated=isolated)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for these messages, as transformers' method of this name gives it with `tokenize=False`.

        `chat_template` is a name among the model's templates, or a template; without it `tool_use` is taken for tools
        where the model has one, else `default`. Raises as `ChatTemplate.render`; a variable that is not on the list of
        allowed ones is an InvalidRequest.
        """
        given = {**(chat_template_kwargs or {}), **variables}
        check_allowed(given)
        source = chosen_template(self.built.chat_templates, chat_template, has_tools=tools is not None)
        return render_text(
            source or made_up(self.built.texts)[0], messages, tools=tools, documents=documents,
            special_tokens=self._template_tokens, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message, variables=given,
        )  # fmt: skip

    @staticmethod
    def render_template(
        template_text: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        isolated: bool = True,
        **variables: Any,
    ) -> str:
        """Any template's text, without a model; `special_tokens` such as {"bos_token": "<s>"}. Raises as
        `ChatTemplate.render`: an author's own refusal is a TemplateRefused."""
        return render_text(
            template_text, messages, tools=tools, documents=documents, special_tokens=special_tokens,
            add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
            isolated=isolated, variables=variables,
        )  # fmt: skip

    @cached_property
    def _template_tokens(self) -> dict[str, str]:
        """The special tokens that this model has, under the names that templates know."""
        special = self.built.special
        ids = {"bos": special.bos_id, "eos": special.eos_id, "pad": special.pad_id, "unk": special.unk_id}
        return {f"{name}_token": self.built.texts[one] for name, one in ids.items() if one is not None}

    # --- internals

    def _encode_plainly(self, text: str, parse_special: bool) -> "_Encoded":
        encoding = self._encoding(text, parse_special)
        return _Encoded(encoding.ids, encoding.offsets, encoding.word_ids)

    def _encoding(self, text: str, parse_special: bool) -> Any:
        core = self._core if parse_special or self.built.plain_core is None else self.built.plain_core
        with self._lock:
            core.encode_special_tokens = not parse_special
            try:
                return core.encode(text, add_special_tokens=False)
            except BaseException as error:
                raise as_refusal(error) from error

    def _explain_plainly(self, text: str, parse_special: bool) -> list[Explained]:
        places = _Places(text)
        return [
            self._explained(token_id, span_bytes, span_chars)
            for token_id, span_bytes, span_chars in self._located(text, parse_special, places)
        ]

    def _located(
        self, text: str, parse_special: bool, places: "_Places"
    ) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
        """The id of each token, and where it lies in bytes and in characters."""
        encoded = self._encode_plainly(text, parse_special)
        spans = self._byte_spans(encoded.ids, text.encode())
        if spans is None:
            chars = encoded.offsets
            return zip(encoded.ids, map(places.bytes_of, chars), chars, strict=True)
        return zip(encoded.ids, spans, map(places.chars_of, spans), strict=True)

    def _byte_spans(self, ids: Sequence[int], raw: bytes) -> list[tuple[int, int]] | None:
        """Where each token's bytes lie; None if, even without added spaces, they are not the text's."""
        spans: list[tuple[int, int]] = []
        position = 0
        for token_id in ids:
            piece = self.token_bytes(token_id)
            # a space is added before the text, and by many tokenizers again after each special token
            bare = piece.removeprefix(b" ") if self.built.adds_space_prefix else piece
            readings = (piece, bare) if spans else (bare, piece)
            found = next((one for one in readings if raw.startswith(one, position)), None)
            if found is None:
                return None
            spans.append((position, position + len(found)))
            position += len(found)
        return spans if position == len(raw) else None

    def _explained(self, token_id: int, span_bytes: tuple[int, int], span_chars: tuple[int, int]) -> Explained:
        raw = self.token_bytes(token_id)
        return Explained(
            id=token_id,
            piece=self.piece(token_id),
            bytes=raw,
            byte_start=span_bytes[0],
            byte_end=span_bytes[1],
            char_start=span_chars[0],
            char_end=span_chars[1],
            is_special=token_id in self.special_ids,
            is_byte=self.built.types[token_id] == TokenType.BYTE or (len(raw) == 1 and raw[0] >= 0x80),
        )

    def _read_bytes(self, token_id: int) -> bytes:
        text, kind = self.built.texts[token_id], self.built.types[token_id]
        if kind == TokenType.BYTE:
            return byte_of_name(text)
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            return text.encode("utf-8", errors="replace")
        if not self.built.is_byte_level:
            return text.replace(SPACE_MARK, " ").encode("utf-8", errors="replace")
        if kind == TokenType.USER_DEFINED:
            return text.encode("utf-8", errors="replace")
        return spelled_bytes(text)

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(
                f"{token_id} is no token id: this model has ids from 0 to {self.vocab_size - 1}", param="tokens"
            )

    def _check_length(self, text: str) -> None:
        most = MAX_TEXT_CHARS if self.built.is_trusted_pattern else _UNTRUSTED_MAX_CHARS
        if len(text) > most:
            raise InvalidRequest(
                f"the text has {len(text)} characters, more than the {most} this tokenizer takes",
                hint="split it into parts",
            )


@dataclass(frozen=True, slots=True)
class SpelledWord:
    """One word: its token ids, how the model spells each of them (an unknown one: as it stands in the text, where the
    model keeps that), where each lies in the text, as the package says it, and the number of tokens before it."""

    ids: tuple[int, ...]
    spellings: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    first_token: int

    @property
    def next_token(self) -> int:
        return self.first_token + len(self.ids)


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: list[int]
    offsets: list[tuple[int, int]]  # in characters
    word_ids: list[int | None]


class _Places:
    """Translates spans between the characters of a text and its UTF-8 bytes."""

    def __init__(self, text: str) -> None:
        # of character i in bytes; one more entry for the end
        self._starts: Sequence[int] = (
            range(len(text) + 1)
            if text.isascii()
            else [*accumulate((len(character.encode()) for character in text), initial=0)]
        )

    def bytes_of(self, chars: tuple[int, int]) -> tuple[int, int]:
        return self._starts[chars[0]], self._starts[chars[1]]

    def chars_of(self, span: tuple[int, int]) -> tuple[int, int]:
        start = bisect_right(self._starts, span[0]) - 1
        return start, max(start, bisect_left(self._starts, span[1]))


def clean_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced, so that it has a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
    return text


def byte_of_name(text: str) -> bytes:
    """`<0x41>` to one byte; a token of another spelling stands for its own UTF-8."""
    match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text)
    return bytes([int(match[1], 16)]) if match else text.encode("utf-8", errors="replace")


def as_refusal(error: BaseException) -> BaseException:
    """A Rust panic is a BaseException: it means that the split expression gave up (its own step limit)."""
    if type(error).__name__ == "PanicException" or type(error) is Exception:
        return InvalidRequest(
            "the model's tokenizer could not split this text",
            hint="the expression in its tokenizer.json gives up on it",
        )
    return error
