"""A toy model that says what it is told to: the text behind the last `say:` of the prompt, up to the end of that line.

`\\n` in it is a line break. Run as a script this file is a worker.
"""

import sys
from collections.abc import Sequence
from typing import Any

from localllm import wire
from localllm.daemon.sources import Sources
from tests.daemon.toy import CONTEXT_LENGTH, EOS, PAGE_SIZE, VOCAB_SIZE, ToyLibrary, toy_entry, toy_guides, toy_text

WORKER_COMMAND = (sys.executable, __file__)
NUM_PAGES = 2048
LONG_CONTEXT = 16 * CONTEXT_LENGTH
THINK = "say:<think>Let me see.</think>It is fine."
BARE_CALL = 'say:<tool_call>{"name": "look", "arguments": {"place": "Bern", "n": 3}}</tool_call>'
CALL = 'say:I look.\\n<tool_call>{"name": "look", "arguments": {"place": "Bern", "n": 3}}</tool_call>'
MARK, TURN = b"say:", b"<assistant>"


def script_of(prompt: bytes) -> bytes:
    """What the model is to say; a few words where nobody tells it."""
    line = prompt.rpartition(MARK)[2].partition(b"\n")[0] if MARK in prompt else b"fine, thank you"
    return line.replace(b"\\n", b"\n")


def next_token(visible: Sequence[int]) -> int:
    prompt, _, said = bytes(token for token in visible if token < 256).rpartition(TURN)
    script = script_of(prompt)
    return script[len(said)] if len(said) < len(script) else EOS


def parrot_engine(load: wire.Load, progress: Any) -> tuple[Any, wire.Ready]:
    from localllm.backends.fake import FakeBackend
    from localllm.engine.engine import Engine

    engine = Engine(
        FakeBackend(vocab_size=VOCAB_SIZE, page_size=PAGE_SIZE, answer=next_token),
        context_length=LONG_CONTEXT,
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        token_budget=load.token_budget,
        max_sequences=load.max_sequences,
        guides=toy_guides(),
    )
    return engine, wire.Ready(
        backend="fake", device="cpu", native=False, context_length=LONG_CONTEXT, vocab_size=VOCAB_SIZE,
        num_pages=NUM_PAGES, page_size=PAGE_SIZE, weight_bytes=0, kv_bytes=0, load_s=0.0, threads=1,
    )  # fmt: skip


def parrots() -> Sources:
    """`parrot:1b`, which thinks and calls tools where it is told to."""
    entry = toy_entry("parrot:1b", "parrot:", capabilities=("completion", "tools", "thinking"))
    return Sources(
        library=ToyLibrary(entry),
        load_text=lambda entry: toy_text(entry, temperature=0.0),
        worker_command=WORKER_COMMAND,
        backend_problem=lambda backend: "",
    )


if __name__ == "__main__":
    from localllm.daemon.worker import run, socket_from

    sys.exit(run(socket_from(sys.argv[1:]), parrot_engine))
