"""schemathesis against a daemon over toy models: every route as `/openapi.json` describes it, all phases, good data and
bad. `scripts/hammer` runs it for long, test_schemathesis.py for a minute.

What the description allows is to be accepted. What no schema can say may be refused, each refusal with its reason in
REASONS: one that is not there is a gap in the description, and fails.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import schemathesis

from tests.server.world import World, daemon

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "hammer"
MODEL = "toy:1b"
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Found:
    """`calls`: cases that were sent. `text`: what schemathesis printed."""

    calls: int
    failures: list[str]
    seconds: float
    text: str


def hammer(home: Path, max_examples: int, *phases: str, seed: int = 1, limit_s: int = 0) -> Found:
    """`max_examples` bounds the cases of an operation in one phase of chance, `limit_s` the whole run (0: not)."""
    with daemon(home, api_keys=KEY, default_model=MODEL, max_queue=64, max_tokens=16) as world:
        found = _run(world, home, max_examples, phases, seed, limit_s)
        assert world.client.get("/health").json()["status"] == "ok", "the daemon is not well"
        return found


def _run(world: World, home: Path, max_examples: int, phases: tuple[str, ...], seed: int, limit_s: int) -> Found:
    report = home / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", world.url + "/openapi.json",
        "--checks", "all", "--mode", "all", "--max-examples", str(max_examples), "--seed", str(seed), "--no-color",
        "--request-timeout", "30", "--phases", ",".join(phases or ("examples", "coverage", "fuzzing", "stateful")),
        "--generation-database", "none", "--no-shrink", "--continue-on-failure", "--report-json-path", str(report),
        "-H", f"Authorization: Bearer {KEY}",
    ]  # fmt: skip
    command += ["--max-time", str(limit_s)] if limit_s else []
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.server.hammering", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if not report.exists():
        return Found(0, [f"schemathesis did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}"], 0.0, done.stdout)
    told = json.loads(report.read_text())
    failures = [f"{each['code']} {each['title']}: {', '.join(each['operations'])}" for each in told["failures"]]
    failures += [str(error) for error in told["errors"]]
    return Found(told["test_cases"]["generated"], failures, told["running_time"], done.stdout)


# ---- what schemathesis calls while it runs


@schemathesis.hook
def map_body(context, body):  # type: ignore[no-untyped-def]  # schemathesis calls it by these names
    """Most names become that of a model that is there: what chance makes never is. What is too long to be a name stays:
    it is to be refused."""
    name = body.get("model") if isinstance(body, dict) else None
    if isinstance(name, str) and len(name) % 8 and len(name) <= MAX_NAME_CHARS:
        return body | {"model": MODEL}
    return body


HOW_TO_LOAD = frozenset(("backend", "device", "kv_type", "threads", "quantize", "keep_alive"))


@schemathesis.hook
def map_case(context, case):  # type: ignore[no-untyped-def]  # as above
    """Most good cases do not say how their model is to be open: starting it anew takes as long as fifty of them."""
    body = case.body
    if isinstance(body, dict) and _is_good(case) and crc32(repr(body).encode()) % 8:
        case.body = {name: value for name, value in body.items() if name not in HOW_TO_LOAD}
    return case


def _is_good(case: Any) -> bool:
    return bool(case.meta is not None and case.meta.generation.mode.is_positive)


CHATS = r"/(chat|chat/completions|messages|messages/count_tokens|responses|responses/input_tokens)$"
ASKING = rf"{CHATS}|/(completions|generate|tokenize|apply-template|preview)$"
VECTORS = r"/(embeddings|rerank|reranking|score|embed)$"
FORMS = r"^(invalid_grammar|invalid_schema|constraint_failed|nothing_allowed): "
OF_STORES = r"^/api/(blobs/{digest}|copy|create|delete|pull)$|^/localllm/v1/(catalog(/search)?|library/remove|pulls)$"
REASONS: tuple[tuple[str, int, str], ...] = (
    # which names are known, no schema says
    (r".", 404, r"there is no|not found"),
    (r"/responses(/input_tokens)?$", 400, r"^previous_response_not_found: "),
    # nor which adapters
    (rf"{ASKING}|{VECTORS}", 400, r"no adapter (is called|has the id)|only one adapter can be applied"),
    (r"load_lora_adapter$", 400, r"no adapter|there is no file|cannot be opened|is another adapter"),
    # the request's own deadline, a thousandth of a second perhaps
    (rf"{ASKING}|{VECTORS}", 408, r"^deadline_exceeded: "),
    # fields that do not go together
    (ASKING, 400, r"(needs|only allowed with) `stream`: true|cannot be streamed|needs `logprobs`"),
    (ASKING, 400, r"does not go with|begins a new answer, continue_final_message|and \w+ differ"),
    (ASKING, 400, r"min_tokens is \d+, and the answer may have"),
    (r"/completions$", 400, r"best_of (must not be smaller|greater) than n"),
    (r".", 400, r"device .* is one of the torch backend"),
    (r"/score$", 400, r"text_1 must be one text, or as many as text_2"),
    (r"/responses(/input_tokens)?$", 400, r"input must hold at least one item"),
    (r"^/api/generate$", 400, r"raw mode does not support|a suffix goes with neither|think needs a chat template"),
    (r"^/api/create$", 400, r"unknown parameter '"),
    (r"/pages/\{page\}$", 400, r"^invalid_value: page must be a number from 0 to"),
    (r"^/api/create$", 400, r"send either 'from' or 'files'|neither 'from' or 'files'"),
    (rf"{CHATS}|/(tokenize|apply-template|preview)$", 400, r"continue_token_ids holds token \d+, which ends an answer"),
    (r"/vocabulary$", 400, r"send `text`, `id` or `bytes`, not"),
    # tools by their names
    (ASKING, 400, r"none of the `tools`|needs `tools`|not the name of one of the tools|two functions called"),
    (ASKING, 400, r"there is another tool named|a tool_use needs a tool_result"),
    (ASKING, 400, r"arguments must be (a )?JSON"),
    # types that weights can be rounded to, prompts that a model's files name, files of adapters
    (r"/quantizations$", 400, r"there is no quantization ['\"]"),
    (r"/embeddings$", 400, r"this model has no prompt ['\"]"),
    (r"load_lora_adapter$", 400, r"must be an absolute path"),
    # what this model can and has
    (r".", 400, r"names (a )?token .*(the model has|outside)"),
    (rf"{ASKING}|{VECTORS}", 400, r"^context_length_exceeded: |input length exceeds the context length"),
    (VECTORS, 400, r"dimensions is \d+, but this model's vectors have"),
    (r"/(completions|generate)$", 400, r"was not trained to fill in"),
    (r"^/api/(chat|generate)$", 400, r"does not support (thinking|tools|insert)"),
    # texts without tokens, where the one that begins a text was not wanted either
    (rf"{ASKING}|{VECTORS}", 400, r"the prompt is empty|nothing is left of the prompt|has no tokens"),
    # texts in languages of their own: JSON schema, regular expressions, grammars, templates, names
    (ASKING, 400, FORMS),
    (ASKING, 400, r"must be a JSON schema"),
    (r"^/api/generate$", 400, r"^template_|^invalid_value: template is in Ollama's Go language"),
    (r".", 400, r"^invalid_json: .* has a (whole number of more than 64 bits|number that no float)"),
    (OF_STORES, 400, r"^invalid_value: (name|from|source|destination) .* is invalid"),
    (r"/pulls$", 400, r"a name may have \d+ characters, this one"),
    (r"/pulls$", 400, r"model name must not|is no (valid|repository|http)|model name is empty|must be a name, or"),
    # the models of a toy daemon are given to it; there is never a place to push to
    (OF_STORES, 400, r"the models of this daemon cannot be changed|^$"),
    (r"^/api/push$", 400, r"push is not supported"),
    # that it is not ready is what it was asked for
    (r"^/ready$", 503, r"^$"),
    # a response that is over cannot be cancelled
    # which ids and places there are, a model's vocabulary and the text say
    (r"/tokenizers/", 400, r"is no token id|and the text has \d+ characters|send `text`, `id` or `bytes`"),
    (r"/tokenizers/", 400, r"there is no token in this text|characters, and merges are shown|chat template"),
    (r"/responses/{response_id}/cancel$", 400, r"does not run in the background"),
)
"""Paths, a status, and what is in `code: message` of a refusal that may be the answer to good data."""


@schemathesis.check
def refusals_of_good_data_have_a_reason(ctx: Any, response: Any, case: Any) -> bool | None:
    if not _is_good(case) or response.status_code < 400:
        return None
    message = _told(response)
    path, status = case.operation.path, response.status_code
    known = (text for where, code, text in REASONS if code == status and re.search(where, path))
    if any(re.search(text, message, re.DOTALL) for text in known):
        return None
    raise AssertionError(f"{status} without a reason known to {Path(__file__).name}: {message}")


def _told(response: Any) -> str:
    """`code: message`; nothing where there is no body."""
    if b'"error"' not in response.content:
        return ""
    error, code = response.json()["error"], response.headers.get("x-localllm-error", ["-"])[0]
    return f"{code}: {error if isinstance(error, str) else error['message']}"
