"""A published tokenizer as the `tokenizer.*` metadata of a GGUF file, in the words that llama.cpp's converter uses.

The pre-tokenizer's name is found by behaviour: that of our table which cuts a probe text as the tokenizer itself does.
What was written is read back and compared; a tokenizer that GGUF has no words for is refused, never approximated.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import normalizers, pre_tokenizers

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.gguf_metadata import ValueType
from localllm.tokens.folder import build_from_folder, nodes, state_of
from localllm.tokens.older import older_metadata
from localllm.tokens.pretokenizers import PreTokenizer, distinct, splitter
from localllm.tokens.probe import PROBES
from localllm.tokens.published import configuration, role_ids
from localllm.tokens.specials import SpecialTokens, TokenType, end_of_generation_ids
from localllm.tokens.spm import merges_from_scores, scores_from_merges
from localllm.tokens.tokenizer import Tokenizer, as_refusal
from localllm.tokens.vocabulary import (
    EATS_LEFT_KEY,
    EATS_RIGHT_KEY,
    METASPACE_KEY,
    SPACE_MARK,
    BuiltTokenizer,
    ending_names,
)

_ROLE_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
_BAD_SCORE = -10000.0  # as converters give to places that hold no token
_K = "tokenizer.ggml."


def gguf_tokenizer(folder: str | Path, *, vocab_size: int | None = None) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a folder with a tokenizer, ready for `write_gguf` and for `Tokenizer.from_gguf`.

    A few keys begin with `localllm.tokenizer.`, for what GGUF has no key; they belong into the file, too.

    vocab_size: rows of the model's embedding; the vocabulary is filled up to it with unused tokens `[PADn]`.
    Raises UnsupportedModel for a tokenizer that GGUF cannot say, naming what comes closest, or BadModelFile.
    """
    folder = Path(folder)
    built = build_from_folder(folder)
    has_json = (folder / "tokenizer.json").is_file()
    metadata = _written(built, folder) if has_json else older_metadata(folder) or {}
    _fill_up(metadata, vocab_size)
    _check_same(Tokenizer(built), Tokenizer.from_gguf(metadata))
    return metadata


def _written(built: BuiltTokenizer, folder: Path) -> dict[str, Any]:
    kind = type(built.core.model).__name__
    model = state_of(built.core.model)
    if kind == "WordPiece":
        metadata = _wordpiece(built)
    elif kind == "Unigram":
        metadata = _unigram(built, model)
    elif built.is_byte_level:
        metadata = _byte_level(built, model)
    else:
        metadata = _spaced(built, model)
    return (
        metadata
        | _vocabulary(built)
        | _roles(built, folder)
        | _frame(built.special)
        | _sides(built)
        | _templates(built)
    )


# --- kinds


def _byte_level(built: BuiltTokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _K + "model": "gpt2",
        _K + "pre": pretokenizer_of(built.core, bool(model.get("ignore_merges"))),
        _K + "merges": [" ".join(pair) for pair in _pairs(model)],
    }


