"""Tokens of an answer with all that is known of them: their alternatives, and how sure the model was.

Token bytes are bytes: a token may end in the middle of a character.
"""

import math

import msgspec


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A token that could have stood there. `logprob` is natural, of the model itself: before temperature and cuts."""

    token_id: int
    raw: bytes
    logprob: float

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)


class SaidToken(msgspec.Struct, frozen=True, array_like=True):
    """One token that was said. `logprob` None: not known (it was said without anybody asking). `alternatives` are best
    first and mostly hold the token itself; `entropy` is in nats. Packs well with msgspec, for whoever stores it."""

    token_id: int
    raw: bytes
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    entropy: float | None = None
    is_reasoning: bool = False

    @property
    def probability(self) -> float | None:
        return None if self.logprob is None else math.exp(self.logprob)

    @property
    def rank(self) -> int | None:
        """1 for the first choice; None where it is none of the known alternatives."""
        ids = [each.token_id for each in self.alternatives]
        return ids.index(self.token_id) + 1 if self.token_id in ids else None

    @property
    def surprise_bits(self) -> float | None:
        return None if self.logprob is None else max(0.0, -self.logprob / math.log(2))


class Scored(msgspec.Struct, frozen=True):
    """An entry of a stream's log-probabilities, as it is sent with `return_token_ids`."""

    logprob: float = 0.0
    token_id: int = -1
    byte_values: list[int] | None = msgspec.field(name="bytes", default=None)
    top_logprobs: list["Scored"] = []
    entropy: float | None = None
    reasoning: bool = False

    def said(self) -> SaidToken:
        best = tuple(
            Alternative(each.token_id, bytes(each.byte_values or ()), each.logprob) for each in self.top_logprobs
        )
        raw = bytes(self.byte_values or ())
        return SaidToken(self.token_id, raw, self.logprob, best, self.entropy, self.reasoning)
