"""GPT-2's spelling of bytes as printable characters."""

from collections.abc import Mapping
from functools import cache


@cache
def byte_alphabet() -> Mapping[str, int]:
    """Printable Latin-1 stands for itself, the other bytes are U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + place): byte for place, byte in enumerate(others)}


@cache
def _spelling() -> Mapping[int, str]:
    return {byte: character for character, byte in byte_alphabet().items()}


def spelled(raw: bytes) -> str:
    """Bytes as the vocabulary spells them."""
    return raw.decode("latin-1").translate(dict(_spelling()))


def spelled_bytes(text: str) -> bytes:
    """A token in the byte alphabet to its bytes; a token with any other character stands for its own UTF-8."""
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in text)
    except KeyError:
        return text.encode("utf-8", errors="replace")
