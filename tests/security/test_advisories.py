"""Public advisories of programs like this one, one promise each; docs/SECURITY.md says which tests elsewhere hold more.

The rows about names, keys, browsers, limits, pickle, secrets and the terminal have files of their own beside this one.
"""

import ast
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from localllm.errors import BadModelFile, InvalidRequest, LocalLLMError, UsageError
from localllm.formats.safetensors import SafetensorsFolder
from localllm.quantize.convert import convert
from localllm.server.app import library_of as real_library
from localllm.settings import load_settings
from localllm.store.modelfile import parse_modelfile
from localllm.store.names import parse_ref
from localllm.tokens.chat import ChatTemplate
from tests.formats.crafted import STRING, gguf, key, tensor, text
from tests.server.parrot import parrots
from tests.server.world import World, daemon
from tests.store.conftest import _own_caches  # noqa: F401  # a fixture: no cache or token of this user is seen
from tests.store.worlds import FakeHub, fake_hub, library_of, tiny_gguf

ROOT = Path(__file__).parents[2]
MESSAGES = [{"role": "user", "content": "say:ok"}]
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 48,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), sources=parrots()) as world:
        yield world
        answer = world.client.post("/v1/chat/completions", json={"model": "parrot:1b", "messages": MESSAGES})
        assert answer.json()["choices"][0]["message"]["content"] == "ok", "after all of it, it answers as before"


@contextmanager
def canary() -> Iterator[tuple[str, socket.socket]]:
    """An address that nobody may connect to, and who listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener


def check_alone(listener: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        listener.accept()


# ---- memory disclosure: CVE-2026-7482 ("Bleeding Llama": a tensor that ends behind its file was quantized with what
# lay behind it in memory), CVE-2026-33298, CVE-2026-27940 (sizes that overflow)

ARCHITECTURE = key("general.architecture", STRING, text("llama"))
BEYOND = {
    "longer than the file": gguf([ARCHITECTURE], [tensor("token_embd.weight", [32, 4096])], bytes(64)),
    "behind the file": gguf([ARCHITECTURE], [tensor("token_embd.weight", [32], offset=2**40)], bytes(128)),
    "one byte short": gguf([ARCHITECTURE], [tensor("token_embd.weight", [32])], bytes(127)),
    "overflowing": gguf([ARCHITECTURE], [tensor("token_embd.weight", [2**31, 2**31, 2**31])], bytes(128)),
}


@pytest.mark.parametrize("case", BEYOND)
def test_no_model_is_made_of_a_file_whose_tensors_end_behind_it(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bleeding.gguf"
    path.write_bytes(BEYOND[case])
    library = library_of(tmp_path / "home")
    with pytest.raises(BadModelFile):
        library.create("mine", parse_modelfile(f"FROM {path}\n"))
    assert [entry.name for entry in library.entries() if entry.name.startswith("mine")] == []


@pytest.mark.parametrize("case", BEYOND)
def test_nor_of_one_that_was_sent_here(tmp_path: Path, case: str) -> None:
    digest = "sha256:" + hashlib.sha256(BEYOND[case]).hexdigest()
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, offline=True)
    with daemon(tmp_path, sources=real_library(settings), offline=True) as world:
        assert world.client.post(f"/api/blobs/{digest}", content=BEYOND[case]).status_code == 201
        body = {"model": "mine", "files": {"x.gguf": digest}, "stream": False, "quantize": "q8_0"}
        assert 400 <= world.client.post("/api/create", json=body).status_code < 500
        made = world.client.post("/api/create", json={name: body[name] for name in ("model", "files", "stream")})
        assert 400 <= made.status_code < 500, made.text
        assert world.client.get("/api/tags").json()["models"] == []


def llama_folder(folder: Path) -> Path:
    """The smallest checkpoint that can be converted."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    random = np.random.default_rng(1)
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (48, 32), "lm_head.weight": (48, 32), "model.norm.weight": (32,),
        layer + "input_layernorm.weight": (32,), layer + "post_attention_layernorm.weight": (32,),
        layer + "self_attn.q_proj.weight": (32, 32), layer + "self_attn.k_proj.weight": (16, 32),
        layer + "self_attn.v_proj.weight": (16, 32), layer + "self_attn.o_proj.weight": (32, 32),
        layer + "mlp.gate_proj.weight": (64, 32), layer + "mlp.up_proj.weight": (64, 32),
        layer + "mlp.down_proj.weight": (32, 64),
    }  # fmt: skip
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


