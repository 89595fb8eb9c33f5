"""The in-process `LLM` for scripts: same assembly as the worker, no daemon, no other process."""

from __future__ import annotations

import itertools
import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from localllm import wire
from localllm.engine.step import Want
from localllm.errors import BadLogits, ContextExceeded, InvalidRequest, LocalLLMError
from localllm.runtime.adapters import Lora, adapter_path, adapter_paths, checked_scale
from localllm.runtime.attention import AttentionMaps, attention_of
from localllm.runtime.load import load_engine, load_text
from localllm.runtime.names import find_entry
from localllm.runtime.presets import LoadWish, behind_opening, load_order, sampling_in_force
from localllm.settings import Settings, load_settings
from localllm.tokens.stream import TokenStream

Prompt = str | Sequence[int]


class Completion(str):
    """The generated text, with what is known of it: `token_ids`, `finish_reason`, `num_prompt_tokens`,
    `num_cached_tokens`, `logprobs` (one entry per token where asked for)."""

    token_ids: list[int]
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    logprobs: list[wire.TokenLogprobs]

    @property
    def text(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class Score:
    """Natural-log probabilities of a text's tokens; the first has none."""

    token_ids: list[int]
    logprobs: list[float | None]

    @property
    def perplexity(self) -> float:
        known = [value for value in self.logprobs if value is not None]
        return math.exp(-sum(known) / len(known)) if known else math.nan


@dataclass(slots=True)
class _Running:
    """One prompt on its way: ids so far and the text they make."""

    prompt: list[int]
    stream: TokenStream
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[wire.TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[wire.TokenLogprobs] = field(default_factory=list)
    num_cached: int = 0
    finish: str = ""

    def completion(self) -> Completion:
        made = Completion(self.text)
        made.token_ids, made.logprobs = self.ids, self.logprobs
        made.finish_reason, made.num_prompt_tokens, made.num_cached_tokens = (
            self.finish,
            len(self.prompt),
            self.num_cached,
        )
        return made


class LLM:
    """A model in this process: `LLM("smollm2:135m").generate(["The capital of France is"], max_tokens=8)`.

    `model` is a pulled name, a file or a folder. Settings are those of `localllm config list` (backend, threads,
    device, kv_type, kv_pages, context_length, ...). `quantize`: round float weights to q8_0, q4_0 or q4_k while they
    load. `lora`: the folder or file of an adapter that is applied where a call names no other. All prompts of one call
    are batched.
    """

    def __init__(
        self, model: str | Path, *, quantize: str = "", lora: str | Path | None = None, **settings: Any
    ) -> None:
        self._is_closed = False
        self.settings = _settings(settings)
        self.entry = find_entry(model, self.settings)
        self.lora = adapter_path(lora, next(iter(self.entry.adapters), ""))
        path = Path(self.entry.path)
        # in this process: a script's LLM starts no other
        self.text = load_text(path, template=self.entry.jinja_template, isolated=False)
        self.engine, self.info = load_engine(load_order(self.entry, self.settings, LoadWish(quantize=quantize)))
        self._numbers = itertools.count()
        for note in (*self.info.notes, *self.text.tokenizer.notes):
            warnings.warn(note, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give weights and pages back."""
        self._is_closed = True
        self.engine.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        lora: Lora | Sequence[Lora] = None,
        lora_scale: float = 1.0,
        **sampling: Any,
    ) -> list[Completion]:
        """Continue every prompt (text or token ids). Sampling keywords are the fields of `wire.SamplingParams`; what is
        not given comes from the model's own defaults, `stop` too. `max_tokens` None: until the context is full. `lora`:
        the path of an adapter, or a list with one for each prompt; an empty text: none, not even the LLM's own."""
        params = self._sampling(sampling)
        stops = _stops(self.entry.params.get("stop", ()) if stop is None else stop)
        _refuse_unless_count("max_tokens", max_tokens)
        _refuse_unless_count("logprobs", logprobs)
        all_ids = list(self._prompt_ids(prompts))
        adapters, scale = adapter_paths(lora, len(all_ids), self.lora), checked_scale(lora_scale)
        running: dict[str, _Running] = {}
        for ids, adapter in zip(all_ids, adapters, strict=True):
            stream = TokenStream(self.text.tokenizer, stop=stops, continuation=True)
            name = self._submit(ids, params, max_tokens, adapter, top_logprobs=logprobs, lora_scale=scale)
            running[name] = _Running(ids, stream)
        self._run(running)
        return [one.completion() for one in running.values()]

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: list[Any] | None = None, **options: Any
    ) -> Completion:
        """Answer a conversation rendered through the model's chat template, behind its own system text and messages."""
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise InvalidRequest(
                "messages must be a list of messages, and not empty",
                hint='for example [{"role": "user", "content": "Hello"}]',
                param="messages",
            )
        prompt = self.text.template.render(behind_opening(self.entry, messages), tools=tools)
        ids = self.text.tokenizer.encode(prompt, add_special=False)
        return self.generate([ids], **options)[0]

    def score(self, text: Prompt) -> Score:
        """Log-probabilities of every token of a text after the first."""
        ids = self._ids(text)
        request = self._submit(ids, wire.SamplingParams(temperature=0.0), 0, self.lora, prompt_logprobs=0)
        running = {request: _Running(ids, TokenStream(self.text.tokenizer))}
        self._run(running)
        return Score(ids, [None, *(entry.logprob for entry in running[request].prompt_logprobs)])

    def logits(self, text: Prompt) -> NDArray[np.float32]:
        """What the model computes for every next token, before any sampling: (tokens, vocab) float32."""
        (answer,) = self.engine.run_rows([self._ids(text)], Want(logits="all"), lora=self.lora)
        assert answer.logits is not None, "they were asked for"
        return answer.logits

    def embed(self, texts: str | Sequence[str], *, prompt_name: str | None = None) -> NDArray[np.float32]:
        """A vector of length 1 for each text, as the daemon gives it: pooled as the model says, else the final hidden
        state of the last token. (texts, hidden) float32. `prompt_name`: of the texts that the model wants before
        others (`LLM.text.prompts`); without it the model's default one, where it names one."""
        many = [texts] if isinstance(texts, str) else list(texts)
        if not many:
            raise InvalidRequest("there is no text to embed", hint="give one text or a list of texts", param="input")
        before = self.text.prompts.text_of(prompt_name)
        vectors = self.engine.pool([self._embeddable(before + text) for text in many], self.text.pooling)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        return unit

    def rank(self, query: str, documents: Sequence[str], *, raw_scores: bool = False) -> NDArray[np.float32]:
        """How well each document answers the query, (documents,) float32: of a reranker 0 to 1, the sigmoid of its
        logit, or with `raw_scores` the logit; of any other model the cosine of their vectors.

        ContextExceeded for a pair that is too long.
        """
        texts = [documents] if isinstance(documents, str) else list(documents)
        if not texts:
            raise InvalidRequest("there is no document to rank", hint="give a list of texts", param="documents")
        form = self.text.pair_form
        if form is None:
            vectors = self.embed([query, *texts])
            return np.asarray(vectors[1:] @ vectors[0], np.float32)
        if self._is_closed:
            raise closed()
        longest = min(filter(None, (self.text.context_length, self.engine.context_length)))
        pairs = [form.pair(self.text.tokenizer, query, text, longest) for text in texts]
        logits = self.engine.pool([pair.ids for pair in pairs], "rank", [pair.second_from for pair in pairs])[:, 0]
        return logits if raw_scores else np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))), np.float32)

    def _embeddable(self, text: str) -> list[int]:
        """ContextExceeded for more tokens than vectors of this model are for."""
        ids, longest = self._ids(text), self.text.context_length
        if longest and len(ids) > longest:
            raise ContextExceeded(len(ids), longest)
        return ids

    def attention(self, text: Prompt) -> AttentionMaps:
        """Which tokens each token of a text looks at, in every layer and head; computed on the reference backend, with
        weights of its own."""
        return attention_of(Path(self.entry.path), self._ids(text))

    def _prompt_ids(self, prompts: Prompt | Sequence[Prompt]) -> Iterator[list[int]]:
        if not hasattr(prompts, "__len__") or isinstance(prompts, bytes | bytearray):
            raise InvalidRequest(
                f"prompts must be texts or lists of token ids, not {type(prompts).__name__}",
                hint='for example ["The capital of France is"]',
                param="prompt",
            )
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            yield self._ids(cast(Prompt, prompts))  # one prompt, given without its list
            return
        for prompt in prompts:
            yield self._ids(cast(Prompt, prompt))

    def _ids(self, prompt: Prompt) -> list[int]:
        if self._is_closed:
            raise closed()
        ids = self.text.tokenizer.encode(prompt) if isinstance(prompt, str) else _given_ids(prompt)
        if not ids:
            raise InvalidRequest("the prompt is empty", hint="give at least one token", param="prompt")
        return ids

    def _sampling(self, given: Mapping[str, Any]) -> wire.SamplingParams:
        known = wire.SamplingParams.__struct_fields__
        for name in given:
            if name not in known:
                raise InvalidRequest(
                    f"unknown sampling parameter {name!r}", hint=f"known: {', '.join(known)}", param=name
                )
        return sampling_in_force(given, self.entry.params, self.text.default_sampling)

    def _submit(
        self,
        ids: list[int],
        params: wire.SamplingParams,
        max_tokens: int | None,
        lora: str,
        *,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        lora_scale: float = 1.0,
    ) -> str:
        request_id = f"llm-{next(self._numbers)}"
        self.engine.add(
            wire.Submit(
                request_id=request_id,
                prompt=ids,
                sampling=params,
                max_tokens=max_tokens,
                stop_ids=sorted(self.text.tokenizer.eog_ids),
                top_logprobs=top_logprobs,
                prompt_logprobs=prompt_logprobs,
                lora=lora,
                lora_scale=lora_scale,
            )
        )
        return request_id

    def _run(self, running: dict[str, _Running]) -> None:
        """Step until all of `running` are finished; on an error none of them stays behind in the engine."""
        unfinished = set(running)
        try:
            while unfinished:
                for chunk in self.engine.step():
                    if chunk.request_id in unfinished and self._take(running[chunk.request_id], chunk):
                        unfinished.discard(chunk.request_id)
        finally:
            for request_id in unfinished:
                self.engine.abort(request_id)

    def _take(self, one: _Running, chunk: wire.TokenChunk) -> bool:
        """Add a step's tokens; True when this sequence is finished."""
        if chunk.finish == "error":
            raise (BadLogits if chunk.error_code == BadLogits.code else LocalLLMError)(chunk.error)
        if chunk.started:
            one.num_cached = chunk.num_cached
        one.prompt_logprobs.extend(chunk.prompt_logprobs)
        delta = one.stream.push(chunk.ids)
        one.ids.extend(chunk.ids[: delta.num_tokens])
        one.logprobs.extend(chunk.logprobs[: delta.num_tokens])
        one.text += delta.text
        if delta.stop is not None:
            one.finish = "stop"
            self.engine.abort(chunk.request_id)
        elif chunk.finish is not None:
            one.text += one.stream.finish().text
            one.finish = chunk.finish
        return bool(one.finish)


