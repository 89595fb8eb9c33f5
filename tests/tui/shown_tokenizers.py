# ruff: noqa: RUF001 (the text has letters of several alphabets)
"""Tokenizers made by hand from how they are to split one text: the same in every run, and good to look at."""

from collections.abc import Sequence
from functools import cache

from localllm.tokens.alphabet import byte_alphabet
from localllm.tokens.tokenizer import Tokenizer

TEXT = "The tokenizer splits unbelievably naïve text: 1234567 €, Привет,\n    and return x**2"
_END = ",\n|   | and| return| x|**|2"
SPLITS = {
    "alder": "The| token|izer| splits| unbelie|vably| na|ï|ve| text|:| |1|2|3|4|5|6|7| €|,| При|вет|" + _END,
    "birch": "The| token|izer| splits| unbelievably| na|ï|ve| text|:| |123|456|7| €|,| При|вет|" + _END,
    "cedar": "The| tokenizer| splits| unbelie|v|ably| na|ï|ve| text|:| |123|456|7| €|,| Привет|" + _END,
}
PIECES = (
    "the| token|izer| splits| un|bel|ie|va|bly| naive| text| :| 123|45|6|7| €| ,| п|р|и|в|е|т| and| return| x| *| 2"
)
TITLES = {"alder": "Alder", "birch": "Birch", "cedar": "Cedar", "maple": "Maple"}
_PRE = {"alder": "qwen2", "birch": "llama-bpe", "cedar": "llama-bpe"}
_UNBELIEVABLY = {
    "alder": "l y,u n,e l,i e,Ġ un,a b,ab ly,b el,v ably,bel ie,Ġun belie",
    "birch": "l y,u n,e l,i e,Ġ un,a b,ab ly,b el,v ably,bel ie,Ġun belie,Ġunbelie vably",
    "cedar": "l y,u n,e l,i e,Ġ un,a b,ab ly,b el,bel ie,Ġun belie",
}


@cache
def by_hand(name: str) -> Tokenizer:
    """Byte-level BPE whose merges are those of one word, then the ones that make each of the other pieces."""
    spelling = {byte: letter for letter, byte in byte_alphabet().items()}
    letters = [spelling[byte] for byte in range(256)]
    merges = [tuple(merge.split(" ")) for merge in _UNBELIEVABLY[name].split(",")]
    for piece in SPLITS[name].split("|"):
        symbols = [letters[byte] for byte in piece.encode()]
        if not piece.startswith(" unbel") and piece not in ("v", "vably", "ably"):
            merges += [("".join(symbols[:place]), symbols[place]) for place in range(1, len(symbols))]
    merges = list(dict.fromkeys(merges))
    made = list(dict.fromkeys("".join(merge) for merge in merges))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*letters, *made]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _PRE[name],
            "tokenizer.ggml.tokens": [*tokens, *special],
            "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(special),
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
            "tokenizer.ggml.eos_token_id": len(tokens) + 2,
            "tokenizer.ggml.add_bos_token": False,
        }
    )


@cache
def maple() -> Tokenizer:
    """WordPiece."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = PIECES.split("|")
    starts = [piece.removeprefix(" ") for piece in pieces if piece.startswith(" ") or piece == "the"]
    parts = [piece for piece in pieces if not piece.startswith(" ") and piece != "the"]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": [*special, *("\u2581" + start for start in starts), *dict.fromkeys(parts)],
            "tokenizer.ggml.token_type": [3] * len(special) + [1] * (len(starts) + len(dict.fromkeys(parts))),
            "tokenizer.ggml.unknown_token_id": 1,
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
        }
    )


def all_four() -> dict[str, Tokenizer]:
    return {**{name: by_hand(name) for name in SPLITS}, "maple": maple()}


def pieces_of(tokenizer: Tokenizer, text: str) -> Sequence[str]:
    return [tokenizer.piece(one) for one in tokenizer.encode(text, add_special=False)]
