"""The near end of the HTTP wire: typed calls to a running daemon. Loads in milliseconds: no HTTP library."""

from localllm.client.calls import Client
from localllm.client.failing import error_from
from localllm.client.shapes import (
    Answered,
    ChatChunk,
    Health,
    LoadedModel,
    LoadProgress,
    LoadStage,
    RequestRow,
    Timings,
    Usage,
)
from localllm.client.transport import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S
from localllm.daemon.shelf_shapes import (
    CatalogModel,
    CatalogModels,
    CatalogQuant,
    InspectedModel,
    InstalledModel,
    InstalledModels,
    MetadataItem,
    ModelFit,
    PullError,
    PullJob,
    QuantizedSize,
    QuantizedSizes,
    RemovedModel,
    TensorItem,
)

__all__ = [
    "ANSWER_TIMEOUT_S",
    "CONNECT_TIMEOUT_S",
    "Answered",
    "CatalogModel",
    "CatalogModels",
    "CatalogQuant",
    "ChatChunk",
    "Client",
    "Health",
    "InspectedModel",
    "InstalledModel",
    "InstalledModels",
    "LoadProgress",
    "LoadStage",
    "LoadedModel",
    "MetadataItem",
    "ModelFit",
    "PullError",
    "PullJob",
    "QuantizedSize",
    "QuantizedSizes",
    "RemovedModel",
    "RequestRow",
    "TensorItem",
    "Timings",
    "Usage",
    "error_from",
]
