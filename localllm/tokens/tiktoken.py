"""Files of tiktoken: one token per line, its bytes in base64 and its rank, which is its id and says what merges first.

There are no merges in such a file; they follow from the ranks.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence

from localllm.errors import BadModelFile

MAX_LINES = 1 << 21


def read_ranks(raw: bytes, name: str) -> list[bytes]:
    """The tokens by rank. BadModelFile for a line that is none, or for ranks with gaps."""
    lines = raw.splitlines()
    if len(lines) > MAX_LINES:
        raise BadModelFile(f"{name} has more lines than any real tokenizer")
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            token, rank = _entry(line, number, name)
            ranks[rank] = token
    if not ranks or max(ranks) != len(ranks) - 1:
        raise BadModelFile(f"{name} has no tokens, or ranks with gaps")
    return [ranks[rank] for rank in range(len(ranks))]


def _entry(line: bytes, number: int, name: str) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), int(rank)
    except (ValueError, binascii.Error) as error:
        raise BadModelFile(f"{name} line {number} is no token and rank") from error


def looks_like_ranks(prefix: bytes) -> bool:
    """True for the first bytes of such a file."""
    first = prefix.split(b"\n", 1)[0].split()
    try:
        return len(first) == 2 and int(first[1]) >= 0 and bool(base64.b64decode(first[0], validate=True))
    except (ValueError, binascii.Error):
        return False


def merges_from_ranks(texts: Sequence[str]) -> list[tuple[str, str]]:
    """For each token, the two parts that merge last when it is built from tokens of lower rank.

    Tokens that cannot be built (special ones, whose spelling is no sequence of lower tokens) have no merge.
    """
    ranks = {text: rank for rank, text in enumerate(texts)}
    pairs = (_last_pair(text, rank, ranks) for rank, text in enumerate(texts) if len(text) > 1)
    return [pair for pair in pairs if pair is not None]


def _last_pair(text: str, rank: int, ranks: Mapping[str, int]) -> tuple[str, str] | None:
    parts = list(text)
    while len(parts) > 2:
        candidates = [(ranks.get(parts[at] + parts[at + 1], rank), at) for at in range(len(parts) - 1)]
        best, at = min(candidates)
        if best >= rank:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if all(part in ranks for part in parts) else None
