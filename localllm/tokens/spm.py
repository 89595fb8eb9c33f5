"""SentencePiece BPE vocabularies: a list of pieces with scores, no list of merges."""

from collections.abc import Sequence

from localllm.tokens.specials import TokenType

_MERGED = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)


def merges_from_scores(texts: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to cut a piece into two pieces, best score of the union first.

    SentencePiece merges the neighbouring pair whose union scores best; with the pairs in that order, ranked BPE does
    the same. Pairs of one piece get adjacent ranks, and ties go to the leftmost pair as there.
    """
    pieces = {text for text, kind in zip(texts, types, strict=True) if kind in _MERGED}
    order = sorted(range(len(texts)), key=lambda token_id: (-scores[token_id], token_id))
    return [
        (texts[token_id][:cut], texts[token_id][cut:])
        for token_id in order
        if types[token_id] in _MERGED
        for cut in range(1, len(texts[token_id]))
        if texts[token_id][:cut] in pieces and texts[token_id][cut:] in pieces
    ]


def scores_from_merges(texts: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores from which `merges_from_scores` gets the merges: a piece is as good as the first merge that makes it.

    What no merge makes (single characters, special tokens) is never looked at and gets the worst score.
    """
    places: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        places.setdefault(left + right, place)
    return [-float(places.get(text, len(merges))) for text in texts]
