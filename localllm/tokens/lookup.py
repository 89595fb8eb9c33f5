"""Looking tokens up in a vocabulary: by text, by id, by bytes, and by what holds them."""

from functools import cached_property

from localllm.errors import InvalidRequest
from localllm.tokens.specials import TokenType
from localllm.tokens.tokenizer import Tokenizer


class Lookup:
    """A vocabulary as bytes and as lower-case text; both are made when first needed."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name

    def type_of(self, token_id: int) -> str:
        """normal, control, user defined, byte, unknown, unused or undefined."""
        return TokenType(self._tokenizer.built.types[token_id]).name.lower().replace("_", " ")

    def find(self, *, text: str | None = None, token_id: int | None = None, raw: bytes | None = None) -> list[int]:
        """Ids of what was asked for, the exact ones first, then the shortest; every id where nothing was."""
        if token_id is not None:
            if not 0 <= token_id < self._tokenizer.vocab_size:
                last = self._tokenizer.vocab_size - 1
                raise InvalidRequest(f"{token_id} is no token id: {self._name} has ids from 0 to {last}", param="id")
            return [token_id]
        if raw is not None:
            return self._sorted([one for one, other in enumerate(self._bytes) if raw in other], raw)
        if text:
            wanted = text.lower()
            return self._sorted([one for one, other in enumerate(self._texts) if wanted in other], text.encode())
        return list(range(self._tokenizer.vocab_size))

    def holding(self, token_id: int) -> list[int]:
        """Other entries whose bytes hold the token's, the shortest first."""
        raw = self._tokenizer.token_bytes(token_id)
        if not raw:
            return []
        return self._sorted([one for one, other in enumerate(self._bytes) if raw in other and one != token_id], raw)

    def _sorted(self, ids: list[int], raw: bytes) -> list[int]:
        known = self._bytes
        return sorted(ids, key=lambda one: (known[one].strip() != raw.strip(), len(known[one]), one))

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [self._tokenizer.token_bytes(token_id) for token_id in range(self._tokenizer.vocab_size)]

    @cached_property
    def _texts(self) -> list[str]:
        return [raw.decode("utf-8", errors="replace").lower() for raw in self._bytes]
