"""Texts as tokens, tokens as text, and conversations as the text a model reads, as llama.cpp's and vLLM's clients ask.

Both know the same path: the keys of the body say whose form it is. Without `model` the loaded one is meant, else the
default.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.replies import Ask
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.errors import InvalidRequest
from localllm.server import looking_shapes as shapes
from localllm.server.asks import chat_asks, wish_of
from localllm.server.desk import Desk
from localllm.server.fields import ChatRequest
from localllm.server.http import Json, attended, read_object
from localllm.server.operations import Operation
from localllm.server.unknowns import Taken, take

TAG = "looking in"
MODEL_QUERY = (("model", "The model; without it the loaded one, else the default."),)


class Tokenizing:
    """`/tokenize`, `/detokenize` and `/apply-template`, each also under `/v1`; `/tokenizer_info`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._residency = desk.residency

    def operations(self) -> Sequence[Operation]:
        info = Operation(
            "GET", "/tokenizer_info", self.info, "Tell how special tokens are spelled", TAG,
            shapes.TokenizerInfo, query=MODEL_QUERY,
        )  # fmt: skip
        return [info, *(operation for prefix in ("", "/v1") for operation in self._under(prefix))]

    def _under(self, prefix: Literal["", "/v1"]) -> Iterator[Operation]:
        where = " under v1" if prefix else ""
        yield Operation(
            "POST", prefix + "/tokenize", self.tokenize, "Show a text as tokens" + where, TAG,
            shapes.TokenizedBody, shapes.TokenizeBody,
        )  # fmt: skip
        yield Operation(
            "POST", prefix + "/detokenize", self.detokenize, "Show tokens as text" + where, TAG, shapes.Text, shapes.Ids
        )
        yield Operation(
            "POST", prefix + "/apply-template", self.template, "Show a conversation as text" + where, TAG,
            shapes.Prompt, ChatRequest,
        )  # fmt: skip

    # ---- text to tokens

    async def tokenize(self, request: Request) -> Response:
        body = await read_object(request)
        if "content" in body:
            taken = take(body, shapes.PlainText, request)
            return await self._answer(request, taken, self._as_llamacpp)
        if "messages" in body:
            return await self._conversation(request, body)
        if "prompt" in body:
            taken = take(body, shapes.PromptText, request)
            return await self._answer(request, taken, self._as_vllm)
        raise InvalidRequest("send `content`, `prompt` or `messages`", param="content")

    async def _answer(self, request: Request, taken: Taken, work: Any) -> Response:
        """What `work` makes of the request, its model and an open door to threads."""

        async def answer() -> dict[str, Any]:
            async with self._residency.using(meant_model(self._desk, taken.request.model)) as resident:
                shown: dict[str, Any] = await self._residency.in_thread(partial(work, taken.request, resident))
                return shown

        shown = await attended(request, answer())
        return Json(shown | ({"warnings": taken.warnings} if taken.warnings else {}), headers=taken.headers)

    def _as_llamacpp(self, wanted: shapes.PlainText, resident: Resident) -> dict[str, Any]:
        tokenizer = resident.text.tokenizer
        ids = tokenizer.encode(wanted.content, add_special=wanted.add_special, parse_special=wanted.parse_special)
        return {"tokens": [_piece(resident, token_id) for token_id in ids] if wanted.with_pieces else ids}

    def _as_vllm(self, wanted: shapes.PromptText, resident: Resident) -> dict[str, Any]:
        tokenizer = resident.text.tokenizer
        ids = tokenizer.encode(wanted.prompt, add_special=wanted.add_special_tokens, parse_special=True)
        return _counted(resident, ids, with_strings=wanted.return_token_strs)

    async def _conversation(self, request: Request, body: dict[str, Any]) -> Response:
        """The tokens that a chat request with these fields would send."""
        with_strings = body.pop("return_token_strs", False)
        if not isinstance(with_strings, bool):
            raise InvalidRequest("return_token_strs must be true or false", param="return_token_strs")

        def tokens(wanted: ChatRequest, resident: Resident) -> dict[str, Any]:
            return _counted(resident, self._ask(wanted, resident).prompt, with_strings=with_strings)

        return await self._answer(request, take(body, ChatRequest, request), tokens)

    # ---- and back

    async def detokenize(self, request: Request) -> Response:
        taken = take(await read_object(request), shapes.Ids, request)
        return await self._answer(request, taken, _text)

    async def info(self, request: Request) -> Response:
        """What lm-eval and others ask before they count with this tokenizer."""
        name = meant_model(self._desk, request.query_params.get("model"))

        async def told() -> shapes.TokenizerInfo:
            async with self._residency.using(name) as resident:
                return _info(resident)

        return Json(await attended(request, told()))

    async def template(self, request: Request) -> Response:
        taken = take(await read_object(request), ChatRequest, request)
        return await self._answer(request, taken, self._rendered)

    def _rendered(self, wanted: ChatRequest, resident: Resident) -> dict[str, Any]:
        return {"prompt": self._ask(wanted, resident).prompt_text}

    def _ask(self, wanted: ChatRequest, resident: Resident) -> Ask:
        """The very sequence that the request would run. How it wants its model to be open is checked, as there."""
        wish_of(wanted).checked()
        vocab_size = resident.ready.vocab_size if resident.ready else 0
        return chat_asks(wanted, resident.entry, resident.text, self._desk.settings, vocab_size)[0]


def meant_model(desk: Desk, named: str | None) -> str:
    """The model that a request means which need not name one."""
    loaded = None if named else last_used(desk.residency)
    return named or (loaded.entry.name if loaded else desk.settings.default_model)


def last_used(residency: Residency) -> Resident | None:
    """Of the models that answer now, the one that is or was used last."""
    ready = [resident for resident in residency.residents() if resident.state == "ready"]
    return max(ready, key=lambda resident: (bool(resident.num_users), resident.last_used), default=None)


def _text(wanted: shapes.Ids, resident: Resident) -> dict[str, Any]:
    """Under both names: the request looks the same in both dialects."""
    num_known = resident.ready.vocab_size if resident.ready else 0
    for token_id in wanted.tokens:
        if not 0 <= token_id < num_known:
            raise InvalidRequest(f"tokens names token {token_id}; the model has {num_known} tokens", param="tokens")
    text = resident.text.tokenizer.decode(wanted.tokens)
    return {"content": text, "prompt": text}


def _info(resident: Resident) -> shapes.TokenizerInfo:
    built = resident.text.tokenizer.built
    ids = (built.special.bos_id, built.special.eos_id, built.special.unk_id, built.special.pad_id)
    bos, eos, unk, pad = (None if token_id is None else built.texts[token_id] for token_id in ids)
    return shapes.TokenizerInfo(bos, eos, unk, pad, resident.text.template.source, resident.context_length)


def _counted(resident: Resident, ids: list[int], *, with_strings: bool) -> dict[str, Any]:
    tokenizer = resident.text.tokenizer
    strings = [tokenizer.token_bytes(token_id).decode("utf-8", errors="replace") for token_id in ids]
    return {
        "count": len(ids),
        "max_model_len": resident.context_length,
        "tokens": ids,
        "token_strs": strings if with_strings else None,
    }


def _piece(resident: Resident, token_id: int) -> shapes.TokenPiece:
    raw = resident.text.tokenizer.token_bytes(token_id)
    try:
        return shapes.TokenPiece(token_id, raw.decode())
    except UnicodeDecodeError:
        return shapes.TokenPiece(token_id, list(raw))