POISONED = """
import hashlib, sys
from pathlib import Path
import numpy as np
from localllm.formats.blocks import BlockType
from localllm.formats.safetensors import SafetensorsFolder
from localllm.quantize.convert import convert
from localllm.quantize.encode import encode
from localllm.quantize.source import QUANTIZE_TARGETS
for kind in (None, BlockType.F16, BlockType.BF16):
    with SafetensorsFolder.open(Path(sys.argv[1])) as folder:
        convert(folder, Path(sys.argv[2]), kind, {})
    print(hashlib.sha256(Path(sys.argv[2]).read_bytes()).hexdigest())
values = np.random.default_rng(2).standard_normal((8, 512)).astype(np.float32)
for kind in QUANTIZE_TARGETS.values():
    print(kind.name, hashlib.sha256(encode(kind, values).tobytes()).hexdigest())
"""


def test_what_is_written_is_made_of_what_was_read_and_of_nothing_else_in_memory(tmp_path: Path) -> None:
    folder, told = llama_folder(tmp_path / "model"), set()
    for poison in ("17", "238"):  # what fresh and freed memory is filled with
        own = {"MALLOC_PERTURB_": poison, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", POISONED, str(folder), str(tmp_path / f"{poison}.gguf")]
        told.add(subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True).stdout)
    assert len(told) == 1 and len(told.pop().splitlines()) > 4


def test_a_checkpoint_that_is_cut_off_leaves_no_file_behind(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "model")
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    with pytest.raises(BadModelFile), SafetensorsFolder.open(folder) as opened:
        convert(opened, tmp_path / "out.gguf", None, {})
    assert not (tmp_path / "out.gguf").exists()


# ---- credentials: CVE-2025-51471 (a token sent to another domain, from a registry's WWW-Authenticate realm)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def test_an_address_is_asked_without_credentials_and_so_is_where_it_leads(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("default login me password hush\n")
    hub.repos["org/x"] = {"x.gguf": tiny_gguf(tmp_path / "x.gguf").read_bytes()}
    with fake_hub(repos=hub.repos) as elsewhere:
        hub.redirect_to = elsewhere.endpoint.replace("127.0.0.1", "localhost")
        library_of(tmp_path / "home").pull(f"{hub.endpoint}/org/x/resolve/main/x.gguf")
        assert elsewhere.requests and hub.requests
        assert {token for *_, token in [*hub.requests, *elsewhere.requests]} == {""}


@pytest.mark.parametrize("address", ["https://user:word@example.com/x.gguf", "https://user@example.com/x.gguf"])
def test_an_address_with_a_password_in_it_is_refused_before_it_is_kept_anywhere(address: str) -> None:
    with pytest.raises(UsageError, match="password"):
        parse_ref(address)


def test_a_server_cannot_name_a_place_to_log_in_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with canary() as (realm, listener):

        class Asking(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(401)
                self.send_header("WWW-Authenticate", f'Bearer realm="{realm}/token",service="x",scope="y"')
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Asking)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            with pytest.raises(LocalLLMError, match="401"):
                library_of(tmp_path).pull(f"http://127.0.0.1:{server.server_port}/x.gguf")
        finally:
            server.shutdown()
            server.server_close()
        check_alone(listener)


