# ruff: noqa: RUF001 (some tokens are spelled with full-width bars)
"""Which tokens begin, end or mark a text: from metadata where it says so, else by the names everybody uses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from localllm.errors import BadModelFile


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, as the GGUF specification numbers it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that are not text; None where the model has none.

    `prefix_ids` and `suffix_ids` are what the model wants around every text, `between_ids` what is between the two
    texts of a pair; `eog_ids` end a generation.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    eot_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    sep_id: int | None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    between_ids: tuple[int, ...] = ()
    eog_ids: frozenset[int] = frozenset()


_END_OF_TURN = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *("[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
)
_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
)
# A model that starts to write the frame of another file has finished the one it was asked for.
_FILL_IN_ENDS = (
    ("fim_pad_token_id", ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    ("fim_rep_token_id", ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    ("fim_sep_token_id", ("<|file_sep|>",)),
)
_FILL_IN = (
    (
        ("fim_pre_token_id", "prefix_token_id"),
        (
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ),
    ),
    (
        ("fim_suf_token_id", "suffix_token_id"),
        (
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ),
    ),
    (
        ("fim_mid_token_id", "middle_token_id"),
        (
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ),
    ),
)
HARMONY_FRAME = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def metadata_id(metadata: Mapping[str, Any], name: str, vocab_size: int) -> int | None:
    """`tokenizer.ggml.<name>` if it is there and inside the vocabulary; a value that is no integer is BadModelFile."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadModelFile(f"tokenizer.ggml.{name} is {value!r}, which is no token id")
    return value if 0 <= value < vocab_size else None


def first_known(ids_by_text: Mapping[str, int], names: Iterable[str]) -> int | None:
    """The id of the first of `names` that the vocabulary has."""
    return next((ids_by_text[name] for name in names if name in ids_by_text), None)


def end_of_turn_id(metadata: Mapping[str, Any], ids_by_text: Mapping[str, int], vocab_size: int) -> int | None:
    """The end of a turn: from metadata, else by name."""
    said = metadata_id(metadata, "eot_token_id", vocab_size)
    return said if said is not None else first_known(ids_by_text, _END_OF_TURN)


def end_of_generation_ids(
    metadata: Mapping[str, Any], ids_by_text: Mapping[str, int], vocab_size: int, named: Sequence[int | None]
) -> frozenset[int]:
    """All tokens after which nothing more is to come: `named` (eos, eot, ...), end of message, well-known names."""
    fill_in = [_named_or_known(metadata, ids_by_text, vocab_size, key, texts) for key, texts in _FILL_IN_ENDS]
    message = _named_or_known(metadata, ids_by_text, vocab_size, "eom_token_id", ("<|eom_id|>",))
    known = [ids_by_text[name] for name in _ENDS if name in ids_by_text]
    ids = {token_id for token_id in (*named, message, *fill_in, *known) if token_id is not None}
    return frozenset(ids - _false_ends(ids, ids_by_text))


@dataclass(frozen=True, slots=True)
class FillIn:
    """The tokens between which a model that was trained to fill in reads what is before and behind the gap."""

    prefix_id: int
    suffix_id: int
    middle_id: int

    def prompt(self, before: Sequence[int], behind: Sequence[int]) -> list[int]:
        """Ids after which the middle comes."""
        return [self.prefix_id, *before, self.suffix_id, *behind, self.middle_id]


def fill_in_of(metadata: Mapping[str, Any], ids_by_text: Mapping[str, int], vocab_size: int) -> FillIn | None:
    """From metadata, else by the names everybody uses; None for a model that was not trained for it."""
    found: list[int] = []
    for keys, texts in _FILL_IN:
        said = (metadata_id(metadata, key, vocab_size) for key in keys)
        token_id = next((each for each in said if each is not None), None)
        token_id = first_known(ids_by_text, texts) if token_id is None else token_id
        if token_id is None:
            return None
        found.append(token_id)
    return FillIn(*found) if len(set(found)) == len(found) else None


def _named_or_known(
    metadata: Mapping[str, Any], ids_by_text: Mapping[str, int], vocab_size: int, key: str, texts: Sequence[str]
) -> int | None:
    said = metadata_id(metadata, key, vocab_size)
    return said if said is not None else first_known(ids_by_text, texts)


def _false_ends(ids: set[int], ids_by_text: Mapping[str, int]) -> set[int]:
    """In harmony `<|end|>` closes a message, not the answer; where `<|tool_response>` ends, `</s>` is HTML."""
    has = {name for name in _ENDS if ids_by_text.get(name) in ids}
    false = set()
    calls = bool(has & {"<|call|>", "<|calls|>"})
    if calls and ("<|return|>" in has or "<|flush|>" in has):
        false.add("<|end|>")
    if "<|tool_response>" in has:
        false.add("</s>")
    return {ids_by_text[name] for name in false & has}
