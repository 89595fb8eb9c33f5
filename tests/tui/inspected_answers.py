"""An answer with invented probabilities for the inspector's tests and pictures: the same numbers each time."""

import math
import random
import re

from localllm.tui.inspector.inspected import Alternative, InspectedAnswer, InspectedToken, SamplerCuts

TEXT = """Fair share needs one number for each caller: how much of the step it may take when others are waiting. \
Give every caller a weight, add its used tokens to a running total, and always serve the caller whose total divided by \
weight is lowest. A new caller starts at the current minimum, so it cannot claim the past.

Keep decodes first. They cost one token each and people are reading them. Then spend what remains of the budget on \
prompts, in the order above, and cut the last one to fit. Two callers with equal weights then see equal speed, a \
caller with weight 3 gets about three times as much, and an idle one costs nothing.

Measure the gap between tokens at p95 before and after; it should fall from seconds to under 40 ms. If it does not, \
the budget is too large for this device: halve it and look again.

One more thing: show each caller its place. A number that goes down is easier to wait for than silence, and it costs \
you one field in the stream."""
OTHERS = (
    (" share", 0.412), (" weight", 0.273), (" quota", 0.118), (" budget", 0.064), (" priority", 0.051),
    (" number", 0.022), (" limit", 0.014), (" rank", 0.009), (" ticket", 0.006), (" score", 0.004),
)  # fmt: skip
VOCAB_SIZE = 151_643


def alternative(text: str, chance: float) -> Alternative:
    return Alternative(sum(text.encode()) % VOCAB_SIZE, text.encode(), math.log(chance))


def said(text: str, chance: float, others: tuple[tuple[str, float], ...] = ()) -> InspectedToken:
    """A token among others; without any, alone with a word for what is left."""
    left = min(chance, 1 - chance) * 0.9
    pairs = others or tuple(pair for pair in ((text, chance), (" else", left)) if pair[1] > 0)
    best = tuple(sorted((alternative(*pair) for pair in pairs), key=lambda each: -each.logprob))
    own = alternative(text, chance)
    return InspectedToken(own.token_id, own.raw, own.logprob, best, chance * -math.log(chance) * 4)


def answer(*, is_live: bool = False) -> InspectedAnswer:
    """213 tokens; the 27th is "weight", which was the second choice."""
    tokens, dice = [], random.Random(11)
    for match in re.finditer(r"\n+| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]", TEXT):
        text, luck = match.group(), dice.random()
        chance = 0.9 + 0.099 * dice.random()
        for bound, least, span in ((0.95, 0.03, 0.12), (0.87, 0.15, 0.25), (0.74, 0.4, 0.3), (0.56, 0.7, 0.2)):
            if luck >= bound:
                chance = least + span * dice.random()
                break
        if len(text.strip()) <= 1 and text.strip() not in "aA":
            chance = max(chance, 0.93)
        tokens.append(said(text, 0.273, OTHERS) if text == " weight" and len(tokens) < 30 else said(text, chance))
    cuts = SamplerCuts(temperature=1.0, top_p=0.95)
    return InspectedAnswer("Answer 2 of 3", tokens, cuts, 2311, 16, VOCAB_SIZE, is_live)
