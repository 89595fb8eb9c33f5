"""A whole reply at once: every sequence's pieces joined."""

from collections.abc import Iterable
from dataclasses import replace

from localllm.daemon.incremental import ToolCall
from localllm.daemon.replies import Piece, Reply

Collected = Piece


def join(whole: Piece, piece: Piece) -> None:
    """Append what came later."""
    whole.text += piece.text
    whole.reasoning += piece.reasoning
    whole.tool_calls = joined_calls([*whole.tool_calls, *piece.tool_calls])
    whole.ids += piece.ids
    whole.logprobs += piece.logprobs
    whole.are_reasoning += piece.are_reasoning
    whole.prompt_logprobs += piece.prompt_logprobs
    whole.finish, whole.stop = piece.finish, piece.stop
    whole.num_computed = max(whole.num_computed, piece.num_computed)
    whole.num_cached = max(whole.num_cached, piece.num_cached)
    whole.vector += piece.vector


async def collect(reply: Reply, num_sequences: int) -> list[Collected]:
    """Wait for the end of all sequences. Raises what ended the reply early."""
    wholes = [Piece(index) for index in range(num_sequences)]
    while not reply.is_done:
        for piece in await reply.gather():
            join(wholes[piece.index], piece)
    reply.take()  # what was refused before anybody looked is done, too, and says so here
    return wholes


def joined_calls(parts: Iterable[ToolCall]) -> list[ToolCall]:
    """Whole calls from their parts, in order."""
    whole: dict[int, ToolCall] = {}
    for part in parts:
        known = whole.get(part.index)
        whole[part.index] = part if known is None else replace(known, arguments=known.arguments + part.arguments)
    return list(whole.values())