def _spaced(built: BuiltTokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    """BPE in which U+2581 stands for a space: by scores where its merges follow from scores, else by its merges."""
    texts, merges = list(built.texts), _pairs(model)
    scores = scores_from_merges(texts, merges)
    prefixes = any(node.get("type") == "Prepend" or _prefixes(node) for node in _text_steps(built))
    if set(merges_from_scores(texts, _types(built), scores)) == set(merges):
        return {
            _K + "model": "llama",
            _K + "pre": "default",
            _K + "scores": scores,
            _K + "add_space_prefix": prefixes,
            **_metaspace(built),
        }
    if prefixes:
        raise UnsupportedModel(
            "GGUF has no words for this tokenizer: merges that follow from no scores, and a space before each text",
            hint="the closest are the kinds 'llama' and 'gemma4'",
        )
    return {_K + "model": "gemma4", _K + "pre": "gemma4", _K + "merges": [" ".join(pair) for pair in merges]}


def _metaspace(built: BuiltTokenizer) -> dict[str, Any]:
    """For our own reader: whether a text that begins with a space gets one more, and one behind a special token any."""
    schemes = [node["prepend_scheme"] for node in _text_steps(built) if _prefixes(node) and not node.get("split")]
    return {METASPACE_KEY: schemes[0]} if schemes else {}


def _unigram(built: BuiltTokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    found = _text_steps(built)
    charsmap = next((base64.b64decode(node["precompiled_charsmap"]) for node in found if _has_charsmap(node)), b"")
    merges_spaces = any(node.get("type") == "WhitespaceSplit" or node.get("Regex") == " {2,}" for node in found)
    scores = [float(score) for _, score in model["vocab"]]
    metadata = {
        _K + "model": "t5",
        _K + "pre": "default",
        _K + "scores": scores + [_BAD_SCORE] * (built.vocab_size - len(scores)),
        _K + "add_space_prefix": any(_prefixes(node) for node in found),
        _K + "remove_extra_whitespaces": merges_spaces,
    }
    if charsmap:
        metadata[_K + "precompiled_charsmap"] = (ValueType.UINT8, list(charsmap))
    return metadata


def _text_steps(built: BuiltTokenizer) -> list[dict[str, Any]]:
    """What is done with a text before the model sees it."""
    return [*nodes(state_of(built.core.normalizer)), *nodes(state_of(built.core.pre_tokenizer))]


def _prefixes(node: Mapping[str, Any]) -> bool:
    return node.get("type") == "Metaspace" and node.get("prepend_scheme") != "never"


def _has_charsmap(node: Mapping[str, Any]) -> bool:
    return isinstance(node.get("precompiled_charsmap"), str)


def _wordpiece(built: BuiltTokenizer) -> dict[str, Any]:
    found = list(nodes(state_of(built.core.normalizer)))
    bert = next((node for node in found if node.get("type") == "BertNormalizer"), {})
    lowercase = bool(bert.get("lowercase", any(node.get("type") == "Lowercase" for node in found)))
    strips = bert.get("strip_accents")
    if len(set(built.texts)) < built.vocab_size:
        raise UnsupportedModel(f"GGUF has no words for this tokenizer: it has pieces with {SPACE_MARK!r} in them")
    return {
        _K + "model": "bert",
        _K + "pre": "default",
        _K + "normalizer.lowercase": lowercase,
        _K + "normalizer.strip_accents": lowercase if strips is None else bool(strips),
    }


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    split = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if not split or any(" " in part[:-1] for pair in split for part in pair):
        raise UnsupportedModel("GGUF has no words for this tokenizer: it has no merges, or merges of spaces")
    return [(left, right) for left, right in split]


# --- what all kinds have


def _vocabulary(built: BuiltTokenizer) -> dict[str, Any]:
    types = _types(built)
    texts = [
        _stored(text, kind, built) or f"[PAD{place}]"
        for place, (text, kind) in enumerate(zip(built.texts, types, strict=True))
    ]
    return {_K + "tokens": texts, _K + "token_type": types}


def _types(built: BuiltTokenizer) -> list[int]:
    """The types; what a vocabulary with an unknown token calls so is UNKNOWN, which readers rely on."""
    types = [int(kind) for kind in built.types]
    unk = built.special.unk_id
    if unk is not None and not built.is_byte_level:
        types[unk] = int(TokenType.UNKNOWN)
    return types


def _stored(text: str, kind: int, built: BuiltTokenizer) -> str:
    """Readers look for added tokens in the text as it comes, where a space is a space."""
    is_raw = kind == TokenType.USER_DEFINED and not built.is_byte_level
    return text.replace(SPACE_MARK, " ") if is_raw else text


def _roles(built: BuiltTokenizer, folder: Path) -> dict[str, Any]:
    ids_by_text = {text: token_id for token_id, text in enumerate(built.texts) if text}
    roles = role_ids(configuration(folder), ids_by_text)
    ids = {f"{_K}{_ROLE_KEYS[role]}_token_id": one for role, one in roles.items() if role in _ROLE_KEYS}
    special = built.special
    if special.eot_id is not None and special.eot_id != special.eos_id:
        ids[_K + "eot_token_id"] = special.eot_id
    more = sorted(special.eog_ids - _ends_without(ids, ids_by_text, built))
    return ids | ({_K + "eom_token_id": more[0]} if more else {})


def _ends_without(ids: Mapping[str, int], ids_by_text: Mapping[str, int], built: BuiltTokenizer) -> frozenset[int]:
    """The ends of a generation that a reader finds by itself."""
    named = (ids.get(_K + "eos_token_id"), ids.get(_K + "eot_token_id"))
    return end_of_generation_ids({}, ending_names(ids_by_text, _types(built)), built.vocab_size, named)


def _frame(special: SpecialTokens) -> dict[str, Any]:
    suffix = special.suffix_ids
    return {
        _K + "add_bos_token": special.bos_id is not None and special.prefix_ids == (special.bos_id,),
        _K + "add_eos_token": special.eos_id is not None and suffix == (special.eos_id,),
        **_between(special),
    }


def _between(special: SpecialTokens) -> dict[str, Any]:
    """Whether another mark begins the second text of a pair, where texts have an end at all."""
    if not special.suffix_ids or special.between_ids[:1] != special.suffix_ids:
        return {}
    return {_K + "add_sep_token": len(special.between_ids) == 2}


def _sides(built: BuiltTokenizer) -> dict[str, Any]:
    """Tokens that eat the spaces beside them, for which only our own files have words."""
    added = sorted(built.core.get_added_tokens_decoder().items())
    ids = {
        EATS_LEFT_KEY: [one for one, token in added if token.lstrip],
        EATS_RIGHT_KEY: [one for one, token in added if token.rstrip],
    }
    return {key: values for key, values in ids.items() if values}


def _templates(built: BuiltTokenizer) -> dict[str, Any]:
    named = {name: text for name, text in sorted(built.chat_templates.items()) if name != "default"}
    templates: dict[str, Any] = {}
    if "default" in built.chat_templates:
        templates["tokenizer.chat_template"] = built.chat_templates["default"]
    if named:
        templates["tokenizer.chat_templates"] = list(named)
    return templates | {f"tokenizer.chat_template.{name}": text for name, text in named.items()}


def _fill_up(metadata: dict[str, Any], vocab_size: int | None) -> None:
    """Unused tokens up to the model's size; BadModelFile where the model has fewer rows than there are tokens."""
    tokens = metadata[_K + "tokens"]
    missing = (len(tokens) if vocab_size is None else vocab_size) - len(tokens)
    if missing < 0:
        raise BadModelFile(f"the tokenizer has {len(tokens)} tokens, but the model only {vocab_size}")
    tokens += [f"[PAD{place}]" for place in range(len(tokens), len(tokens) + missing)]
    metadata[_K + "token_type"] += [int(TokenType.UNUSED)] * missing
    if _K + "scores" in metadata:
        metadata[_K + "scores"] += [_BAD_SCORE] * missing


# --- found by behaviour


def pretokenizer_of(core: Core, ignores_merges: bool) -> str:
    """The name in our table of what cuts text as this tokenizer does. UnsupportedModel, with the closest, for none."""
    wanted = _cuts(core)
    distances = {name: _distance(wanted, _cuts_of(entry)) for name, entry in distinct()}
    same = [(name, entry) for name, entry in distinct() if distances[name] == 0]
    exact = [name for name, entry in same if entry.ignore_merges == ignores_merges]
    if exact:
        return exact[0]
    near = [name for name, entry in same if _reads_pieces_alike(core, entry)]
    if near:
        return near[0]
    closest = min(distances, key=lambda name: distances[name])
    raise UnsupportedModel(
        "this tokenizer cuts text as no pre-tokenizer does that GGUF has a name for",
        hint=f"the closest is {closest!r}, which differs on {max(distances[closest], 1)} of {len(PROBES)} probe texts",
    )


def _cuts(core: Core) -> list[list[str]]:
    """The probe texts cut into words, spelled in the byte alphabet."""
    normalize = core.normalizer.normalize_str if core.normalizer is not None else str
    cut = core.pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    try:
        return [[word for word, _ in cut.pre_tokenize_str(normalize(text))] for text in PROBES]
    except BaseException as error:
        raise as_refusal(error) from error


def _cuts_of(entry: PreTokenizer) -> list[list[str]]:
    normalize = normalizers.NFC().normalize_str if entry.normalize_nfc else str
    cut = splitter(entry)
    return [[word for word, _ in cut.pre_tokenize_str(normalize(text))] for text in PROBES]


def _distance(wanted: list[list[str]], found: list[list[str]]) -> int:
    return sum(one != other for one, other in zip(wanted, found, strict=True))


def _reads_pieces_alike(core: Core, entry: PreTokenizer) -> bool:
    """True if it makes no difference here whether words that are tokens skip the merges: all are reached by merging."""
    state = json.loads(core.to_str())
    texts = [text for text, _ in sorted(state["model"]["vocab"].items(), key=lambda item: item[1])]
    state |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    ids = []
    for ignores in (True, False):
        state["model"]["ignore_merges"] = ignores
        ids.append([one.ids for one in Core.from_str(json.dumps(state)).encode_batch_fast(texts)])
    return ids[0] == ids[1]


def _check_same(published: Tokenizer, written: Tokenizer) -> None:
    """Both read the probe texts alike, or UnsupportedModel."""
    ids = [[tokenizer.encode(text, parse_special=False) for text in PROBES] for tokenizer in (published, written)]
    different = [text for text, one, other in zip(PROBES, *ids, strict=True) if one != other]
    if different:
        raise UnsupportedModel(
            f"GGUF has no words for this tokenizer: as {written.kind!r} it would read {different[0][:40]!r} otherwise",
            hint=f"{len(different)} of {len(PROBES)} probe texts differ",
        )
