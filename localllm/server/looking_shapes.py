"""What llama.cpp's and vLLM's ways of looking into a server send and get: the source of their API description."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class PlainText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """llama.cpp's `/tokenize`."""

    content: str
    model: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class PromptText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """vLLM's `/tokenize` of a prompt."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeBody(msgspec.Struct, kw_only=True):
    """`content` is llama.cpp's form, `prompt` and `messages` are vLLM's; with `messages` every field of a chat request
    that shapes its prompt is known."""

    content: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    messages: list[dict[str, Any]] | UnsetType = UNSET
    model: str | UnsetType | None = UNSET
    add_special: bool | UnsetType = UNSET
    parse_special: bool | UnsetType = UNSET
    with_pieces: bool | UnsetType = UNSET
    add_special_tokens: bool | UnsetType = UNSET
    return_token_strs: bool | UnsetType = UNSET
    tools: list[dict[str, Any]] | UnsetType | None = UNSET
    add_generation_prompt: bool | UnsetType | None = UNSET
    continue_final_message: bool | UnsetType | None = UNSET
    chat_template_kwargs: dict[str, Any] | UnsetType | None = UNSET


class TokenPiece(msgspec.Struct):
    """A token and its text, or its bytes where they are no text on their own."""

    id: int
    piece: str | list[int]


class TokenizedBody(msgspec.Struct, kw_only=True):
    """All but `tokens` only in vLLM's form."""

    tokens: list[int | TokenPiece]
    count: int | UnsetType = UNSET
    max_model_len: int | UnsetType = UNSET
    token_strs: list[str] | UnsetType | None = UNSET


class Ids(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class Text(msgspec.Struct):
    """`content` is llama.cpp's name for it, `prompt` vLLM's."""

    content: str
    prompt: str


class TokenizerInfo(msgspec.Struct):
    """vLLM's names. Tokens as they are spelled; null where there is none."""

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    chat_template: str
    model_max_length: int


class Prompt(msgspec.Struct):
    prompt: str


class GenerationSettings(msgspec.Struct):
    n_ctx: int
    params: dict[str, Any]


class Modalities(msgspec.Struct):
    vision: bool = False
    audio: bool = False


class Props(msgspec.Struct, kw_only=True):
    """`is_sleeping`: the model is on disk and will be loaded by the next request."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool
    modalities: Modalities = msgspec.field(default_factory=Modalities)


class NextToken(msgspec.Struct):
    has_next_token: bool
    n_remain: int
    n_decoded: int


class Slot(msgspec.Struct, kw_only=True):
    """A place for a sequence. Our engine has no fixed ones: those that are taken come first. `params` only of requests
    that the caller may see."""

    id: int
    id_task: int | str
    n_ctx: int
    speculative: bool
    is_processing: bool
    params: dict[str, Any]
    next_token: NextToken


class Readiness(msgspec.Struct):
    """`reason` where it would not answer now."""

    status: Literal["ready", "not ready"]
    reason: str | None = None


class ServerLoad(msgspec.Struct):
    server_load: int
