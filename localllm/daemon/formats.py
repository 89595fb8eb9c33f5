"""The form that an answer must have: a grammar still to be checked, and what may stand around what it describes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from localllm import wire
from localllm.daemon.grammars import Draft, Grammars, composed_grammar

if TYPE_CHECKING:
    from localllm.daemon.replies import Ask
    from localllm.tokens.markup.forcing import Lead


@dataclass(frozen=True, slots=True)
class Format:
    """An answer is what `body` describes, or calls that `calls` describes where there is one. `param` is the field of
    the request that asked for it, to name in errors. `is_lazy`: all this holds only behind the lead's `after`, which
    need not come."""

    body: Draft | None
    param: str
    lead: "Lead | None" = None
    calls: Draft | None = None
    is_lazy: bool = False


async def settled(asks: "Sequence[Ask]", grammars: Grammars) -> "list[Ask]":
    """The asks with their formats checked and made constraints. Raises InvalidRequest where one cannot be kept to."""
    found: dict[Format, wire.Constraint] = {}
    for wanted in dict.fromkeys(ask.format for ask in asks if ask.format is not None):
        found[wanted] = await _constraint(wanted, grammars)
    return [ask if ask.format is None else replace(ask, constraint=found[ask.format]) for ask in asks]


async def _constraint(wanted: Format, grammars: Grammars) -> wire.Constraint:
    body = await grammars.checked(wanted.body, param=wanted.param) if wanted.body else ""
    calls = await grammars.checked(wanted.calls, param="tools") if wanted.calls else ""
    constraint = constraint_of(body, calls, wanted.lead)
    if constraint.grammar not in (body, calls):  # parts that are good may be too much together
        await grammars.checked(composed_grammar(constraint.grammar), param=wanted.param)
    return msgspec.structs.replace(constraint, lazy=True) if wanted.is_lazy else constraint


def constraint_of(body: str, calls: str, lead: "Lead | None") -> wire.Constraint:
    """Checked grammars, either of which may be empty, with what may stand around them."""
    after = lead.after if lead else ""
    before, opener, closer = (lead.before, lead.opener, lead.closer) if lead else ("", "", "")
    if bool(body) != bool(calls) and not (before or (body and (opener or closer))):
        return wire.Constraint(grammar=body or calls, after=after)
    options = ([f"{opener} @body {closer}"] if body else []) + (["@calls"] if calls else [])
    around = f"start: {before} ({' | '.join(options)})\n{lead.rules if lead else ''}"
    grammars = [{"lark_grammar": around}]
    grammars += [{**_only(grammar), "name": name} for name, grammar in (("body", body), ("calls", calls)) if grammar]
    return wire.Constraint(grammar=json.dumps({"grammars": grammars}), after=after)


def _only(grammar: str) -> dict[str, str]:
    """llguidance takes one grammar as Lark, or as JSON with a list of them."""
    if not grammar.lstrip().startswith("{"):
        return {"lark_grammar": grammar}
    (inner,) = json.loads(grammar)["grammars"]
    return dict(inner)
