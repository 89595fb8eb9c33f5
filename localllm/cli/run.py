"""`localllm run`: one answer, or a conversation. Commands that answer start the daemon, and pull missing models."""

import select
import shlex
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.answer import Answer, Look, stats_text, stream_answer, warn_if_cut
from localllm.cli.asking import FormatWish, Think, thinking_refused, wish_fields
from localllm.cli.connect import as_seen_by_daemon, elsewhere, started_client
from localllm.cli.conversation import Conversation, finite
from localllm.cli.failures import EXIT_INTERRUPTED, unwinding
from localllm.cli.invocation import Invocation
from localllm.cli.library import KnownModel
from localllm.cli.loading import (
    LOAD_FIELDS,
    Backend,
    Device,
    KvType,
    Lora,
    Quantize,
    Threads,
    check_is_there,
    lora_of,
    wish_of,
)
from localllm.cli.output import terminal_columns
from localllm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from localllm.cli.keeping import Keeper
    from localllm.client import Client
    from localllm.settings import Settings

PATIENCE_S = 3.0
SHOW_AFTER_S = 0.3  # a model that is loaded sooner needs no progress line

Verbose = Annotated[bool, typer.Option("--verbose", help="Print timings to stderr after each answer.")]
KeepAlive = Annotated[
    str | None, typer.Option("--keepalive", help="How long the model stays loaded: 30s, 5m, 0, or -1 for ever.")
]
HideThinking = Annotated[bool, typer.Option("--hidethinking", help="Do not show what the model thinks.")]
NoWordWrap = Annotated[bool, typer.Option("--nowordwrap", help="Do not break lines between words.")]
System = Annotated[str, typer.Option("--system", "-s", help="The system message.", show_default=False)]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token each time.")]
TopK = Annotated[int | None, typer.Option(help="Choose among the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest tokens that make up this share.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")]
RepeatPenalty = Annotated[float | None, typer.Option(help="Above 1 makes repetition less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of an answer at most.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be given again.")]


def run(
    ctx: typer.Context,
    model: KnownModel,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT...]", help="What to ask.", show_default=False)
    ] = None,
    verbose: Verbose = False,
    keepalive: KeepAlive = None,
    format_: FormatWish = "",
    think: Think = None,
    hidethinking: HideThinking = False,
    nowordwrap: NoWordWrap = False,
    system: System = "",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repeat_penalty: RepeatPenalty = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    threads: Threads = None,
    quantize: Quantize = None,
    lora: Lora = None,
) -> None:
    """Ask a model, or talk to it when no prompt is given. Text on stdin goes before the prompt."""
    parameters = parameters_of(temperature, top_k, top_p, min_p, repeat_penalty, seed, max_tokens, stop)
    invocation = Invocation.of(ctx)
    conversation = Conversation(as_seen_by_daemon(model), system, parameters=parameters, lora=lora_of(lora))
    settings = invocation.settings(backend=backend, device=device, kv_type=kv_type, threads=threads)
    conversation.extras.update({**wish_of(settings, quantize), **wish_fields(format_, think)})
    if keepalive is not None:
        conversation.extras["keep_alive"] = keepalive
    talk(
        invocation,
        conversation,
        words=prompt or [],
        hint=f'give one: localllm run {shlex.quote(model)} "Why is the sky blue?"',
        is_verbose=verbose,
        hides_thinking=hidethinking,
        wraps=not nowordwrap,
    )


def parameters_of(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repeat_penalty: float | None,
    seed: int | None,
    max_tokens: int | None,
    stop: list[str] | None,
) -> dict[str, Any]:
    """What the command line says of sampling, under Ollama's names."""
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "num_predict": max_tokens,
        "stop": stop,
    }
    return {name: finite(name, value) for name, value in given.items() if value is not None}


