"""`localllm chat`: a conversation that is kept, and can be taken up again."""

import sys
from typing import Annotated

import typer

from localllm.cli.asking import FormatWish, Think, wish_fields
from localllm.cli.connect import as_seen_by_daemon
from localllm.cli.conversation import Conversation
from localllm.cli.failures import print_warning
from localllm.cli.invocation import Invocation
from localllm.cli.keeping import Keeper, conversation_of, greet, opened_history
from localllm.cli.line_input import wants_history
from localllm.cli.loading import Backend, Device, KvType, Lora, Quantize, Threads, lora_of, wish_of
from localllm.cli.run import (
    HideThinking,
    KeepAlive,
    MaxTokens,
    MinP,
    NoWordWrap,
    RepeatPenalty,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    Verbose,
    parameters_of,
    talk,
)
from localllm.errors import LocalLLMError, UsageError
from localllm.settings import Settings


def chat(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A name, a file or a folder.", show_default=False)
    ] = "",
    goes_on: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the chat used last.")] = False,
    which: Annotated[
        str | None, typer.Option("--chat", help="Go on with this chat: its number, or words of its title.")
    ] = None,
    no_keep: Annotated[bool, typer.Option("--no-keep", help="Do not write the conversation down.")] = False,
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
    """Talk to the default model, or to the one named. `localllm chats list` names the chats that are kept."""
    invocation = Invocation.of(ctx)
    settings = invocation.settings(backend=backend, device=device, kv_type=kv_type, threads=threads)
    asked = wish_fields(format_, think)
    parameters = parameters_of(temperature, top_k, top_p, min_p, repeat_penalty, seed, max_tokens, stop)
    if which is not None and not which.strip():
        raise UsageError("--chat names no chat", hint="`localllm chats list` names them; --continue takes the last")
    if no_keep and (goes_on or which):
        raise UsageError("--no-keep and --continue do not fit together", hint="leave one of them out")
    named = as_seen_by_daemon(model) if model else ""
    conversation, keeper = begun(settings, named, which or "", goes_on=goes_on, is_kept=not no_keep and wants_history())
    conversation.system = system or conversation.system
    conversation.parameters.update(parameters)
    conversation.lora = lora_of(lora)
    conversation.extras.update({**wish_of(settings, quantize), **asked})
    if keepalive is not None:
        conversation.extras["keep_alive"] = keepalive
    hint = 'give one: echo "Why is the sky blue?" | localllm chat'
    talk(
        invocation,
        conversation,
        keeper=keeper,
        words=[],
        hint=hint,
        is_verbose=verbose,
        hides_thinking=hidethinking,
        wraps=not nowordwrap,
    )


def begun(
    settings: Settings, model: str, which: str, *, goes_on: bool, is_kept: bool
) -> tuple[Conversation, Keeper | None]:
    """A new conversation, or a kept one as it stands; and who writes it down."""
    if not (goes_on or which):
        fresh = Conversation(model or as_seen_by_daemon(settings.default_model))
        return fresh, new_keeper(settings) if is_kept else None
    history = opened_history(settings)
    found = history.find(which) if which else history.latest()
    conversation = conversation_of(history, found)
    conversation.model = model or conversation.model or as_seen_by_daemon(settings.default_model)
    if sys.stdin.isatty() and sys.stdout.isatty():
        greet(found, len(conversation.messages))
    return conversation, Keeper(history, found)


def new_keeper(settings: Settings) -> Keeper | None:
    """None, and a warning, where nothing can be written: that is no reason not to talk."""
    try:
        return Keeper(opened_history(settings))
    except LocalLLMError as error:
        print_warning(f"this conversation is not kept: {error.message}")
        return None
