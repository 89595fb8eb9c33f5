"""What an engine refuses when a request is added: bad fields, and what could never run however long it waited."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from localllm.errors import ContextExceeded, InvalidRequest, NotEnoughMemory
from localllm.wire import MAX_LOGPROBS, Pooled, Submit


@dataclass(frozen=True, slots=True)
class Limits:
    """In tokens: the context, and the longest sequence that the whole page pool holds (`atomic`: in a single step)."""

    context_length: int
    vocab_size: int
    longest: int
    longest_atomic: int

    def end_of(self, submit: Submit) -> int:
        """The length at which the sequence ends at the latest. InvalidRequest names a bad field; ContextExceeded and
        NotEnoughMemory are for prompts that leave no room for a token."""
        submit.sampling.checked()
        max_tokens = submit.max_tokens
        if max_tokens is not None and max_tokens < 0:
            raise InvalidRequest(f"max_tokens must not be negative, not {max_tokens}", param="max_tokens")
        if not 0 <= submit.num_given < max(1, len(submit.prompt)):
            raise InvalidRequest("the prompt must be longer than what is given of its answer", param="num_given")
        sampling = submit.sampling
        self._check_ids(sampling.logit_bias, "logit_bias")
        self._check_ids(sampling.allowed_token_ids, "allowed_token_ids")
        self._check_ids(sampling.dry_breakers, "dry_sequence_breakers")
        for bad in sampling.bad_sequences:
            self._check_ids(bad, "bad_words")
        _check_logprobs(submit.top_logprobs, "top_logprobs")
        _check_logprobs(submit.prompt_logprobs, "prompt_logprobs")
        is_prompt_only = max_tokens == 0 or submit.pooled is not None
        self.check_prompt(submit.prompt, num_more=0 if is_prompt_only else 1)
        # the last token of a sequence is never computed, so that it needs no room in the pool
        end = min(self.context_length, self.longest + 1)
        num_prompt = len(submit.prompt)
        if is_prompt_only:
            return num_prompt
        return max(num_prompt, end if max_tokens is None else min(end, num_prompt + max_tokens))

    def check_prompt(self, prompt: Collection[int], *, num_more: int, atomic: bool = False) -> None:
        """That the ids are tokens, and that they and `num_more` generated ones have room."""
        if not prompt:
            raise InvalidRequest("the prompt is empty", hint="give at least one token", param="prompt")
        self._check_ids(prompt, "prompt")
        if len(prompt) + num_more > self.context_length:
            raise ContextExceeded(len(prompt), self.context_length)
        longest = self.longest_atomic if atomic else self.longest
        if len(prompt) > longest:
            raise NotEnoughMemory(
                f"the prompt has {len(prompt)} tokens, but the memory for this model holds {longest}",
                hint="shorten the prompt, or give the model more memory (setting kv_pages)",
                param="messages",
            )

    def _check_ids(self, ids: Collection[int], param: str) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise InvalidRequest(
                f"{param} names a token outside 0..{self.vocab_size - 1}",
                hint="token ids, and the tokenizer beside the weights, must be those of this very model",
                param=param,
            )


def check_kind(pooled: Pooled | None, *, judges: bool, is_encoder: bool) -> None:
    """That the model can do what is asked: write, make vectors, or judge pairs of texts. InvalidRequest if not."""
    if judges is not (pooled == "rank"):
        raise judges_only() if judges else no_judge()
    if is_encoder and pooled is None:
        raise no_writer()


def no_writer() -> InvalidRequest:
    """What an encoder says to whoever asks it for text or for probabilities of tokens."""
    return InvalidRequest(
        "this model is an encoder: it makes vectors of texts and writes none",
        hint="ask for embeddings (`localllm embed`, /v1/embeddings), or choose another model",
        param="model",
    )


def judges_only() -> InvalidRequest:
    """What a model with a head that judges says to whoever asks it for anything else."""
    return InvalidRequest(
        "this model is a reranker: it judges how well two texts go together, and makes neither texts nor vectors",
        hint="ask /v1/rerank, or LLM.rank; for embeddings choose another model",
        param="model",
    )


def no_judge() -> InvalidRequest:
    """What any other model says to whoever asks it to judge."""
    return InvalidRequest("this model has no head that judges pairs of texts", hint="choose a reranker", param="model")


def _check_logprobs(number: int | None, param: str) -> None:
    if number is not None and not 0 <= number <= MAX_LOGPROBS:
        raise InvalidRequest(f"{param} must be between 0 and {MAX_LOGPROBS}, not {number}", param=param)