def test_an_address_cannot_lead_to_a_file_of_this_machine(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos["org/x"] = {"x.gguf": b"GGUF"}
    hub.redirect_to = "file:///etc/passwd#"
    with pytest.raises(LocalLLMError):
        library_of(tmp_path).pull(f"{hub.endpoint}/org/x/resolve/main/x.gguf")


# ---- requests that make the server fetch (vLLM's media addresses, CVE-2026-22773) or load tensors (CVE-2025-62164)


def addresses(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Everything in a request that could be taken for something to fetch, in each dialect."""

    def chat(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(parts)}]}

    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"{url}/schema.json"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": f"{url}/schema.json"}}}
    plain: dict[str, Any] = {"messages": MESSAGES}
    return [
        ("/v1/chat/completions", chat({"type": "image_url", "image_url": {"url": f"{url}/x.png"}})),
        ("/v1/chat/completions", chat({"type": "image_url", "image_url": f"{url}/x.png"})),
        ("/v1/chat/completions", chat({"type": "video_url", "video_url": {"url": url}})),
        ("/v1/chat/completions", chat({"type": "audio_url", "audio_url": {"url": url}})),
        ("/v1/chat/completions", chat({"type": "file", "file": {"file_url": url}})),
        ("/v1/chat/completions", plain | {"response_format": schema}),
        ("/v1/chat/completions", plain | {"tools": [tool], "tool_choice": "required"}),
        ("/v1/chat/completions", plain | {"web_search_options": {}}),
        ("/v1/chat/completions", plain | {"model": f"{url}/x.gguf"}),
        ("/v1/chat/completions", plain | {"callback_url": url, "webhook": url}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "mcp", "server_label": "x", "server_url": url}]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}),
        ("/v1/messages", chat({"type": "image", "source": {"type": "url", "url": url}}) | {"max_tokens": 5}),
        ("/v1/messages", chat({"type": "document", "source": {"type": "url", "url": url}}) | {"max_tokens": 5}),
        ("/v1/messages", plain | {"max_tokens": 5, "mcp_servers": [{"type": "url", "url": url, "name": "x"}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [url]}]}),
        ("/api/generate", {"prompt": "x", "images": [url]}),
        ("/v1/embeddings", {"input": [{"type": "image_url", "image_url": {"url": url}}]}),
    ]


def test_no_request_makes_the_daemon_fetch_an_address(world: World) -> None:
    with canary() as (url, listener):
        for path, body in addresses(url):
            answer = world.client.post(path, json={"model": "parrot:1b"} | body)
            is_told = "mcp_servers" in answer.headers.get("x-localllm-ignored", "")
            assert is_told or 400 <= answer.status_code < 500, (path, body, answer.text[:300])
        check_alone(listener)


@pytest.mark.parametrize("field", ["prompt_embeds", "input_embeds", "image_data", "lora_path", "kv_transfer_params"])
def test_no_tensors_come_over_the_api(world: World, field: str) -> None:
    answer = world.client.post("/v1/completions", json={"model": "parrot:1b", "prompt": "x", field: "gASVAAAA"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


# ---- names that a template takes for granted: CVE-2025-62426 (`tokenize` in chat_template_kwargs)


@pytest.mark.parametrize(
    "name",
    [
        "tokenize", "chat_template", "messages", "tools", "self", "loop", "add_generation_prompt", "raise_exception",
        "strftime_now", "namespace", "dict", "range", "cycler", "return_tensors", "padding", "truncation", "max_length",
        "bos_token", "eos_token", "continue_final_message", "__class__", "_x", "",
    ],
)  # fmt: skip
def test_a_request_sets_only_the_template_variables_that_are_meant_for_it(world: World, name: str) -> None:
    from localllm.server.prompts import chat_prompt
    from tests.daemon.toy import toy_entry, toy_text

    entry = toy_entry("x:1")
    side = toy_text(entry)
    object.__setattr__(side, "template", ChatTemplate("{{ messages[0].content }}", isolated=False))
    with pytest.raises(InvalidRequest) as refused:
        chat_prompt(MESSAGES, None, entry, side, variables={name: True})
    assert refused.value.param == "chat_template_kwargs"


# ---- grammars: CVE-2025-48944 (a bad pattern in a tool ended the worker); more in tests/daemon/test_grammars.py

BAD_PARAMETERS: dict[str, Any] = {
    "pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
    "type": {"type": "object", "properties": {"a": {"type": "something"}}},
    "type of the type": {"type": "object", "properties": {"a": {"type": 5}}},
    "properties": {"type": "object", "properties": [1]},
    "itself": {"$ref": "#"},
    "depth": json.loads('{"type":"array","items":' * 40 + "{}" + "}" * 40),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_a_bad_schema_of_a_tool_is_a_400_and_the_worker_lives(world: World, case: str) -> None:
    def workers() -> set[int]:
        return {child.pid for child in psutil.Process().children() if "parrot.py" in " ".join(child.cmdline())}

    chat = {"model": "parrot:1b", "messages": MESSAGES}
    assert world.client.post("/v1/chat/completions", json=chat).status_code == 200
    before = workers()
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": BAD_PARAMETERS[case]}}
    answer = world.client.post("/v1/chat/completions", json=chat | {"tools": [tool], "tool_choice": "required"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools", answer.text
    assert world.client.post("/v1/chat/completions", json=chat).status_code == 200
    assert before and workers() == before


# ---- numbers: CVE-2026-21869 (a negative `n_discard` wrote out of bounds)

SIGNED = frozenset(("seed",))
BASE: dict[str, Any] = {
    "model": "parrot:1b", "messages": MESSAGES, "prompt": "x", "input": "x", "query": "x", "documents": ["x"],
    "stream": False, "text_1": "x", "text_2": "x", "content": "x", "text": "x",
}  # fmt: skip


def test_a_negative_number_is_refused_wherever_it_means_nothing(world: World) -> None:
    asked = 0
    for operation in world.daemon.directory.operations:
        if operation.body is None or operation.method != "POST" or operation.scope != "inference":
            continue
        fields = {field.encode_name: field for field in msgspec.structs.fields(operation.body)}
        base = {name: value for name, value in BASE.items() if name in fields}
        for name, field in fields.items():
            if "int" not in str(field.type) or name in SIGNED or "{" in operation.path:
                continue
            for number in (-(2**31), -(2**63)):
                answer = world.client.post(operation.path, json=base | {name: number})
                assert 400 <= answer.status_code < 500, (operation.path, name, number, answer.text[:200])
                asked += 1
    assert asked > 100


# ---- inside: CVE-2025-32444, CVE-2026-3059 and -3060 (a socket between the parts that anybody could reach)


def is_worker(process: psutil.Process) -> bool:
    """Other tests may have left whole daemons running beside them, which do listen."""
    return process.is_running() and "parrot.py" in " ".join(process.cmdline())


def test_workers_can_be_reached_through_no_network(world: World) -> None:
    assert world.client.post("/v1/chat/completions", json={"model": "parrot:1b", "messages": MESSAGES}).is_success
    children = [child for child in psutil.Process().children(recursive=True) if is_worker(child)]
    assert children
    deadline = time.monotonic() + 10  # a child that has not begun its own program yet still has what its parent has
    while any(child.net_connections(kind="inet") for child in children if child.is_running()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- libraries: CVE-2025-62727 (Starlette's ranges of files), markup of Rich and Textual that model text ends


HARMLESS_RICH = {"rich.cells", "rich.segment", "rich.style", "rich.color"}
"""What makes styled text of parts, and reads no markup in any of them."""
READS_MARKUP = {"Static", "Label", "Button", "Markdown", "RichLog", "Collapsible", "from_markup", "render_markup"}


def test_no_module_serves_files_or_prints_markup() -> None:
    for path in (ROOT / "localllm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not names & {"FileResponse", "StaticFiles"}, path
            rich = {name for name in (module, *names) if name.split(".")[0] == "rich"}
            assert rich <= (HARMLESS_RICH if "tui" in path.parts else set()), path
            assert not names & READS_MARKUP, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in READS_MARKUP, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "notify":
                assert any(word.arg == "markup" for word in node.keywords), path


# ---- a fault of ours


def test_a_fault_is_a_sentence_in_one_connection_that_ends_and_the_next_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon(tmp_path) as world:
        monkeypatch.setattr(world.daemon.residency, "residents", lambda: 1 // 0)
        answer = world.client.get("/props")
        monkeypatch.undo()
        assert answer.status_code == 500 and answer.headers["connection"] == "close"
        assert "ZeroDivision" not in answer.text and "inside the daemon" in answer.json()["error"]["message"]
        assert world.chat("x").status_code == 200


# ---- telemetry: there is none


def test_the_environment_cannot_make_the_daemon_tell_others_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with canary() as (url, listener):
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with daemon(tmp_path) as world:
            assert world.chat("x").status_code == 200
            assert world.client.get("/nothing").status_code == 404
        check_alone(listener)
    assert "telemetry" not in caplog.text.lower(), "not even tried"


def test_whoever_traces_this_process_sees_nothing_of_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = pytest.importorskip("opentelemetry.trace", reason="this FastAPI cannot trace")
    asked: list[str] = []

    class Provider(trace.TracerProvider):  # type: ignore[misc,name-defined]  # the package may be missing
        def get_tracer(self, name: str, *args: Any, **options: Any) -> Any:
            asked.append(name)
            return trace.NoOpTracer()

    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    with daemon(tmp_path) as world:
        assert world.chat("x").status_code == 200
    assert asked == []


def test_the_daemon_connects_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []
    for name in ("connect", "connect_ex"):
        real = getattr(socket.socket, name)

        def noting(own: socket.socket, address: Any, real: Any = real) -> Any:
            met.append(address)
            return real(own, address)

        monkeypatch.setattr(socket.socket, name, noting)
    with daemon(tmp_path) as world:
        paths = ("/", "/health", "/version", "/metrics", "/v1/models", "/openapi.json", "/localllm/v1/ps", "/api/tags")
        assert {world.client.get(path).status_code for path in paths} == {200}
        assert world.chat("x").status_code == 200
    assert met, "our own client is seen"
    assert {address[0] for address in met if isinstance(address, tuple)} == {"127.0.0.1"}


def test_a_pull_tells_the_hub_nothing_of_what_else_is_here(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _headers

    looked: list[str] = []
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)  # undone behind the test
    monkeypatch.setattr(_headers, "is_torch_available", lambda: looked.append("torch"))
    hub.repos["org/x"] = {"x-F32.gguf": tiny_gguf(tmp_path / "x.gguf").read_bytes()}
    library = library_of(tmp_path / "home", hub_endpoint=hub.endpoint)
    library.pull("hf.co/org/x")
    assert hub.requests and looked == []


# ---- the page that promises all this


def test_each_test_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []
