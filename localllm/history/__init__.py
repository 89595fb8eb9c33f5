"""Chats that are kept: SQLite in the home, shared by the terminal application and `localllm chat`."""

from localllm.history.asides import DRAFT_OF_NEW
from localllm.history.branch import Branch
from localllm.history.chats import History
from localllm.history.records import (
    Alternative,
    AnswerStats,
    Attachment,
    Chat,
    Draft,
    Hit,
    Message,
    Preset,
    SampledToken,
)
from localllm.history.tree import Tree

__all__ = [
    "DRAFT_OF_NEW",
    "Alternative",
    "AnswerStats",
    "Attachment",
    "Branch",
    "Chat",
    "Draft",
    "History",
    "Hit",
    "Message",
    "Preset",
    "SampledToken",
    "Tree",
]
