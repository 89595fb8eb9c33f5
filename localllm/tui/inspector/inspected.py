"""An answer as the inspector looks at it: tokens with their alternatives, as plain data that may still grow.

Who holds an answer (a live stream, a stored chat) fills it; the inspector only reads, and gives back a `BranchWish`.
Token bytes are bytes: a token may end in the middle of a character.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from localllm.client.said import Alternative
from localllm.client.said import SaidToken as InspectedToken

__all__ = ["Alternative", "BranchWish", "InspectedAnswer", "InspectedToken", "SamplerCuts", "is_allowed"]


class SamplerCuts(msgspec.Struct, frozen=True):
    """What keeps the sampler from unlikely tokens. 1, 0, 0: nothing; `temperature` 0 takes the best one always."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class BranchWish:
    """Go on from another token: the answer's first `position` tokens stay, then comes `token_id`. `token_ids` are all
    of them, as the field `continue_token_ids` of a chat request wants them."""

    position: int
    token_id: int
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class InspectedAnswer:
    """Grows while it is live: `add` what came; the inspector looks at the length. `num_prompt` tokens stand before it,
    in pages of `page_size`; `vocab_size` 0: not known."""

    title: str = "Answer"
    tokens: list[InspectedToken] = field(default_factory=list)
    cuts: SamplerCuts = field(default_factory=SamplerCuts)
    num_prompt: int = 0
    page_size: int = 16
    vocab_size: int = 0
    is_live: bool = False
    model: str = ""

    def add(self, tokens: Iterable[InspectedToken]) -> None:
        self.tokens.extend(tokens)

    def branch(self, position: int, token_id: int) -> BranchWish:
        kept = tuple(token.token_id for token in self.tokens[:position])
        return BranchWish(position, token_id, (*kept, token_id))

    def pages_kept(self, position: int) -> int:
        """Full pages before a token: what a branch there shares."""
        return (self.num_prompt + position) // self.page_size

    def computed_by_branch(self, position: int) -> int:
        """Tokens that are computed again: those behind the last full page, and the new one."""
        return (self.num_prompt + position) % self.page_size + 1


def is_allowed(token: InspectedToken, cuts: SamplerCuts) -> Sequence[bool]:
    """Of each alternative, whether the sampler could have taken it, as far as probabilities alone can tell: top-k, then
    top-p over what is left, then min-p, each after temperature."""
    logprobs = [each.logprob for each in token.alternatives]
    if not logprobs:
        return []
    if cuts.temperature <= 0:
        return [place == 0 for place in range(len(logprobs))]
    # temperature changes what tokens share; of those beyond the known ones only their mass at temperature 1 is known
    weights = [math.exp((logprob - logprobs[0]) / cuts.temperature) for logprob in logprobs]
    total = sum(weights[: cuts.top_k or None]) + _unseen_weight(logprobs, cuts)
    allowed, before = [], 0.0
    for place, weight in enumerate(weights):
        is_in = not cuts.top_k or place < cuts.top_k
        is_in = is_in and (place == 0 or before < cuts.top_p * total) and weight >= cuts.min_p
        allowed.append(is_in)
        before += weight
    return allowed


def _unseen_weight(logprobs: Sequence[float], cuts: SamplerCuts) -> float:
    if 0 < cuts.top_k <= len(logprobs):
        return 0.0
    unseen = max(0.0, 1.0 - sum(math.exp(logprob) for logprob in logprobs))
    return unseen / math.exp(logprobs[0]) if cuts.temperature == 1.0 else 0.0
