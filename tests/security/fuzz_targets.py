"""What is fuzzed, and what counts as surviving: a target takes bytes from anybody and may only end in an error of ours.

`scripts/fuzz` runs them for long, guided by coverage; test_fuzz_short.py for seconds.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.server.asks import chat_asks, completion_asks
from localllm.server.fields import ChatRequest, CompletionRequest, parse
from localllm.server.json_text import decoded_object
from localllm.settings import load_settings
from localllm.tokens.chat import ChatTemplate
from tests.daemon.toy import VOCAB_SIZE, toy_entry, toy_text

MESSAGES = [{"role": "user", "content": "Hi"}]


class Survivors:
    """The targets, with what they need once. `home` holds a file that is written again and again."""

    def __init__(self, home: Path) -> None:
        self._file = home / "fuzzed"
        self._settings = load_settings({"LOCALLLM_HOME": str(home)})
        self._entry = toy_entry("toy:1b")
        self._text = toy_text(self._entry)

    def gguf(self, data: bytes) -> None:
        self._file.write_bytes(data)
        try:
            with GGUFFile.open(self._file) as file:
                for name, tensor in file.tensors.items():
                    assert name and tensor.shape is not None
        except (BadModelFile, UnsupportedModel):
            pass

    def safetensors(self, data: bytes) -> None:
        path = self._file.with_suffix(".safetensors")
        path.write_bytes(data)
        try:
            with SafetensorsFolder.open(path) as file:
                assert file is not None
        except (BadModelFile, UnsupportedModel):
            pass

    def template(self, data: bytes) -> None:
        source = data.decode("utf-8", errors="replace")
        try:
            template = ChatTemplate(source)
        except LocalLLMError:
            return
        try:
            assert isinstance(template.render(MESSAGES), str)
        except LocalLLMError:
            pass
        finally:
            template.close()

    def body(self, data: bytes) -> None:
        """As chat and as plain completion, up to the sequences that would run."""
        try:
            decoded = decoded_object(data)
        except LocalLLMError as error:
            assert error.http_status < 500
            return
        for kind, make in ((ChatRequest, chat_asks), (CompletionRequest, completion_asks)):
            try:
                wanted: Any = parse(dict(decoded), kind)
                make(wanted, self._entry, self._text, self._settings, VOCAB_SIZE)
            except LocalLLMError as error:
                assert error.http_status < 500, error

    def targets(self) -> Mapping[str, Callable[[bytes], None]]:
        return {"gguf": self.gguf, "safetensors": self.safetensors, "template": self.template, "body": self.body}


def seeds(target: str) -> list[bytes]:
    """Small sound inputs, made here: what is guided by coverage grows from them."""
    if target == "gguf":
        return [_gguf()]
    if target == "safetensors":
        header = msgspec.json.encode({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
        return [len(header).to_bytes(8, "little") + header + bytes(8)]
    if target == "template":
        return [
            b"{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}",
            b"{% set ns = namespace(a=0) %}{% if tools %}{{ tools | tojson }}{% endif %}{{ raise_exception('x') }}",
        ]
    chat = {"model": "toy:1b", "messages": MESSAGES, "temperature": 0.5, "stop": ["x"], "logit_bias": {"1": 2}, "n": 2}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    formed = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    text = {"model": "toy:1b", "prompt": ["a", "b"], "logprobs": 1, "echo": True, "best_of": 3, "suffix": "c"}
    return [
        msgspec.json.encode(each) for each in (chat, chat | {"tools": tools}, chat | {"response_format": formed}, text)
    ]


def _gguf() -> bytes:
    import gguf
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint32("llama.context_length", 512)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        writer.add_tensor("w", numpy.zeros((2, 32), dtype=numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(path).read_bytes()
