"""The parser of a spec: text in as it streams, pieces out as soon as they are certain."""

from typing import Protocol

from localllm.tokens.markup.harmony import HarmonyParser
from localllm.tokens.markup.pieces import Piece
from localllm.tokens.markup.spec import MarkupSpec
from localllm.tokens.markup.tags import TagParser


class Parser(Protocol):
    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class MarkupParser:
    """Pieces of one kind follow each other as they stream; a tool call is one piece, with all of its arguments.

    How the text is cut into pushes makes no difference to what comes out, neighbours of one kind joined.
    """

    def __init__(self, spec: MarkupSpec) -> None:
        self._parser: Parser = HarmonyParser(spec.opening) if spec.is_harmony else TagParser(spec)

    def push(self, text: str) -> list[Piece]:
        """What has become certain with this text."""
        return self._parser.push(text)

    def finish(self) -> list[Piece]:
        """What was held back; an unclosed tool call counts if its body is complete."""
        return self._parser.finish()
