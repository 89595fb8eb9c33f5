# ruff: noqa: RUF001 (the corpus is made of strange characters)
"""What the tests of this room are made of: published tokenizers and templates, and small ones trained on the spot.

The published ones lie in `shared/data` beside the repository, or below the folder that LOCALLLM_TEST_SHARED names;
tests that need them skip without them.
"""

import json
import lzma
import os
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE

from localllm.tokens.specials import TokenType
from localllm.tokens.tokenizer import Tokenizer

PUBLISHED = ("llama3_1", "gpt4o", "llama2")
PRE_NAMES = {"llama3_1": "llama-bpe", "gpt4o": "gpt-4o", "tiny": "gpt-2"}
_FIRST_SCORED_ID = 259  # in a SentencePiece BPE model the specials and 256 bytes come first, then pieces by rank
_RUN_SCORE = -1e9  # runs of spaces were put into Llama's vocabulary by hand, with the worst of scores
_TINY_TEXT = (
    "the cat sat on the mat, and the other cats' mats weren't there; 'twas 1999 and then 2024",
    "def main(argument):\n    return [argument, argument]\n\n\n",
    "die Katze saß auf der Matte, während es schneite; naïve café, élève",
    "猫が座った。猫は座る。 кошка сидела на коврике  🐈 🐈‍⬛ 👩‍👩‍👧",
)


def shared_data() -> Path:
    """The folder with published tokenizers and templates; skips the test where it is missing."""
    beside = Path(__file__).parents[3] / "shared"
    folder = Path(os.environ.get("LOCALLLM_TEST_SHARED", beside)) / "data"
    if not (folder / "tokenizers").is_dir():
        pytest.skip(f"no published tokenizers and templates in {folder} (LOCALLLM_TEST_SHARED names another `shared`)")
    return folder


@cache
def original_json(name: str) -> str:
    """The published tokenizer.json; that of `tiny` is trained here."""
    if name == "tiny":
        return _trained().to_str()
    return lzma.decompress((shared_data() / "tokenizers" / name / "tokenizer.json.xz").read_bytes()).decode()


@cache
def original(name: str) -> Core:
    """The oracle: the published tokenizer as its own package runs it."""
    return Core.from_str(original_json(name))


def written_folder(name: str, folder: Path) -> Path:
    """The model's folder as one downloads it: tokenizer.json and its configuration."""
    (folder / "tokenizer.json").write_text(original_json(name), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration(name)), encoding="utf-8")
    return folder


def configuration(name: str) -> dict[str, Any]:
    if name == "tiny":
        return {"bos_token": "<s>", "eos_token": "</s>"}
    value: dict[str, Any] = json.loads((shared_data() / "tokenizers" / name / "tokenizer_config.json").read_bytes())
    return value


@cache
def from_folder(name: str) -> Tokenizer:
    """Our tokenizer from the folder one downloads."""
    with TemporaryDirectory() as folder:
        return Tokenizer.from_folder(written_folder(name, Path(folder)))


@cache
def from_metadata(name: str) -> Tokenizer:
    """Our tokenizer from what a GGUF file of this model says."""
    return Tokenizer.from_gguf(gguf_metadata(name))


def gguf_metadata(name: str) -> dict[str, Any]:
    """The `tokenizer.*` keys that a converter writes for this tokenizer.json."""
    spec = json.loads(original_json(name))
    texts, types = _vocabulary(spec)
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types}
    if name == "llama2":
        return metadata | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": _scores(texts)}
    bos, eos = (configuration(name)[f"{end}_token"] for end in ("bos", "eos"))
    return metadata | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_NAMES[name],
        "tokenizer.ggml.merges": [_line(merge) for merge in spec["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": texts.index(bos),
        "tokenizer.ggml.eos_token_id": texts.index(eos),
        "tokenizer.ggml.add_bos_token": name == "llama3_1",
    }


def _scores(texts: list[str]) -> list[float]:
    is_run = [len(text) > 1 and set(text) == {"\u2581"} for text in texts]
    return [_RUN_SCORE if run else float(min(0, _FIRST_SCORED_ID - place)) for place, run in enumerate(is_run)]


def _line(merge: str | list[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _vocabulary(spec: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids that nothing is said of get a placeholder, as converters give them."""
    known: dict[int, tuple[str, TokenType]] = {}
    has_bytes = spec["model"]["byte_fallback"]
    for text, token_id in spec["model"]["vocab"].items():
        is_byte = has_bytes and re.fullmatch("<0x[0-9A-F]{2}>", text)
        known[token_id] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in spec["added_tokens"]:
        known[added["id"]] = added["content"], TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if spec["model"]["unk_token"]:
        known[0] = known[0][0], TokenType.UNKNOWN
    rows = [known.get(i, (f"[PAD{i}]", TokenType.UNUSED)) for i in range(max(known) + 1)]
    return [text for text, _ in rows], [int(kind) for _, kind in rows]


def _trained() -> Core:
    """A byte-level BPE of some hundred tokens: a tag that is shown, ends that are not."""
    core = Core(BPE())
    # no regex of ours: the oracle is the package's own GPT-2 split
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|eot_id|>"],
    )
    core.train_from_iterator(_TINY_TEXT * 3, trainer)
    core.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return core


CORPUS = (
    "",
    " ",
    "a",
    "Hello, world!",
    "  two spaces before, two after  ",
    "the cat sat on the mat and the other cats weren't there",
    "I'm you're he'll they've we'd it's DON'T O'Neill 'tis rock'n'roll 'S 'T",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² ٣٤٥ १२३ Ⅷ",
    "naïve café Ångström cafe\u0301 A\u030a \u1e9b\u0323 \ufb01 ﷺ ẞ İ",
    "你好，世界。今天天气不错！",
    "吾輩は猫である。名前はまだ無い。カタカナもﾊﾝｶｸも",
    "안녕하세요 세계 \u1112\u1161\u11ab",
    "Привет, мир! Ещё не вечер.",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "नमस्ते दुनिया ไม่เป็นไร ສະບາຍດີ ကျေးဇူး",
    "👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 🐈‍⬛ ❤️ ☺︎ 1️⃣",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𓀀𓂀 \U0010ffff \U000e0001",
    "def f(x):\n\treturn {\n\t\t'a': x[0]**2,  # comment\n\t}\n\n\nif __name__ == '__main__':\n    print(f([3]))\n",
    '<div class="a b">&amp;</div><!-- x --> https://example.org/a/b?c=d&e=%20#f',
    "SELECT * FROM t WHERE a<>b AND c!=d; -- ok\r\n\r\n/* // */ x->y::z<T>&&!w",
    "CamelCaseWord snake_case_word SCREAMING_CASE kebab-case mixedCASEWord iPhone",
    "a\nb\r\nc\rd\n\n\n\te\t\t f \n \n  g\u00a0h\u2003i\u3000j\u200bk\ufeffl\u2028m\u0085n",
    " " * 3 + "x" + " " * 17 + "y" + " " * 129,
    "\n" * 40 + "\t" * 33 + "\r\n" * 9 + " \n" * 9,
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f\x80\x9f",
    "\u2581 \u2581\u2581a ▁b Ġ Ċ ĠĠ â€™ Ã©",
    "\ufffd\ufffe\uffff\ue000",
    "<0x41> <0x0A> <unk> [PAD7] <|nope|> <s </s",
    "....... !!! ??? ,,;; ((())) $$ €5 ¥ £ == === => <= ~~ ```python\n```",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 3,
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳",
)
"""Text of many kinds, none of which spells a special token of the tokenizers above."""
