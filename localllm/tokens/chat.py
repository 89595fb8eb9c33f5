"""Chat templates: messages to the text a model wants to read.

Templates come with models and are not trusted: they run in a sandbox, in a child process with limits on time, memory
and output. `isolated=False` renders in this process, with a gauge instead of a child.
"""

import json
import os
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localllm.errors import InvalidRequest
from localllm.tokens.frames import read_frame, write_frame
from localllm.tokens.sandbox import Fuel, TemplateFailure, compile_template, render_template, template_environment

ALLOWED_VARIABLES = frozenset(
    {
        *("enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "preserve_thinking", "clear_thinking"),
        *("documents", "date_string", "controls", "citation_mode", "available_tools", "custom_tools", "builtin_tools"),
        *(
            "tools_in_user_message",
            "python_tools",
            "xml_tools",
            "model_identity",
            "add_vision_id",
            "keep_past_thinking",
        ),
        *("truncate_history_thinking", "low_effort", "system_prompt", "safety_mode", "tool_choice"),
    }
)
"""Template variables a request may set; anything else could reach into what a template takes for granted."""

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '')"
    " + '<|im_end|>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
PLAIN = (
    "{{ bos_token }}{%- for message in messages -%}{{ message['role'] + ': ' + (message['content'] or '') + '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'assistant:' }}{%- endif -%}"
)
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_CPU_S, _COMPILE_CPU_S = 0.25, 2.0
_WALL_S = 15.0
_MAX_LINES = 2_000_000


class ChatTemplate:
    """One model's template. Safe to call from several threads; renderings take turns.

    `note` says what a person should know about the template (empty for a model's own). Close it to end its child early.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", note: str = "", isolated: bool = True
    ) -> None:
        self.source = source
        self.note = note
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._renderer: _Child | _Inside = _Child() if isolated else _Inside()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt. Further `variables` are those of ALLOWED_VARIABLES.

        Raises InvalidRequest with the template's own words where it refuses the messages, and where it breaks a limit.
        """
        _check_variables(variables)
        given = {
            **self._tokens,
            **variables,
            "messages": [_with_reasoning_aliases(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": variables.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._renderer.render(self.source, given)
        except TemplateFailure as failure:
            raise InvalidRequest(str(failure), param="messages") from failure

    def close(self) -> None:
        """End the child process, if one runs. The next rendering starts another."""
        self._renderer.close()


def default_template(
    vocabulary: Sequence[str], *, bos_token: str = "", eos_token: str = "", isolated: bool = True
) -> ChatTemplate:
    """For a model that has none: ChatML if the vocabulary has its marks, else lines of "role: content"."""
    is_chatml = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
    note = "the model has no chat template; " + ("ChatML is used" if is_chatml else "plain lines of text are used")
    source = CHATML if is_chatml else PLAIN
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, note=note, isolated=isolated)


def _check_variables(variables: Mapping[str, Any]) -> None:
    for name in variables:
        if name not in ALLOWED_VARIABLES:
            raise InvalidRequest(
                f"{name!r} is no template variable that a request may set", param="chat_template_kwargs"
            )


def _with_reasoning_aliases(message: Mapping[str, Any]) -> dict[str, Any]:
    """Templates disagree about what a message's reasoning is called; transformers gives it under both names."""
    said = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    return dict(message) if said is None else {"thinking": said, **message, "reasoning_content": said}


class _Inside:
    """Renders in this process: sandboxed, with a gauge."""

    def __init__(self) -> None:
        self._environment = template_environment()
        self._template: Any = None

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        if self._template is None:
            self._template = compile_template(self._environment, source)
        try:
            plain = json.loads(json.dumps(variables))  # objects have methods, and a template could call them
        except (TypeError, ValueError) as error:
            raise TemplateFailure(f"the messages cannot be given to the template: {error}") from error
        with Fuel(_MAX_LINES, _COMPILE_CPU_S):
            return render_template(self._template, plain)

    def close(self) -> None:
        """Nothing to end."""


class _Child:
    """Renders in a child process, started when first needed and again after it was ended for taking too much."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: Any = None

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        request = {"source": source, "variables": variables, "cpu_s": _CPU_S, "compile_cpu_s": _COMPILE_CPU_S}
        with self._lock:
            reply = self._ask(self._running(), request)
        if "failure" in reply:
            raise TemplateFailure(reply["failure"])
        return str(reply["text"])

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _start_child()
            self._finalizer = weakref.finalize(self, _end_process, self._process)
            if self._receive(self._process) is None:
                self._end()
                raise TemplateFailure("the process that renders chat templates did not start")
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> Any:
        reply = None
        try:
            assert process.stdin is not None  # opened as a pipe
            write_frame(process.stdin, request)
            reply = self._receive(process)
        except (TypeError, ValueError) as error:
            raise TemplateFailure(f"the messages cannot be given to the template: {error}") from error
        except OSError as error:
            raise TemplateFailure("the process that renders chat templates ended") from error
        finally:
            if reply is None:
                self._end()
        if reply is None:
            raise TemplateFailure("the chat template takes too long or too much memory")
        return reply

    def _receive(self, process: subprocess.Popen[bytes]) -> Any:
        """The next reply; None if the process ended or is late."""
        assert process.stdout is not None  # opened as a pipe
        ready, _, _ = select.select([process.stdout], [], [], _WALL_S)
        return read_frame(process.stdout) if ready else None

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer = None, None


def _start_child() -> subprocess.Popen[bytes]:
    """With the modules of this process, but not with the folder it happens to stand in."""
    here = Path(__file__).resolve().parents[2]
    others = [entry for entry in sys.path if os.path.isabs(entry) and Path(entry) != Path.cwd()]
    paths = dict.fromkeys([str(here), *others])
    inherited = {name: os.environ[name] for name in ("PATH", "TZ", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "localllm.tokens.render_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"},
        start_new_session=True,  # Ctrl-C in the terminal is for us, not for the child
    )


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            _close_quietly(pipe)


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was still in the buffer has no reader any more
        return
