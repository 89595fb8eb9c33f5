"""How much may be under way at once: requests and tokens, of everybody and of each caller. Knows no models.

Judged in line and at once, so that a refusal never waits behind the work of those who were let in. Whoever was let in
is never turned away later for lack of room.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from localllm.errors import LocalLLMError, Overloaded, RateLimited
from localllm.settings import Settings

RATE_OVER = 64
"""Departures that the present rate is measured by."""
RATE_WINDOW_S = 60.0
USUAL_WAIT_S = 2.0
LONGEST_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that may be under way; 0: no bound. Requests count once per sequence that they run."""

    requests: int = 0
    tokens: int = 0
    requests_per_key: int = 0
    tokens_per_key: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        return cls(
            settings.max_sequences + settings.max_queue,
            settings.max_queue_tokens,
            settings.max_requests_per_key,
            settings.max_tokens_per_key,
        )


@dataclass(slots=True, eq=False)
class Ticket:
    """What one request takes up until it is given back."""

    caller: str
    requests: int
    tokens: int


class Admission:
    """Counts what is under way. `clock` counts seconds and never goes back."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        self.num_refused = 0
        self._clock = clock
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._num_requests = 0
        self._num_tokens = 0
        self._departures: deque[tuple[float, int]] = deque(maxlen=RATE_OVER)  # when, and how many tokens left

    @property
    def num_requests(self) -> int:
        return self._num_requests

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    @property
    def is_full(self) -> bool:
        """Whether hardly anybody could be let in."""
        bounds = self.bounds
        return 0 < bounds.requests <= self._num_requests or 0 < bounds.tokens <= self._num_tokens

    def enter(self, caller: str, tokens: int = 0) -> Ticket:
        """Room for one sequence of about so many tokens. Overloaded, or RateLimited where the caller alone has too
        much under way; both say when it is worth another try."""
        ticket = Ticket(caller, 0, 0)
        self._check(ticket, 1, tokens)
        self._take(ticket, 1, tokens)
        return ticket

    def check(self, caller: str, tokens: int = 0) -> None:
        """Refuse as `enter` would."""
        self._check(Ticket(caller, 0, 0), 1, tokens)

    def settle(self, ticket: Ticket, requests: int, tokens: int, *, is_certain: bool = False) -> None:
        """What it really takes up, now that this is known. Refuses as `enter` does, but not what is certain: who was
        told that an answer comes gets one."""
        if not is_certain:
            self._check(ticket, requests, tokens)
        self._take(ticket, requests - ticket.requests, tokens - ticket.tokens)

    def leave(self, ticket: Ticket) -> None:
        """Give it back; once."""
        self._departures.append((self._clock(), ticket.tokens))
        self._take(ticket, -ticket.requests, -ticket.tokens)
        for counter in (self._requests, self._tokens):
            if not counter[ticket.caller]:
                del counter[ticket.caller]

    # ---- judging

    def _check(self, ticket: Ticket, requests: int, tokens: int) -> None:
        """Whether there is room for so much in place of what the ticket holds now."""
        bounds, caller = self.bounds, ticket.caller
        for kind, held, bound, own, wanted, unit in (
            (RateLimited, self._requests[caller], bounds.requests_per_key, ticket.requests, requests, "requests"),
            (RateLimited, self._tokens[caller], bounds.tokens_per_key, ticket.tokens, tokens, "tokens"),
            (Overloaded, self._num_requests, bounds.requests, ticket.requests, requests, "requests"),
            (Overloaded, self._num_tokens, bounds.tokens, ticket.tokens, tokens, "tokens"),
        ):
            others = held - own
            # what is larger than the bound by itself may come when nothing else is there
            if bound and others and wanted > own and others + wanted > bound:
                self.num_refused += 1
                raise self._refusal(kind, others, bound, others + wanted - bound, unit)

    def _refusal(self, kind: type[Overloaded], held: int, bound: int, excess: int, unit: str) -> LocalLLMError:
        whose = "of this key are" if kind is RateLimited else "are"
        wait_s = self._wait_s(excess, unit)
        error = kind(
            f"{held} {unit} {whose} under way already, of {bound} that may be",
            hint=f"try again in {wait_s:.0f} s",
        )
        error.retry_after_s = wait_s
        return error

    def _wait_s(self, excess: int, unit: str) -> float:
        """Seconds until so much more will have left, going by the last departures."""
        now = self._clock()
        recent = [(at, tokens) for at, tokens in self._departures if at > now - RATE_WINDOW_S]
        left = sum(tokens for _, tokens in recent) if unit == "tokens" else len(recent)
        if not left:
            return USUAL_WAIT_S
        rate = left / max(0.1, now - recent[0][0])
        return float(min(LONGEST_WAIT_S, max(1.0, -(-excess // max(rate, 1e-3)))))

    def _take(self, ticket: Ticket, requests: int, tokens: int) -> None:
        ticket.requests += requests
        ticket.tokens += tokens
        self._requests[ticket.caller] += requests
        self._tokens[ticket.caller] += tokens
        self._num_requests += requests
        self._num_tokens += tokens
