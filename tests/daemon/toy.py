"""A model without weights for tests above the engine: bytes are tokens, the next one is a hash of all before it.

The path of a toy model says how it behaves: `toy:` plainly, `toy:slow` with 20 ms steps, `toy:sick` dies while loading,
`toy:stuck` never ends its first step, `toy:mortal` dies of a prompt with an X in it.
Run as a script this file is a worker.
"""

import os
import signal
import sys
import time
import zlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from localllm import wire
from localllm.errors import BadModelFile, ModelNotFound
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.models.adapters import Adapter
    from localllm.runtime.constraints import Constraints
    from localllm.runtime.load import TextSide
    from localllm.tokens.chat import ChatTemplate
    from localllm.tokens.tokenizer import Tokenizer

BOS, EOS, TURN = 256, 257, 258
VOCAB_SIZE = 260
CONTEXT_LENGTH = 512
NUM_PAGES = 512
PAGE_SIZE = 16


def next_token(visible: Sequence[int]) -> int:
    """Letters mostly, sometimes both halves of an é, now and then the end."""
    if visible[-1] == 0xC3:
        return 0xA9
    number = zlib.crc32(array("H", visible).tobytes())
    if number % 64 == 0:
        return EOS
    return 0xC3 if number % 7 == 0 else ord("abcdefgh "[number % 9])


def next_token_or_death(visible: Sequence[int]) -> int:
    if ord("X") in visible:
        os.kill(os.getpid(), signal.SIGKILL)
    return next_token(visible)


def expected_text(prompt: Sequence[int], max_tokens: int) -> str:
    """What the toy says greedily after a prompt: the oracle of every test."""
    visible, answer = list(prompt), bytearray()
    for _ in range(max_tokens):
        token = next_token(visible)
        if token == EOS:
            break
        visible.append(token)
        answer.append(token)
    return answer.decode("utf-8", errors="replace")


class ToyTokenizer:
    vocab_size = VOCAB_SIZE
    eog_ids = frozenset((EOS,))
    special_ids = frozenset((BOS, EOS, TURN))
    built = SimpleNamespace(
        adds_space_prefix=False,
        texts={BOS: "<bos>", EOS: "<eos>", TURN: "<turn>"},
        special=SimpleNamespace(bos_id=BOS, eos_id=EOS, unk_id=None, pad_id=None),
    )
    notes = ("bytes are tokens here",)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [BOS, *text.encode()] if add_special else list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    said_bytes = token_bytes


class ToyTemplate:
    source = "<think></think><tool_call>"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        turns = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
        return turns + ("<assistant>" if add_generation_prompt else "")

    def close(self) -> None: ...


def toy_text(entry: Entry, **default_sampling: float) -> "TextSide":
    from localllm.runtime.load import TextSide

    tokenizer, template = cast("Tokenizer", ToyTokenizer()), cast("ChatTemplate", ToyTemplate())
    return TextSide(tokenizer, template, default_sampling, CONTEXT_LENGTH, "toy")


def toy_entry(name: str, path: str = "toy:", **fields: Any) -> Entry:
    return Entry(name=name, path=path, source="path", digest=f"digest of {name}", size_bytes=1000, **fields)


class ToyLibrary:
    """Finds toy models by name. More can be added while a daemon runs."""

    def __init__(self, *entries: Entry) -> None:
        self.by_name = {entry.name: entry for entry in entries or (toy_entry("toy:1b"),)}

    def find(self, name: str) -> Entry:
        if name not in self.by_name:
            raise ModelNotFound(f"there is no model {name!r}", hint="did you mean toy:1b?", param="model")
        return self.by_name[name]

    def entries(self) -> list[Entry]:
        return list(self.by_name.values())


def toy_guides() -> "Constraints":
    """Grammars over bytes; nothing of llguidance is loaded before one is asked for."""
    from localllm.runtime.constraints import Constraints
    from localllm.runtime.token_bytes import TokenBytes

    raws = [bytes([token]) for token in range(256)] + [b"<bos>", b"<eos>", b"<turn>"]
    tokens = TokenBytes(raws, VOCAB_SIZE, control_ids=(BOS, EOS, TURN), eog_ids=(EOS,))
    return Constraints(Path("toy"), VOCAB_SIZE, read=lambda path, vocab_size: tokens)  # no file has them


def toy_adapter(path: str) -> "Adapter":
    """One without matrices; of a path with `other` in it: one of another model."""
    from localllm.models.adapters import Adapter

    if "other" in path:
        raise BadModelFile(f"the adapter {path} is for another model")
    return Adapter(path, {})


def toy_engine(load: wire.Load, progress: Any) -> tuple[Any, wire.Ready]:
    from localllm.backends.fake import FakeBackend
    from localllm.engine.engine import Engine

    kind = load.path.removeprefix("toy:")
    progress("loading weights", 0, 1000)
    if kind == "sick":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "broken":
        raise BadModelFile("the toy is broken", hint="pull it again")
    if kind == "heavy":
        time.sleep(0.3)
    if kind == "endless":
        time.sleep(600)
    seconds = {"slow": 0.02, "mortal": 0.02, "stuck": 60.0}.get(kind, 0.0)
    answer = next_token_or_death if kind == "mortal" else next_token
    num_pages = load.kv_pages or NUM_PAGES
    engine = Engine(
        FakeBackend(
            vocab_size=VOCAB_SIZE,
            page_size=PAGE_SIZE,
            answer=answer,
            seconds_per_step=seconds,
            has_state=kind == "hybrid",
        ),
        context_length=CONTEXT_LENGTH,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        token_budget=load.token_budget,
        max_sequences=load.max_sequences,
        guides=toy_guides(),
        read_adapter=toy_adapter,
    )
    progress("loading weights", 1000, 1000)
    return engine, wire.Ready(
        backend="fake", device="cpu", native=False, context_length=CONTEXT_LENGTH, vocab_size=VOCAB_SIZE,
        num_pages=num_pages, page_size=PAGE_SIZE, weight_bytes=0, kv_bytes=0, load_s=0.0, threads=1,
    )  # fmt: skip


WORKER_COMMAND = (sys.executable, __file__)

if __name__ == "__main__":
    from localllm.daemon.worker import run, socket_from

    sys.exit(run(socket_from(sys.argv[1:]), toy_engine))
