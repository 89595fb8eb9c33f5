"""What holds where nobody says anything: the order in which a model is opened."""

import pytest

from localllm.errors import InvalidRequest
from localllm.runtime.presets import LoadWish, load_order
from localllm.settings import load_settings
from localllm.store.entry import Entry


@pytest.mark.parametrize(
    ("params", "setting", "expected"),
    [({}, 0, 0), ({"num_ctx": 512}, 0, 512), ({"num_ctx": 512}, 256, 256), ({"num_ctx": "many"}, 0, 0)],
)
def test_the_context_is_the_setting_and_then_the_presets(
    params: dict[str, object], setting: int, expected: int
) -> None:
    entry = Entry(name="bear:latest", path="/models/bear.gguf", source="path", params=params)
    order = load_order(entry, load_settings({"LOCALLLM_HOME": "/nowhere"}, context_length=setting, threads=3))
    assert (order.path, order.threads, order.context_length) == ("/models/bear.gguf", 3, expected)


def test_a_wish_goes_before_the_settings_and_none_is_no_rounding() -> None:
    settings = load_settings({"LOCALLLM_HOME": "/nowhere"}, backend="cpu", kv_type="f32", device="mps")
    entry = Entry(name="a", path="/a", source="path")
    order = load_order(entry, settings, LoadWish(backend="torch", quantize="none"))
    assert (order.backend, order.device, order.kv_type, order.quantize) == ("torch", "mps", "f32", "")
    assert order.cache_dir == "/nowhere/cache"


@pytest.mark.parametrize("backend", ["cpu", "metal", "reference"])
def test_a_device_of_torch_is_none_of_another_backend(backend: str) -> None:
    with pytest.raises(InvalidRequest, match="device 'cuda:1' is one of the torch backend") as refused:
        LoadWish(backend=backend, device="cuda:1").checked()
    assert refused.value.param == "device" and refused.value.hint
    assert LoadWish(backend=backend, device="cpu").checked() and LoadWish(device="cuda:1").checked()
