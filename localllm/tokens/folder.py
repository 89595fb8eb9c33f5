"""A Hugging Face folder (tokenizer.json and its neighbours, or older files) to a `BuiltTokenizer`.

Refuses folders whose tokenizer exists only as code.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.tokens.build import build_from_gguf
from localllm.tokens.older import OLDER_FILES, older_metadata
from localllm.tokens.pretokenizers import known_splits
from localllm.tokens.published import (
    Added,
    added_tokens,
    chat_templates,
    configuration,
    end_ids,
    read_bounded,
    role_ids,
)
from localllm.tokens.specials import SpecialTokens, TokenType, end_of_generation_ids, end_of_turn_id
from localllm.tokens.unigram import without_control
from localllm.tokens.vocabulary import BuiltTokenizer
from localllm.tokens.wordpiece import CONTINUES, as_in_gguf

_MAX_TOKENIZER_BYTES = 256 << 20
_RUN_KINDS = ("BPE", "Unigram", "WordPiece")


def is_tokenizer_file(path: str | Path) -> bool:
    """True for a file that is a tokenizer by its name: tokenizer.json, tokenizer.model, vocab.json, *.tiktoken."""
    name = Path(path).name
    return name == "tokenizer.json" or any(Path(name).match(pattern) for pattern in OLDER_FILES)


def build_from_folder(path: str | Path) -> BuiltTokenizer:
    """Build from a folder or one of its tokenizer files; files beside it say what is special and hold the templates.

    tokenizer.json comes first, then tokenizer.model, vocab.json with merges.txt, and *.tiktoken.
    Raises UnsupportedModel or BadModelFile.
    """
    chosen = Path(path)
    folder = chosen if chosen.is_dir() else chosen.parent
    file = folder / "tokenizer.json" if chosen.is_dir() else chosen
    if file.name == "tokenizer.json" and file.is_file():
        return _from_json(file, folder)
    metadata = older_metadata(folder, None if chosen.is_dir() else chosen)
    if metadata is None:
        raise UnsupportedModel(
            f"{folder} has no tokenizer.json",
            hint=f"this build reads {', '.join(OLDER_FILES)}, too, but no tokenizer that is code",
        )
    built = build_from_gguf(metadata)
    special = built.special
    return replace(built, special=replace(special, eog_ids=special.eog_ids | set(end_ids(folder, built.vocab_size))))


def _from_json(file: Path, folder: Path) -> BuiltTokenizer:
    core = _read_core(file)
    config = configuration(folder)
    _add_missing(core, added_tokens(folder, config))
    texts, types = _vocabulary(core)
    special = _special_tokens(core, texts, types, config, folder)
    for token_id in special.eog_ids:
        types[token_id] = int(TokenType.CONTROL)
    is_byte_level = _has(core.pre_tokenizer, "ByteLevel") or _has(core.decoder, "ByteLevel")
    is_wordpiece = type(core.model).__name__ == "WordPiece"
    return BuiltTokenizer(
        core,
        _spelled_as_in_gguf(texts, types) if is_wordpiece else texts,
        types,
        special,
        is_byte_level,
        adds_space_prefix=is_wordpiece or (not is_byte_level and _strips_first_space(core)),
        is_trusted_pattern=_is_trusted(core),
        chat_templates=chat_templates(folder, config),
        plain_core=_plain_core(core, texts, types),
    )


def _read_core(file: Path) -> Core:
    raw = read_bounded(file, _MAX_TOKENIZER_BYTES).removeprefix(BOM_UTF8)  # the package stumbles over the mark
    try:
        core = Core.from_buffer(raw)
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"{file} is no tokenizer: {error}") from error
    kind = type(core.model).__name__
    if kind not in _RUN_KINDS:
        raise UnsupportedModel(
            f"this build has no tokenizer of the kind {kind!r}", hint=f"it runs {', '.join(_RUN_KINDS)}"
        )
    if kind == "WordPiece" and core.model.continuing_subword_prefix != CONTINUES:
        raise UnsupportedModel("this build runs WordPiece only where `##` marks that a word goes on")
    core.no_truncation()
    core.no_padding()
    return core


def _add_missing(core: Core, added: Mapping[int, Added]) -> None:
    """Tokens that only the configuration names, where their ids come next, as transformers adds them."""
    for token_id, token in sorted(added.items()):
        if token_id == core.get_vocab_size() and core.token_to_id(token.text) is None:
            core.add_tokens([AddedToken(token.text, special=token.is_special, normalized=False)])


def _vocabulary(core: Core) -> tuple[list[str], list[int]]:
    ids_by_text = core.get_vocab(with_added_tokens=True)
    size = max(ids_by_text.values(), default=-1) + 1
    if not 0 < size <= 4 * len(ids_by_text) + 1024:
        raise BadModelFile(f"tokenizer.json has {len(ids_by_text)} tokens with ids up to {size - 1}")
    texts, types = [""] * size, [int(TokenType.UNUSED)] * size
    has_bytes = _has_byte_fallback(core)
    for text, token_id in ids_by_text.items():
        texts[token_id] = text
        types[token_id] = int(TokenType.BYTE if has_bytes and _is_byte_name(text) else TokenType.NORMAL)
    for token_id, added in core.get_added_tokens_decoder().items():
        types[token_id] = int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    return texts, types


def _has_byte_fallback(core: Core) -> bool:
    """Only a BPE model says so by itself; a Unigram one says it in its state."""
    if type(core.model).__name__ == "Unigram":
        return bool(state_of(core.model).get("byte_fallback"))
    return bool(getattr(core.model, "byte_fallback", False))


def _is_byte_name(text: str) -> bool:
    return re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) is not None


def _spelled_as_in_gguf(texts: list[str], types: list[int]) -> list[str]:
    return [as_in_gguf(text) if kind == TokenType.NORMAL else text for text, kind in zip(texts, types, strict=True)]


def _plain_core(core: Core, texts: list[str], types: list[int]) -> Core | None:
    """For Unigram, which finds control tokens as pieces: a twin that does not have them in its vocabulary."""
    if type(core.model).__name__ != "Unigram":
        return None
    state = json.loads(core.to_str())
    hidden = without_control(texts, types)
    state["model"]["vocab"] = [[hidden[place], score] for place, (_, score) in enumerate(state["model"]["vocab"])]
    # all of them stay: without some of them, the package would give their ids to those that follow
    state["added_tokens"] = [
        {**token, "content": hidden[token["id"]], "special": False} if token["special"] else token
        for token in state["added_tokens"]
    ]
    state["post_processor"] = None  # it names tokens that are not there any more
    return Core.from_str(json.dumps(state))


def state_of(component: Any) -> Any:
    """A component as its JSON; the package offers no other way to look inside."""
    return json.loads(component.__getstate__()) if component is not None else None


def nodes(state: Any) -> Iterator[dict[str, Any]]:
    """Every object in a piece of JSON."""
    if isinstance(state, dict):
        yield state
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    for child in children:
        yield from nodes(child)


def _has(component: Any, kind: str) -> bool:
    return any(node.get("type") == kind for node in nodes(state_of(component)))


def _strips_first_space(core: Core) -> bool:
    found = list(nodes(state_of(core.decoder)))
    strips = any(node.get("type") == "Strip" and node.get("start") for node in found)
    return strips or any(node.get("type") == "Metaspace" and node.get("prepend_scheme") != "never" for node in found)


def _is_trusted(core: Core) -> bool:
    """True if every split expression is one of our table's, or so simple that it cannot backtrack."""
    found = [*nodes(state_of(core.pre_tokenizer)), *nodes(state_of(core.normalizer))]
    known = known_splits() | {" {2,}"}
    return all(node["Regex"] in known for node in found if "Regex" in node)


