"""Every error a user may meet: one sentence, one next step, a stable code, an HTTP status and an exit code."""

from __future__ import annotations


class LocalLLMError(Exception):
    """Base of all errors we raise on purpose.

    `message` is one sentence that says what is wrong, `hint` the next step: `usual_hint` of its class where none is
    given (may be empty). `code` is stable and appears in JSON; `http_status` and `exit_code` place the class in the two
    tables users script against.
    """

    code = "internal_error"
    http_status = 500
    exit_code = 1
    usual_hint = ""

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint
        self.param = param

    def __str__(self) -> str:
        return self.message


class UsageError(LocalLLMError):
    """The command line asks for something that does not exist or does not fit together."""

    code = "usage_error"
    http_status = 400
    exit_code = 2


class InvalidRequest(LocalLLMError):
    """A request field has a wrong type, a value out of bounds, or is not supported. `param` names the field."""

    code = "invalid_value"
    http_status = 400
    exit_code = 2


class InvalidGrammar(InvalidRequest):
    """A regular expression, a list of choices or a grammar that cannot be kept to."""

    code = "invalid_grammar"


class InvalidSchema(InvalidRequest):
    """A JSON schema that is none, is out of measure, or says something that cannot be kept to."""

    code = "invalid_schema"
    usual_hint = "see https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md for what can be kept to"


class ConstraintFailed(InvalidRequest):
    """A grammar broke off while it was followed: too much work for one token, or a state without a way on."""

    code = "constraint_failed"
    usual_hint = "make the schema or the grammar simpler"


class NothingAllowed(InvalidRequest):
    """Mask and bans together forbid every token."""

    code = "nothing_allowed"


class TemplateError(InvalidRequest):
    """A chat template cannot be rendered: it does not parse, fails on these messages, or tries what it may not."""

    code = "template_error"
    usual_hint = "a Modelfile can give the model another template: TEMPLATE, then `localllm create -f Modelfile`"


class TemplateRefused(TemplateError):
    """The template's author refuses these messages; the message quotes him."""

    code = "template_refused"


class TemplateLimit(TemplateError):
    """The template takes more time, memory or text than any honest one."""

    code = "template_limit"


class InvalidApiKey(LocalLLMError):
    code = "invalid_api_key"
    http_status = 401


class Forbidden(LocalLLMError):
    """The request came through a host name or an origin that may not use this daemon."""

    code = "forbidden"
    http_status = 403


class ModelNotFound(LocalLLMError):
    code = "model_not_found"
    http_status = 404
    exit_code = 4


class NotEnoughMemory(LocalLLMError):
    code = "not_enough_memory"
    http_status = 503
    exit_code = 5


FEWER_PAGES = "close other programs, or set a smaller number: `localllm config set kv_pages N`"
"""What to do where there is no memory for the pages."""


class ContextExceeded(LocalLLMError):
    """The prompt does not fit. Both numbers travel with the error. Its words are those by which clients that were
    written for OpenAI and for Anthropic know it, and shorten the conversation."""

    code = "context_length_exceeded"
    http_status = 400
    exit_code = 6

    def __init__(self, num_prompt_tokens: int, context_length: int, *, hint: str = "") -> None:
        super().__init__(
            f"the prompt is too long: {num_prompt_tokens} tokens, and this model's maximum context length is "
            f"{context_length} tokens",
            hint=hint or "shorten the prompt, or choose a model with a longer context",
            param="messages",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.context_length = context_length


class NetworkError(LocalLLMError):
    code = "network_error"
    http_status = 502
    exit_code = 7


class DownloadError(NetworkError):
    """A download stopped early or did not verify; what was fetched is kept for the next try."""

    code = "download_failed"


class DiskFull(LocalLLMError):
    code = "disk_full"
    http_status = 507


class StoreError(LocalLLMError):
    """The model store holds something that it should not, or is in use by another process."""

    code = "store_error"


class BadModelFile(LocalLLMError):
    """A model file is damaged, hostile, or not of a kind we open. The message names the file and the field."""

    code = "bad_model_file"
    http_status = 422
    usual_hint = "download the model again, or take another version of it"


class UnsupportedModel(LocalLLMError):
    """The file is sound, but this build cannot run its architecture, block type or tokenizer; named in the message."""

    code = "unsupported_model"
    http_status = 422
    usual_hint = "take another version of the model: `localllm search` finds some"


class BadLogits(LocalLLMError):
    """The model gave no usable numbers: NaN, infinite, or nothing but minus infinity."""

    code = "bad_logits"
    usual_hint = "the file may be damaged: try `localllm verify`"


class DaemonUnreachable(LocalLLMError):
    code = "daemon_unreachable"
    http_status = 503
    exit_code = 3


class PortInUse(LocalLLMError):
    code = "port_in_use"


class WorkerCrashed(LocalLLMError):
    """The process that ran the model ended while it was answering."""

    code = "worker_crashed"
    http_status = 503


class Overloaded(LocalLLMError):
    """The machine has no room for the request now. `retry_after_s`: when there may be some."""

    code = "rate_limit_exceeded"
    http_status = 503
    retry_after_s = 2.0


class RateLimited(Overloaded):
    """This caller has as many requests or tokens under way as it may have."""

    code = "rate_limit_exceeded"
    http_status = 429


class Quarantined(LocalLLMError):
    """This very request has ended the process that runs the model more than once; it is not tried again."""

    code = "request_quarantined"
    http_status = 422


class ChatsUnusable(LocalLLMError):
    """The file of kept chats cannot be opened, read or written."""

    code = "chats_unusable"


class ChatNotFound(LocalLLMError):
    """No kept chat has this number, or these words in its title."""

    code = "chat_not_found"
    http_status = 404
    exit_code = 4
    usual_hint = "`localllm chats list` names them"


class Cancelled(LocalLLMError):
    """Somebody ended the request from outside."""

    code = "request_cancelled"
    http_status = 499


class DeadlineExceeded(LocalLLMError):
    """The request's own deadline passed before it was answered: the client's limit, no failure of the server."""

    code = "deadline_exceeded"
    http_status = 408
