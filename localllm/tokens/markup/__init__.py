"""Streamed text to content, reasoning and tool calls, by the tags that a model's template speaks of.

Nothing is lost: a tag that never closes, or encloses what is no call, comes out as the text that it is.
"""

from localllm.tokens.markup.detect import detect_markup
from localllm.tokens.markup.families import ToolFormat
from localllm.tokens.markup.parser import MarkupParser
from localllm.tokens.markup.pieces import Piece, PieceKind
from localllm.tokens.markup.spec import MarkupSpec

__all__ = ["MarkupParser", "MarkupSpec", "Piece", "PieceKind", "ToolFormat", "detect_markup"]
