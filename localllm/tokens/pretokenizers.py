# ruff: noqa: RUF001 (the look-alikes are what the expressions are about)
r"""The pre-tokenizers of byte-level BPE, by the name that GGUF files carry in `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizer.json (Oniguruma syntax); where a model publishes none, those of
llama.cpp's table. Each one splits every piece the one before it left.
"""

import logging
from dataclasses import dataclass
from functools import cache

from tokenizers import Regex, pre_tokenizers

logger = logging.getLogger("localllm.tokens")
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before the merges, and the facts that llama.cpp ties to the name.

    `splits` are applied in order. `is_byte_level` says that tokens are spelled in GPT-2's byte alphabet.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    normalize_nfc: bool = False
    is_byte_level: bool = True


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _cl100k(digits: str, *, contraction: str = _CONTRACTION + "|", spaces: str = _SPACES) -> str:
    """The family that began with cl100k_base: contractions, words, digits, punctuation, spaces."""
    return contraction + rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|" + spaces


def _o200k(digits: str, *, contraction: str = _CONTRACTION + "?") -> str:
    """The family that began with o200k_base: words are cut where the case changes."""
    start, upper, lower = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = f"{start}{upper}*{lower}+{contraction}|{start}{upper}+{lower}*{contraction}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_ASCII_PUNCTUATED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    rf"{_ASCII_PUNCTUATED}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
# Escapes where a character has a canonical equivalent: an editor that normalizes would change the class.
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
_PUNCTUATION_RUN = r"[\p{P}$+<=>\^~|`]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_HAN = r"\p{Han}"
_KIMI_START = r"[^\r\n\p{L}\p{N}]?"
_KIMI_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = (
    rf"{_HAN}+|{_KIMI_START}{_KIMI_UPPER}*{_KIMI_LOWER}+{_CONTRACTION}?"
    rf"|{_KIMI_START}{_KIMI_UPPER}+{_KIMI_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_JAIS2_SPACES = r"\s*[\r\n]+|" + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_EXAONE_MOE = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = _CONTRACTION + rf"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_QWEN35 = (
    _CONTRACTION + rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SPARK = rf"{_ASCII_PUNCTUATED}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
_AFMOE_SCRIPTS = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{0E40}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}"
    r"\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}"
)
_YOUTU_SCRIPTS = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[！…“”‘’—：；，\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+"
    r"|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)

_GPT2_CUT = PreTokenizer((_GPT2,))
_SINGLE_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3 = PreTokenizer((_cl100k(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_CL100K = PreTokenizer((_cl100k(r"\p{N}{1,3}"),))
_QWEN2_PLAIN = PreTokenizer((_cl100k(r"\p{N}"),))
_QWEN2_NFC = PreTokenizer((_cl100k(r"\p{N}"),), normalize_nfc=True)
_O200K = PreTokenizer((_o200k(r"\p{N}{1,3}"),))
_V3 = PreTokenizer(_DEEPSEEK_V3)

_GROUPS: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("gpt-2 gpt2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert", _GPT2_CUT),
    ("roberta-bpe jina-v1-en jina-v2-code", _GPT2_CUT),
    ("olmo mpt", PreTokenizer((_GPT2,), normalize_nfc=True)),
    ("jais trillion granite-docling exaone4", _GPT2_CUT),
    ("smollm starcoder refact codeshell exaone minerva-7b mellum2", _SINGLE_DIGITS),
    ("command-r", PreTokenizer((r"\p{N}", _GPT2), normalize_nfc=True)),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3),
    ("dbrx smaug-bpe chatglm-bpe", _CL100K),
    ("glm4 glm5", PreTokenizer((_cl100k(r"\p{N}{1,3}"),), ignore_merges=True)),
    ("qwen2 deepseek-r1-qwen megrez kormo f2llmv2", _QWEN2_NFC),
    ("stablelm2 hunyuan solar-open grok-2", _QWEN2_PLAIN),
    ("qwen35", PreTokenizer((_QWEN35,), normalize_nfc=True)),
    ("ufakzeka", PreTokenizer((_cl100k(r"\p{N}", contraction=""),))),
    ("laguna", PreTokenizer((r"[^\n]+|[\n]+", _cl100k(r"\p{N}")))),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _cl100k(r"\p{N}+")), ignore_merges=True)),
    ("jais-2", PreTokenizer((_cl100k(r"\p{N}{1,3}", spaces=_JAIS2_SPACES + r"|\s{1,2}(?!\S)|\s{1}"),))),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _O200K),
    ("granite-embed-multi-97m", PreTokenizer((_o200k(r"\p{N}{1,3}"),), ignore_merges=True)),
    ("tekken", PreTokenizer((_o200k(r"\p{N}", contraction=""),), ignore_merges=True, add_bos=True)),
    ("tiny_aya cohere2moe", PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _o200k(r"\p{N}{1,3}")))),
    ("deepseek-llm", PreTokenizer(_DEEPSEEK_LLM)),
    ("deepseek-coder", PreTokenizer(_DEEPSEEK_CODER)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _V3),
    ("afmoe", PreTokenizer((r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))", f"[{_AFMOE_SCRIPTS}]+", _DEEPSEEK_V3[2]))),
    ("spark2_5", PreTokenizer((*_DEEPSEEK_V3[:2], _SPARK, r"\p{N}"))),
    ("youtu", PreTokenizer((_YOUTU_SCRIPTS, _o200k(r"\p{N}")), ignore_merges=True)),
    ("chameleon", PreTokenizer(_CHAMELEON, add_bos=True)),
    ("falcon", PreTokenizer((_PUNCTUATION_RUN, _GPT2, "[0-9][0-9][0-9]"))),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    ("superbpe", PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING,))),
    ("seed-coder", PreTokenizer((_SEED,))),
    ("exaone-moe", PreTokenizer((_EXAONE_MOE,))),
    ("bloom gpt3-finnish poro-chat", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
)


def known_names() -> tuple[str, ...]:
    """Every `tokenizer.ggml.pre` this build can cut text for."""
    return tuple(name for names, _ in _GROUPS for name in names.split())


def pretokenizer_named(name: str) -> PreTokenizer | None:
    """The entry of the table, None for a name that is not in it."""
    return next((entry for names, entry in _GROUPS if name in names.split()), None)


def pretokenizer_or_default(name: str) -> tuple[PreTokenizer, tuple[str, ...]]:
    """The entry, or the default one and what a person should know of it (which is logged, too, once for each name)."""
    entry = pretokenizer_named(name or DEFAULT)
    if entry is not None and name:
        return entry, ()
    return _default(), (_warned_of(name),)


def _default() -> PreTokenizer:
    return dict(_GROUPS)[DEFAULT]


@cache
def _warned_of(name: str) -> str:
    known = (
        f"this build does not know its pre-tokenizer {name!r}" if name else "the file does not name its pre-tokenizer"
    )
    note = f"{known}, so text is cut by the default rule and may be cut differently from what the model has learned"
    logger.warning(note)
    return note


def distinct() -> tuple[tuple[str, PreTokenizer], ...]:
    """One name for each different entry."""
    seen: dict[PreTokenizer, str] = {}
    for names, entry in _GROUPS:
        seen.setdefault(entry, names.split()[0])
    return tuple((name, entry) for entry, name in seen.items())


def splitter(entry: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """The entry as the `tokenizers` package runs it: isolated splits, then the byte alphabet."""
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in entry.splits]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def known_splits() -> frozenset[str]:
    """Every expression of the table; a tokenizer.json that uses only these needs no guard against backtracking."""
    return frozenset(expression for _, entry in _GROUPS for expression in entry.splits)