def _special_tokens(
    core: Core, texts: list[str], types: list[int], config: Mapping[str, Any], folder: Path
) -> SpecialTokens:
    ids_by_text = {text: token_id for token_id, text in enumerate(texts) if text}
    marks = {text: one for text, one in ids_by_text.items() if _is_mark(text, types[one])}
    roles = role_ids(config, ids_by_text)
    bos, eos = roles.get("bos"), roles.get("eos")
    eot = end_of_turn_id({}, marks, len(texts))
    prefix, suffix = _frame(core)
    suffix = _with_wish(suffix, eos, config.get("add_eos_token"), at_end=True)
    return SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        pad_id=roles.get("pad"),
        unk_id=roles.get("unk"),
        sep_id=roles.get("sep"),
        prefix_ids=_with_wish(prefix, bos, config.get("add_bos_token"), at_end=False),
        suffix_ids=suffix,
        between_ids=_between(core, suffix),
        eog_ids=end_of_generation_ids({}, marks, len(texts), (eos, eot, *end_ids(folder, len(texts)))),
    )


def _is_mark(text: str, kind: int) -> bool:
    """True for an added token that may end something by its name; `</s>` that people see is a tag of HTML."""
    return kind == TokenType.CONTROL or (kind == TokenType.USER_DEFINED and text != "</s>")


def _frame(core: Core) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text, found by asking it."""
    try:
        bare = core.encode("a", add_special_tokens=False).ids
        framed = core.encode("a", add_special_tokens=True).ids
    except BaseException as error:  # a panic in the package is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BadModelFile(f"tokenizer.json cannot read even one letter: {error}") from error
        raise
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return tuple(framed[:start]), tuple(framed[start + len(bare) :])
    return (), ()


def _between(core: Core, suffix: tuple[int, ...]) -> tuple[int, ...]:
    """What the post-processor puts between the texts of a pair; else what ends one."""
    bare = core.encode("a", add_special_tokens=False).ids
    pair = core.encode("a", "a", add_special_tokens=True)
    places = [index for index, number in enumerate(pair.sequence_ids) if number is not None]
    firsts, seconds = places[: len(bare)], places[len(bare) :]
    if not firsts or len(seconds) != len(bare):
        return suffix
    return tuple(pair.ids[firsts[-1] + 1 : seconds[0]])


def _with_wish(frame: tuple[int, ...], token_id: int | None, wish: object, *, at_end: bool) -> tuple[int, ...]:
    """`add_bos_token` and `add_eos_token` in tokenizer_config.json overrule the post-processor."""
    if token_id is None or not isinstance(wish, bool) or wish == (token_id in frame):
        return frame
    if not wish:
        return tuple(one for one in frame if one != token_id)
    return (*frame, token_id) if at_end else (token_id, *frame)
