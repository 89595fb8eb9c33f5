"""A whole reply at once: every sequence's pieces joined."""

from localllm.daemon.replies import Piece, Reply

Collected = Piece


def join(whole: Piece, piece: Piece) -> None:
    """Append what came later."""
    whole.text += piece.text
    whole.reasoning += piece.reasoning
    whole.tool_calls += piece.tool_calls
    whole.ids += piece.ids
    whole.logprobs += piece.logprobs
    whole.prompt_logprobs += piece.prompt_logprobs
    whole.finish, whole.stop = piece.finish, piece.stop


async def collect(reply: Reply, num_sequences: int) -> list[Collected]:
    """Wait for the end of all sequences. Raises what ended the reply early."""
    wholes = [Piece(index) for index in range(num_sequences)]
    while not reply.is_done:
        for piece in await reply.gather():
            join(wholes[piece.index], piece)
    return wholes
