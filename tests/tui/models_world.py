"""Models as a daemon could tell of them, and a library that answers from tables and can be made to fail."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from localllm.client import (
    CatalogModel,
    CatalogModels,
    CatalogQuant,
    InspectedModel,
    InstalledModel,
    InstalledModels,
    LoadedModel,
    LoadStage,
    MetadataItem,
    ModelFit,
    PullError,
    PullJob,
    QuantizedSize,
    QuantizedSizes,
    RemovedModel,
    TensorItem,
)
from localllm.daemon.feed import Frame, ModelRow, Progress
from localllm.errors import LocalLLMError, ModelNotFound
from tests.tui.fakes import FakeClient

GB = 10**9
MEMORY = int(15.6 * GB)


def installed(name: str, gigabytes: float, quant: str = "Q4_K_M", **fields: Any) -> InstalledModel:
    given = {
        "digest": name, "architecture": "qwen3", "parameters": "4.02B", "context_length": 131072, "source": "hub",
        "license": "apache-2.0", "capabilities": ("completion", "tools"), "is_ours": True, "file": f"{name}.gguf",
        "modified": time.time() - 86400, "used": time.time() - 7200,
    }  # fmt: skip
    return InstalledModel(name=name, size_bytes=int(gigabytes * GB), quantization=quant, **given | fields)


def offer(name: str, gigabytes: float, *quants: str, **fields: Any) -> CatalogModel:
    tags = quants or ("Q4_K_M",)
    made = tuple(
        CatalogQuant(tag=tag, model=name if tag == tags[0] else f"{name}-{tag.lower()}",
                     size_bytes=int(gigabytes * GB * (1 + at * 0.7)), is_default=tag == tags[0])
        for at, tag in enumerate(tags)
    )  # fmt: skip
    given = {
        "architecture": "llama", "parameters": "8.2B", "context_length": 131072, "license": "apache-2.0",
        "capabilities": ("completion",), "repo": f"org/{name.replace(':', '-')}-GGUF",
    }  # fmt: skip
    return CatalogModel(name=name, size_bytes=int(gigabytes * GB), quants=made, default_quant=tags[0], **given | fields)


def fit_for(name: str, size_bytes: int, *, is_estimate: bool = False) -> ModelFit:
    """The verdict of a machine of 15.6 GB, of which 12 are free."""
    needed, room = size_bytes * 1.15, 12 * GB
    verdict = "too large" if needed > room else "tight" if needed > 0.9 * room else "fits"
    tokens = max(0, int((room - needed) / 2 / 147_456))
    said = {"fits": f"It fits with {tokens:,} tokens for all chats.", "tight": "It is tight: 0.4 GB to spare."}
    return ModelFit(
        model=name, verdict=verdict, is_estimate=is_estimate, weight_bytes=size_bytes,  # type: ignore[arg-type]
        work_bytes=int(size_bytes * 0.15), kv_bytes=tokens * 147_456, page_bytes=147_456 * 16, page_size=16,
        tokens=tokens, num_layers=0 if is_estimate else 36, context_length=131072, room_bytes=room,
        memory_bytes=MEMORY, sentence=said.get(verdict, f"It needs {needed / GB:.1f} GB, and 12.0 GB can be had here."),
    )  # fmt: skip


HERE = (
    installed("qwen3:4b", 2.4, tokens_per_s=62.0),
    installed("deepseek-r1:14b", 9.0, tokens_per_s=14.0, used=time.time() - 2 * 86400),
    installed("gemma3:12b", 7.3, architecture="gemma3", license="gemma", tokens_per_s=24.0),
    installed("llama3.2:3b", 2.0, used=time.time() - 86400),
    installed("nomic-embed:137m", 0.3, "F16", capabilities=("embedding",), used=0.0),
    installed("smollm2:1.7b", 1.8, "Q8_0", tokens_per_s=118.0, source="ollama", is_ours=False),
)
CATALOG = (
    offer("granite3.3:8b", 4.9, "Q4_K_M", "Q8_0"),
    offer("mistral-small:24b", 14.3),
    offer("qwen3:30b-a3b", 18.6, architecture="qwen3moe"),
    offer("qwen3:8b", 5.0, "Q4_K_M", "Q6_K", "Q8_0"),
    offer("llama3.3:70b", 42.5, gated=True, license="llama3.3", original="meta-llama/Llama-3.3-70B-Instruct"),
    offer("llama3.1:8b", 4.9, gated=True, license="llama3.1", original="meta-llama/Llama-3.1-8B-Instruct"),
    offer("phi4:14b", 9.6),
    offer("qwen3-vl:2b", 1.8, refusal="this build cannot run the architecture 'qwen3vl'"),
    offer("olmo2:7b", 4.5),
    offer("gemma3:12b", 7.3, "Q4_K_M", "Q6_K", "Q8_0", gated=True),
    offer("bge-m3:567m", 1.2, "F16", capabilities=("embedding",)),
)
RUNNING = ModelRow(
    name="qwen3:4b", state="ready", size_bytes=int(2.4 * GB), running=8, tokens_per_s=412.0, pages_total=2048,
    pages_used=1126, page_size=16,
)  # fmt: skip


def pulling(name: str, done: float, total: float, state: str = "running", rate: float = 0.0, **fields: Any) -> PullJob:
    return PullJob(
        id=f"id-{name}", model=name, state=state, done_bytes=int(done * GB), total_bytes=int(total * GB),  # type: ignore[arg-type]
        bytes_per_s=rate * 1e6, **fields,
    )  # fmt: skip


PULLS = (
    pulling("granite3.3:8b", 3.0, 4.9, rate=38),
    pulling("qwen3:8b", 1.1, 5.0, rate=23),
    pulling("mistral-small:24b", 6.3, 14.3, "paused"),
    pulling("bge-m3:567m", 1.2, 1.2, "checking"),
)
DISK_FULL = PullError(
    message="4.90 GB are needed in /home/me/.localllm, 2.80 GB are free", code="disk_full",
    hint="free some space, or move the store with LOCALLLM_HOME",
)  # fmt: skip


class Library:
    """`calls` are those that change something. `fails` maps the name of a call to its error."""

    def __init__(
        self,
        here: Sequence[InstalledModel] = HERE,
        catalog: Sequence[CatalogModel] = CATALOG,
        pulls: Sequence[PullJob] = (),
    ) -> None:
        self.here, self.offers, self.jobs = list(here), list(catalog), list(pulls)
        self.calls: list[tuple[str, str]] = []
        self.fails: dict[str, LocalLLMError] = {}
        self.notice = ""
        self.sizes: QuantizedSizes | None = None
        self.of_hub: tuple[CatalogModel, ...] = ()

    def installed(self) -> InstalledModels:
        self._check("installed")
        used = sum(model.size_bytes for model in self.here)
        return InstalledModels(models=tuple(self.here), store_bytes=used, disk_bytes=480 * GB, free_bytes=281 * GB)

    def catalog(self) -> CatalogModels:
        self._check("catalog")
        return CatalogModels(models=tuple(self.offers))

    def search(self, query: str, *, hub: bool = True) -> CatalogModels:
        self._check("search")
        return CatalogModels(models=self.of_hub, notice=self.notice)

    def fit(self, models: Sequence[str], context_length: int = 0) -> tuple[ModelFit, ...]:
        sizes = {model.name: model.size_bytes for model in self.here}
        offers = {quant.model: quant.size_bytes for offer in self.offers for quant in offer.quants}
        return tuple(
            fit_for(name, sizes.get(name) or offers.get(name, 0), is_estimate=name not in sizes) for name in models
        )

    def inspect(self, model: str) -> InspectedModel:
        self._check("inspect")
        return InspectedModel(
            name=model, format="gguf", quantization="Q4_K_M",
            metadata=(
                MetadataItem(key="general.architecture", value="qwen3"),
                MetadataItem(key="tokenizer.ggml.tokens", value="!, $, #", left_out=151_928),
                MetadataItem(key="evil\x1b[31m", value="red\x1b[2Jtext\u202e"),
            ),
            tensors=tuple(
                TensorItem(name=f"blk.{at}.attn_q.weight", shape=(2560, 4096), type="Q4_K", size_bytes=5_900_000)
                for at in range(36)
            ),
            types={"Q4_K": 212_400_000}, template="{% for m in messages %}\n  {{ m.content }}\n{% endfor %}",
            license="Apache License 2.0",
        )  # fmt: skip

    def remove(self, model: str) -> RemovedModel:
        self._note("remove", model)
        gone = next(each for each in self.here if each.name == model)
        self.here.remove(gone)
        return RemovedModel(removed=model, freed_bytes=gone.size_bytes)

    def pulls(self) -> tuple[PullJob, ...]:
        self._check("pulls")
        return tuple(self.jobs)

    def pull(self, model: str) -> PullJob:
        self._note("pull", model)
        self.jobs.append(pulling(model, 0.0, 0.0))
        return self.jobs[-1]

    def quantized_sizes(self, model: str) -> QuantizedSizes:
        self._check("quantized_sizes")
        return self.sizes or QuantizedSizes(
            model=model, size_bytes=8 * GB,
            types=tuple(
                QuantizedSize(type=name, size_bytes=int(bits / 16 * 8 * GB), bits_per_weight=bits)
                for name, bits in (("Q8_0", 8.5), ("Q5_K_M", 5.7), ("Q4_K_M", 4.85), ("Q2_K", 3.1))
            ),
        )  # fmt: skip

    def quantize(self, model: str, type_: str, name: str = "") -> PullJob:
        self._note("quantize", f"{model} {type_}")
        self.jobs.append(pulling(f"{model}-{type_.lower()}", 0.0, 0.0, kind="quantize", source=model, type=type_))
        return self.jobs[-1]

    def pause(self, pull_id: str) -> PullJob:
        return self._become("pause", pull_id, "paused")

    def resume(self, pull_id: str) -> PullJob:
        return self._become("resume", pull_id, "running")

    def cancel(self, pull_id: str) -> PullJob:
        self._note("cancel", pull_id)
        job = self._job(pull_id)
        self.jobs.remove(job)
        return job

    def _become(self, what: str, pull_id: str, state: str) -> PullJob:
        self._note(what, pull_id)
        job = self._job(pull_id)
        at = self.jobs.index(job)
        self.jobs[at] = PullJob(
            id=job.id,
            model=job.model,
            state=state,
            done_bytes=job.done_bytes,
            total_bytes=job.total_bytes,  # type: ignore[arg-type]
        )
        return self.jobs[at]

    def _job(self, pull_id: str) -> PullJob:
        found = [job for job in self.jobs if job.id == pull_id]
        if not found:
            raise ModelNotFound(f"there is no pull {pull_id!r}")
        return found[0]

    def _note(self, what: str, name: str) -> None:
        self._check(what)
        self.calls.append((what, name))

    def _check(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


class ModelsClient(FakeClient):
    """Loads and unloads in no time, and tells it in frames."""

    def __init__(self, library: Library | None = None, *, loaded: Sequence[ModelRow] = (RUNNING,)) -> None:
        super().__init__()
        self.library = library or Library()
        self.loaded = list(loaded)
        self.on_load: Callable[[str], None] = lambda name: None
        self.tell()

    def tell(self) -> None:
        self.frames.put(Frame(at=time.monotonic(), time=time.time(), models=list(self.loaded)))

    def load(self, model: str, keep_alive: str | None = None) -> list[Any]:
        self.on_load(model)
        self.library.calls.append(("load", model))
        self.loaded.append(ModelRow(name=model, state="ready", pages_total=100, page_size=16))
        self.tell()
        return []

    def ps(self) -> list[Any]:
        self._check()
        return [
            LoadedModel(
                name=row.name, state=row.state, running=row.running, tokens_per_s=row.tokens_per_s, error=row.error,
                progress=LoadStage(row.progress.stage, row.progress.done_bytes, row.progress.total_bytes)
                if row.progress else None,
            )
            for row in self.loaded
        ]  # fmt: skip

    def stop(self, model: str) -> bool:
        self.library.calls.append(("unload", model))
        self.loaded = [row for row in self.loaded if row.name != model]
        self.tell()
        return True


def loading(name: str, share: float) -> ModelRow:
    progress = Progress("reading weights", int(share * 1000), 1000)
    return ModelRow(name=name, state="loading", progress=progress)
