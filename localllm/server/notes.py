"""What is said about a request beside its answer: fields passed over, and a prompt that was cut as was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from localllm.errors import InvalidRequest
from localllm.server.unknowns import IGNORED_HEADER, Taken, ignored_header, is_agent, is_lenient, warning

TRUNCATED_HEADER = "x-localllm-truncated"


@dataclass(slots=True)
class Notes:
    """Kept while a request becomes sequences. Without anybody to forgive, what cannot be is refused."""

    is_lenient: bool = False
    is_agent: bool = False
    warnings: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    num_truncated: int = 0

    @classmethod
    def of(cls, request: Request, taken: Taken) -> "Notes":
        return cls(is_lenient(request), is_agent(request), taken.warnings, taken.headers)

    def pass_over(self, error: InvalidRequest) -> None:
        """Go on without the field that the error names, and say so; raises the error where nobody wants that."""
        if self.is_lenient:
            self.warnings.append(warning(error.param or ""))
        elif self.is_agent:
            self.ignored.append(error.param or "")
        else:
            raise error

    def truncate(self, ids: Sequence[int], most: int | None) -> list[int]:
        """The last `most` ids of a prompt; how many are gone is noted."""
        if most is None or most < 0 or len(ids) <= most:
            return list(ids)
        num_gone = len(ids) - most
        self.num_truncated += num_gone
        return list(ids[num_gone:])

    def all_headers(self) -> dict[str, str]:
        cut = {TRUNCATED_HEADER: str(self.num_truncated)} if self.num_truncated else {}
        named = ", ".join(each[IGNORED_HEADER] for each in (self.headers, ignored_header(self.ignored)) if each)
        return ({IGNORED_HEADER: named} if named else {}) | cut
