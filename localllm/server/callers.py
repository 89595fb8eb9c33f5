"""Who sends a request, as far as the guard knows."""

from dataclasses import dataclass

from starlette.requests import Request

from localllm.server.operations import Scope

ALL_SCOPES: frozenset[Scope] = frozenset(("open", "inference", "manage"))


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is that of the key, empty where no keys are asked for: it says whose share of the machine is used."""

    name: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES


ANYBODY = Caller()
STATE = "localllm.caller"


def caller_of(request: Request) -> Caller:
    caller = request.scope.get(STATE, ANYBODY)
    assert isinstance(caller, Caller)
    return caller
