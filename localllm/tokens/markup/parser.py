"""The parser of a spec: text in as it streams, pieces out as soon as they are certain."""

from typing import Protocol

from localllm.tokens.markup.harmony import HarmonyParser
from localllm.tokens.markup.pieces import Piece
from localllm.tokens.markup.spec import MarkupSpec
from localllm.tokens.markup.tags import TagParser


class Parser(Protocol):
    @property
    def num_calls(self) -> int: ...

    @property
    def is_reasoning(self) -> bool: ...

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class MarkupParser:
    """Pieces of one kind follow each other as they stream. A tool call begins with a piece that has its name; pieces
    of calls without a name go on with the arguments of the last one.

    How the text is cut into pushes makes no difference to what comes out, neighbours of one kind joined.
    """

    def __init__(self, spec: MarkupSpec) -> None:
        self._parser: Parser = HarmonyParser(spec.opening) if spec.is_harmony else TagParser(spec)

    @property
    def num_calls(self) -> int:
        """Calls whose arguments are complete."""
        return self._parser.num_calls

    @property
    def is_reasoning(self) -> bool:
        """What comes next is reasoning, until a tag says otherwise."""
        return self._parser.is_reasoning

    def push(self, text: str) -> list[Piece]:
        """What has become certain with this text."""
        return self._parser.push(text)

    def finish(self) -> list[Piece]:
        """What was held back; an unclosed tool call counts if its body is complete."""
        return self._parser.finish()