def talk(
    invocation: Invocation,
    conversation: Conversation,
    *,
    words: list[str],
    hint: str,
    is_verbose: bool,
    hides_thinking: bool,
    wraps: bool,
    keeper: "Keeper | None" = None,
) -> None:
    """One answer where there is a prompt, in `words` or on stdin; a conversation on a terminal; else UsageError."""
    text = whole_prompt(words)
    look = look_of(invocation, hides_thinking=hides_thinking, wraps=wraps and not text)
    if not text and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no prompt", hint=hint)
    with unwinding():
        if text:
            answer_once(invocation, conversation, text, look, is_verbose, keeper)
        else:
            converse(invocation, conversation, look, is_verbose, keeper)


def whole_prompt(words: list[str]) -> str:
    """What was piped in, then the words of the command line, with blanks between."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else read_piped()
    joined = " ".join(part for part in (piped, *words) if part)
    return joined if joined.strip() else ""


def read_piped() -> str:
    """All of stdin. A pipe that stays open and silent is mentioned: nobody could guess what is being waited for."""
    with suppress(OSError, ValueError):  # not everything that can be read can be waited for
        if not select.select([sys.stdin], [], [], PATIENCE_S)[0]:
            sys.stderr.write("waiting for the end of the text on stdin (`< /dev/null` sends none)\n")
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def look_of(invocation: Invocation, *, hides_thinking: bool, wraps: bool) -> Look:
    columns = terminal_columns() if wraps else 0
    return Look(sys.stdout.isatty(), invocation.has_color(sys.stdout), hides_thinking, columns)


def answer_once(
    invocation: Invocation,
    conversation: Conversation,
    text: str,
    look: Look,
    verbose: bool,
    keeper: "Keeper | None" = None,
) -> None:
    """One question, one answer. Ctrl-C ends it with the usual exit code; the daemon forgets the request."""
    conversation.say("user", text)
    client = ready_client(invocation, invocation.settings(), conversation)
    if keeper:
        keeper.asked(conversation, text)
    answer = Answer()
    try:
        with thinking_refused("leave --think out"):
            stream_answer(client, conversation.body(), look, answer)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        if keeper:
            keeper.answered(conversation, answer)
    if not invocation.is_quiet:
        warn_if_cut(answer, conversation)
    if verbose and answer.timings:
        sys.stderr.write(stats_text(answer.timings))


def converse(
    invocation: Invocation, conversation: Conversation, look: Look, verbose: bool, keeper: "Keeper | None" = None
) -> None:
    from localllm.cli.repl import Repl  # a single answer needs no line editing

    settings = invocation.settings()
    ready = partial(ready_client, invocation, settings)
    load = partial(load_model, invocation)
    client = ready(conversation)
    repl = Repl(settings, client, conversation, look, connect=ready, load_model=load, keeper=keeper, is_verbose=verbose)
    repl.talk()


def ready_client(invocation: Invocation, settings: "Settings", conversation: Conversation) -> "Client":
    """A client of a daemon in which the model is loaded. Pulls the model first when it is not on this machine."""
    if conversation.lora is not None and elsewhere(settings) is None:
        check_is_there(conversation.lora)
    with invocation.progress(delay_s=SHOW_AFTER_S) as progress:
        progress.status("starting the daemon")
        client = started_client(settings)
    if conversation.lora is not None:
        client.load_lora(conversation.lora.name, conversation.lora.path, conversation.lora.scale)
    try:
        load_model(invocation, client, conversation)
    except ModelNotFound:
        if elsewhere(settings) is not None:
            raise
        from localllm.cli.pull import pull_model  # the store: only for a model that is not here

        pull_model(invocation, settings, conversation.model, to_run=True)
        load_model(invocation, client, conversation)
    return client


def load_model(invocation: Invocation, client: "Client", conversation: Conversation) -> None:
    """Makes the model resident; shows progress when that takes a while."""
    keep_alive: Any = conversation.extras.get("keep_alive")
    wish = {name: value for name, value in conversation.extras.items() if name in LOAD_FIELDS}
    with invocation.progress(delay_s=SHOW_AFTER_S) as progress:
        progress.status(f"loading {conversation.model}")
        for step in client.load(conversation.model, keep_alive, wish):
            if step.total_bytes:
                progress.update(f"loading {conversation.model}", step.done_bytes, step.total_bytes)
            elif step.status not in ("starting", "ready"):
                progress.status(step.status)
            for note in step.notes:
                progress.warn(note)
