"""A Hugging Face folder (tokenizer.json and its neighbours) to a `BuiltTokenizer`.

Refuses WordPiece, and folders whose tokenizer exists only as tokenizer.model or as code.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.tokens.build import BuiltTokenizer
from localllm.tokens.pretokenizers import known_splits
from localllm.tokens.specials import SpecialTokens, TokenType, end_of_generation_ids, end_of_turn_id

_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 16 << 20
_RUN_KINDS = ("BPE", "Unigram")


def build_from_folder(path: str | Path) -> BuiltTokenizer:
    """Build from tokenizer.json, with what the configuration files beside it say of special tokens and templates.

    Raises UnsupportedModel or BadModelFile.
    """
    folder = Path(path)
    core = _read_core(folder / "tokenizer.json")
    config = _special_map(folder) | _read_json(folder / "tokenizer_config.json")
    texts, types = _vocabulary(core)
    is_byte_level = _has(core.pre_tokenizer, "ByteLevel") or _has(core.decoder, "ByteLevel")
    return BuiltTokenizer(
        core,
        texts,
        types,
        _special_tokens(core, texts, config, _read_json(folder / "generation_config.json")),
        is_byte_level,
        adds_space_prefix=not is_byte_level and _strips_first_space(core),
        is_trusted_pattern=_is_trusted(core),
        chat_templates=_templates(folder, config),
    )


def _read_core(file: Path) -> Core:
    if not file.is_file():
        raise UnsupportedModel(
            f"{file.parent} has no tokenizer.json", hint="this build cannot read tokenizer.model or tokenizer code"
        )
    if file.stat().st_size > _MAX_TOKENIZER_BYTES:
        raise BadModelFile(f"{file} is larger than any real tokenizer")
    try:
        core = Core.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"{file} is no tokenizer: {error}") from error
    kind = type(core.model).__name__
    if kind not in _RUN_KINDS:
        raise UnsupportedModel(f"this build has no tokenizer of the kind {kind!r}", hint="it runs BPE and Unigram")
    core.no_truncation()
    core.no_padding()
    return core


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is missing."""
    if not file.is_file():
        return {}
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise BadModelFile(f"{file} is larger than any real configuration")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadModelFile(f"{file} holds no object")
    return value


def _special_map(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "special_tokens_map.json")


def _vocabulary(core: Core) -> tuple[list[str], list[int]]:
    ids_by_text = core.get_vocab(with_added_tokens=True)
    size = max(ids_by_text.values(), default=-1) + 1
    if not 0 < size <= 4 * len(ids_by_text) + 1024:
        raise BadModelFile(f"tokenizer.json has {len(ids_by_text)} tokens with ids up to {size - 1}")
    texts, types = [""] * size, [int(TokenType.UNUSED)] * size
    has_bytes = getattr(core.model, "byte_fallback", False)
    for text, token_id in ids_by_text.items():
        texts[token_id] = text
        types[token_id] = int(TokenType.BYTE if has_bytes and _is_byte_name(text) else TokenType.NORMAL)
    for token_id, added in core.get_added_tokens_decoder().items():
        types[token_id] = int(TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    return texts, types


def _is_byte_name(text: str) -> bool:
    return re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) is not None


def _state(component: Any) -> Any:
    """A component as its JSON; the package offers no other way to look inside."""
    return json.loads(component.__getstate__()) if component is not None else None


def _nodes(state: Any) -> Iterator[dict[str, Any]]:
    if isinstance(state, dict):
        yield state
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    for child in children:
        yield from _nodes(child)


def _has(component: Any, kind: str) -> bool:
    return any(node.get("type") == kind for node in _nodes(_state(component)))


def _strips_first_space(core: Core) -> bool:
    nodes = list(_nodes(_state(core.decoder)))
    strips = any(node.get("type") == "Strip" and node.get("start") for node in nodes)
    return strips or any(node.get("type") == "Metaspace" and node.get("prepend_scheme") != "never" for node in nodes)


def _is_trusted(core: Core) -> bool:
    """True if every split expression is one of our table's."""
    nodes = [*_nodes(_state(core.pre_tokenizer)), *_nodes(_state(core.normalizer))]
    return all(node["Regex"] in known_splits() for node in nodes if "Regex" in node)


def _special_tokens(
    core: Core, texts: list[str], config: Mapping[str, Any], generation: Mapping[str, Any]
) -> SpecialTokens:
    ids_by_text = {text: token_id for token_id, text in enumerate(texts) if text}
    bos, eos, pad, unk = (_configured_id(config, ids_by_text, name) for name in ("bos", "eos", "pad", "unk"))
    eot = end_of_turn_id({}, ids_by_text, len(texts))
    prefix, suffix = _frame(core)
    said = generation.get("eos_token_id")
    ends = [one for one in (said if isinstance(said, list) else [said]) if isinstance(one, int) and one < len(texts)]
    return SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        pad_id=pad,
        unk_id=unk,
        prefix_ids=_with_wish(prefix, bos, config.get("add_bos_token"), at_end=False),
        suffix_ids=_with_wish(suffix, eos, config.get("add_eos_token"), at_end=True),
        eog_ids=end_of_generation_ids({}, ids_by_text, len(texts), (eos, eot, *ends)),
    )


def _configured_id(config: Mapping[str, Any], ids_by_text: Mapping[str, int], name: str) -> int | None:
    token = config.get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return ids_by_text.get(text) if isinstance(text, str) else None


def _frame(core: Core) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text, found by asking it."""
    bare = core.encode("a", add_special_tokens=False).ids
    framed = core.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return tuple(framed[:start]), tuple(framed[start + len(bare) :])
    return (), ()


def _with_wish(frame: tuple[int, ...], token_id: int | None, wish: object, *, at_end: bool) -> tuple[int, ...]:
    """`add_bos_token` and `add_eos_token` in tokenizer_config.json overrule the post-processor."""
    if token_id is None or not isinstance(wish, bool) or wish == (token_id in frame):
        return frame
    if not wish:
        return tuple(one for one in frame if one != token_id)
    return (*frame, token_id) if at_end else (token_id, *frame)


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """By name; `default` is the one used without asking. A chat_template.jinja file wins over the configuration."""
    said = config.get("chat_template")
    if isinstance(said, str):
        templates = {"default": said}
    else:
        entries = said if isinstance(said, list) else []
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
        templates = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    file = folder / "chat_template.jinja"
    if file.is_file() and file.stat().st_size <= _MAX_CONFIG_BYTES:
        templates["default"] = file.read_text(encoding="utf-8", errors="replace")
    return templates
