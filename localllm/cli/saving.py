"""`/save`: a conversation becomes a model, with its system message, its parameters and its messages."""

from typing import TYPE_CHECKING

from localllm.cli.conversation import Conversation
from localllm.cli.library import open_runnable_library
from localllm.store.modelfile import Modelfile

if TYPE_CHECKING:
    from localllm.settings import Settings


def save_conversation(settings: "Settings", conversation: Conversation, name: str) -> None:
    """Creates the model `name` in the store of this home."""
    open_runnable_library(settings).create(name, as_modelfile(conversation))


def as_modelfile(conversation: Conversation) -> Modelfile:
    return Modelfile(
        from_=(conversation.model,),
        params=dict(conversation.parameters),
        system=conversation.system,
        messages=tuple(dict(message) for message in conversation.messages),
    )
