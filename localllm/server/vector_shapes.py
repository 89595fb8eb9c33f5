"""Requests and answers of the routes that compute vectors and scores: embeddings, rerank, score."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from localllm.errors import InvalidRequest
from localllm.runtime.presets import LoadWish
from localllm.server.fields import MAX_NAME_CHARS, MAX_PRIORITY, MAX_TIMEOUT_S, Common

MAX_INPUTS = 2048
MAX_DIMENSIONS = 65_536
Method = Literal["cosine", "cross-encoder"]
"""How relevance is measured: the cosine of embeddings, or by a reranker that reads both texts together."""
MAX_TOKENS = 2**31 - 1


def _described(**keywords: Any) -> msgspec.Meta:
    """For the API description only: `check` has the words for who is out of bounds."""
    return msgspec.Meta(extra_json_schema=keywords)


Texts = Annotated[list[str], _described(minItems=1, maxItems=MAX_INPUTS)]


class VectorRequest(msgspec.Struct, kw_only=True):
    """Fields that all of these share. `truncate_prompt_tokens`: only the last so many tokens of each text are read (-1:
    as many as the context holds), and `warnings` tell of it; without it a text that is too long is refused."""

    model: str | None = None
    user: Annotated[str, _described(maxLength=MAX_NAME_CHARS)] | None = None
    truncate_prompt_tokens: Annotated[int, _described(minimum=-1, maximum=MAX_TOKENS)] | None = None
    add_special_tokens: bool | None = None
    priority: Annotated[int, _described(minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, _described(maxLength=MAX_NAME_CHARS)] | None = None
    keep_alive: str | float | None = None
    backend: str | None = None
    device: str | None = None
    kv_type: str | None = None
    threads: int | None = None
    quantize: str | None = None
    timeout_s: Annotated[float, _described(minimum=0.001, maximum=MAX_TIMEOUT_S)] | None = None
    request_id: Annotated[str, _described(maxLength=MAX_NAME_CHARS)] | None = None

    def check(self) -> None:
        """InvalidRequest names the field that is out of bounds."""
        within("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, MAX_TOKENS)
        within("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("truncate_prompt_tokens must not be 0", param="truncate_prompt_tokens")
        within("timeout_s", self.timeout_s, 0.001, MAX_TIMEOUT_S)
        for name in ("cache_salt", "user", "request_id"):
            if len(getattr(self, name) or "") > MAX_NAME_CHARS:
                raise InvalidRequest(f"{name} may have at most {MAX_NAME_CHARS} characters", param=name)
        LoadWish(self.backend, self.device, self.kv_type, self.threads, self.quantize).checked()

    def common(self) -> Common:
        """What the desk wants to know of a request."""
        return Common(
            model=self.model,
            user=self.user,
            priority=self.priority,
            cache_salt=self.cache_salt,
            keep_alive=self.keep_alive,
            backend=self.backend,
            device=self.device,
            kv_type=self.kv_type,
            threads=self.threads,
            quantize=self.quantize,
            timeout_s=self.timeout_s,
            request_id=self.request_id,
        )


class EmbeddingRequest(VectorRequest, kw_only=True):
    """`POST /v1/embeddings`. `input`: a text, texts, token ids, or lists of token ids. Vectors have length 1, also the
    shorter ones of `dimensions`; base64 is of little-endian float32. `prompt_name`: of the texts that the model wants
    before others (its config_sentence_transformers.json); without it the model's default one, where it names one."""

    input: str | Annotated[list[str | int | list[int]], _described(minItems=1)]
    encoding_format: Literal["float", "base64"] | None = None
    prompt_name: Annotated[str, _described(maxLength=MAX_NAME_CHARS)] | None = None
    dimensions: Annotated[int, _described(minimum=1, maximum=MAX_DIMENSIONS)] | None = None

    def check(self) -> None:
        VectorRequest.check(self)
        within("dimensions", self.dimensions, 1, MAX_DIMENSIONS)
        if len(self.prompt_name or "") > MAX_NAME_CHARS:
            raise InvalidRequest(f"prompt_name may have at most {MAX_NAME_CHARS} characters", param="prompt_name")


class Document(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class RerankRequest(VectorRequest, kw_only=True):
    """`POST /v1/rerank`: the form of Jina, Cohere and vLLM with `documents`, the one of TEI with `texts`.

    The score of a document is what a reranker says of it and the query, 0 to 1: the sigmoid of its logit (Qwen3: the
    probability of "yes"), or with `raw_scores` the logit. Of any other model it is the cosine between its embedding
    and that of the query, -1 to 1. Where a pair is to be cut, the document loses its end.
    """

    query: str
    documents: Annotated[list[str | Document], _described(minItems=1, maxItems=MAX_INPUTS)] | None = None
    top_n: Annotated[int, _described(minimum=1, maximum=MAX_TOKENS)] | None = None
    return_documents: bool | None = None
    texts: Texts | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    raw_scores: bool | None = None

    def check(self) -> None:
        VectorRequest.check(self)
        within("top_n", self.top_n, 1, MAX_TOKENS)
        if (self.documents is None) == (self.texts is None):
            raise InvalidRequest("send `documents` (or `texts`, and not both)", param="documents")
        others = ("top_n", "return_documents") if self.documents is None else ("return_text", "truncate")
        for name in others:
            if getattr(self, name) is not None:
                raise InvalidRequest(f"{name} does not go with {self.kind}", param=name)
        check_count(self.kind, len(self.documents or self.texts or ()))

    @property
    def kind(self) -> str:
        return "texts" if self.documents is None else "documents"

    @property
    def passages(self) -> list[str]:
        documents = [each if isinstance(each, str) else each.text for each in self.documents or ()]
        return documents or self.texts or []


class ScoreRequest(VectorRequest, kw_only=True):
    """`POST /v1/score`: how near texts are to each other, one to one, one to many, or pair by pair; scores are those of
    `/v1/rerank`."""

    text_1: str | Texts
    text_2: str | Texts
    raw_scores: bool | None = None

    def check(self) -> None:
        VectorRequest.check(self)
        check_count("text_1", len(self.first))
        check_count("text_2", len(self.second))
        if len(self.first) not in (1, len(self.second)):
            raise InvalidRequest("text_1 must be one text, or as many as text_2", param="text_1")

    @property
    def first(self) -> list[str]:
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def second(self) -> list[str]:
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2


def within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}", param=name)


def check_count(name: str, count: int) -> None:
    if not 0 < count <= MAX_INPUTS:
        raise InvalidRequest(f"{name} must hold 1 to {MAX_INPUTS} texts, not {count}", param=name)


# ---- answers


class VectorUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """`embedding`: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(msgspec.Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: VectorUsage
    warnings: list[str] | UnsetType = UNSET


class Ranked(msgspec.Struct):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(msgspec.Struct):
    """Best first. `method` says what `relevance_score` is: the cosine of embeddings, or a reranker's judgement."""

    id: str
    object: Literal["list"]
    model: str
    method: Method
    results: list[Ranked]
    usage: VectorUsage
    warnings: list[str] | UnsetType = UNSET


class RankedText(msgspec.Struct):
    index: int
    score: float
    text: str | UnsetType = UNSET


class Score(msgspec.Struct):
    index: int
    object: Literal["score"]
    score: float


class Scores(msgspec.Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    method: Method
    data: list[Score]
    usage: VectorUsage
    warnings: list[str] | UnsetType = UNSET


def usage_of(num_tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
