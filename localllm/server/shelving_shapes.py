"""What is sent to the routes that show, fetch and remove models. What they answer is in `daemon/shelf_shapes.py`."""

from typing import Annotated

import msgspec

MAX_FITS = 512
MAX_QUERY_CHARS = 200

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class ShelfModelRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One model by its name."""

    model: Name


class QuantizeModelRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A model that is here, and the type that it is to have, as in q4_k_m; `name` of the new model, else the model's
    own with the type behind it."""

    model: Name
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    name: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class SearchModelsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Words that all have to occur in the name, the licence, the architecture or what a model can do. `hub`: look
    there, too."""

    query: Annotated[str, msgspec.Meta(max_length=MAX_QUERY_CHARS)] = ""
    hub: bool = True


class FitModelsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Models that are here or in the catalog. `context_length`: one chat of so many tokens is to have room."""

    models: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_FITS)]
    context_length: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
