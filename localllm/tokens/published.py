"""What lies beside a published tokenizer: tokenizer_config.json and its neighbours, read with limits.

A missing file says nothing; one that is damaged or far too large is a BadModelFile.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from localllm.errors import BadModelFile
from localllm.tokens.specials import TokenType

_MAX_CONFIG_BYTES = 16 << 20
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class Added(NamedTuple):
    """A token that was added to a trained vocabulary."""

    text: str
    is_special: bool

    @property
    def type(self) -> int:
        return int(TokenType.CONTROL if self.is_special else TokenType.USER_DEFINED)


def read_bounded(file: Path, most_bytes: int) -> bytes:
    """All of a file; BadModelFile where it is larger than `most_bytes`."""
    if file.stat().st_size > most_bytes:
        raise BadModelFile(f"{file} is larger than any real file of this name")
    return file.read_bytes()


def read_json(file: Path, most_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a file; empty if the file is missing."""
    if not file.is_file():
        return {}
    raw = read_bounded(file, most_bytes)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadModelFile(f"{file} holds no object")
    return value


def configuration(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and special_tokens_map.json where that is silent."""
    return read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")


def role_ids(config: Mapping[str, Any], ids_by_text: Mapping[str, int]) -> dict[str, int]:
    """The ids of the tokens that have a role: bos, eos, unk, sep, pad, cls, mask. BERT has its own names for two."""
    found = {role: ids_by_text.get(_content(config.get(f"{role}_token"))) for role in _ROLES}
    ids = {role: token_id for role, token_id in found.items() if token_id is not None}
    for role, stand_in in (("bos", "cls"), ("eos", "sep")):
        if role not in ids and stand_in in ids:
            ids[role] = ids[stand_in]
    return ids


def _content(token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def end_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, else of config.json: one id or a list of them."""
    config = read_json(folder / "config.json")
    text_config = config.get("text_config")
    sources = (
        read_json(folder / "generation_config.json"),
        config,
        text_config if isinstance(text_config, dict) else {},
    )
    said: Any = next((source["eos_token_id"] for source in sources if source.get("eos_token_id") is not None), [])
    ids: Sequence[Any] = said if isinstance(said, list) else [said]
    return tuple(one for one in ids if isinstance(one, int) and 0 <= one < vocab_size)


def added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, Added]:
    """The added tokens by id, from added_tokens.json and `added_tokens_decoder` (which wins)."""
    plain = read_json(folder / "added_tokens.json")
    special = _special_texts(config)
    found = {one: Added(text, text in special) for text, one in plain.items() if isinstance(one, int)}
    decoder = config.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        if str(key).isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[int(key)] = Added(entry["content"], bool(entry.get("special")) or entry["content"] in special)
    return found


def _special_texts(config: Mapping[str, Any]) -> frozenset[str]:
    more = config.get("additional_special_tokens")
    entries = [config.get(f"{role}_token") for role in _ROLES] + (more if isinstance(more, list) else [])
    return frozenset(_content(entry) for entry in entries) - {""}


def _text_of(file: Path) -> str:
    try:
        return read_bounded(file, _MAX_CONFIG_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadModelFile(f"{file} is not UTF-8 at byte {error.start}") from None


def chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """By name; `default` is the one used without asking. Files of templates win over the configuration."""
    said = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(said, str):
        templates = {"default": said}
    else:
        entries = said if isinstance(said, list) else []
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
        templates = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    for name, file in [("default", folder / "chat_template.jinja"), *((file.stem, file) for file in more)]:
        if file.is_file():
            templates[name] = _text_of(file)
    return templates
