"""The official `openai` client, strict about what it gets: the list of models."""

import openai
import pytest


def test_the_model_is_listed_and_can_be_retrieved(client: openai.OpenAI, model: str) -> None:
    listed = {each.id: each for each in client.models.list()}
    assert client.models.retrieve(model) == listed[model]


def test_a_model_that_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="smollm2:136m") as missing:
        client.models.retrieve("smollm2:136m")
    assert missing.value.code == "model_not_found"