def closed() -> InvalidRequest:
    """For whoever asks after the end."""
    return InvalidRequest("this LLM is closed", hint="make a new one: LLM(model)")


def _given_ids(prompt: Sequence[int]) -> list[int]:
    """Plain integers of a list, a tuple or an array; bytes are a text that nobody decoded."""
    try:
        if not isinstance(prompt, bytes | bytearray):
            return [operator.index(token_id) for token_id in prompt]
    except TypeError:
        pass
    raise InvalidRequest(
        f"a prompt must be a text or a list of token ids, not {type(prompt).__name__}", param="prompt"
    ) from None


def _stops(stop: str | Sequence[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, Sequence) else [stop]
    if not all(isinstance(text, str) and text for text in stops):
        raise InvalidRequest("stop must be a text or a list of texts", param="stop")
    return stops


def _refuse_unless_count(name: str, value: Any) -> None:
    if value is not None and type(value) is not int:  # True is an int and no count
        raise InvalidRequest(f"{name} must be a whole number or None, not {value!r}", param=name)


def _settings(given: Mapping[str, Any]) -> Settings:
    known = Settings.__slots__
    for name in given:
        if name not in known:
            raise InvalidRequest(f"unknown setting {name!r}", hint="see `localllm config list`", param=name)
    return load_settings(**given)
