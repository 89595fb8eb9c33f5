"""What a preview of a chat request is asked with and answers: the source of its API description."""

from typing import Literal

import msgspec

from localllm.server.fields import ChatRequest

LoadedState = Literal["ready", "loading", "not loaded"]


class PreviewRequest(ChatRequest, kw_only=True):
    """A chat request as it would be sent, without its last message: that is the `draft`, and may be all there is."""

    draft: str | None = None


class PromptParts(msgspec.Struct):
    """Tokens of each part, with the tags of its turns; together they are the prompt. `system` holds what the model is
    told of tools; `draft` ends with the tags that open the answer, `continued` is what it is to begin with."""

    system: int
    history: int
    draft: int
    continued: int


class PreviewSampling(msgspec.Struct):
    """The sampling in force: what the request says, else the model's own."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


class Preview(msgspec.Struct, kw_only=True):
    """What sending the request would mean now. `cached_tokens` are in the prefix cache, `compute_tokens` are not;
    `compute_s` estimates how long those take by what was measured last, null where nothing was. `left_tokens` is what
    the context has left for the answer, `max_tokens` what the request allows it. Null: not known."""

    model: str
    state: LoadedState
    parts: PromptParts
    prompt_tokens: int
    cached_tokens: int
    compute_tokens: int
    compute_s: float | None
    context_length: int | None
    left_tokens: int | None
    max_tokens: int | None
    page_size: int
    sampling: PreviewSampling
    object: Literal["preview"] = "preview"
