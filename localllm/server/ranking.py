"""How near texts are to each other: `/v1/rerank` in the forms of Jina, Cohere, vLLM and TEI, and `/v1/score`.

No model with a ranking head is run: relevance is the cosine between embeddings, and answers say so.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.server.desk import Desk
from localllm.server.http import Json, attended
from localllm.server.operations import Operation
from localllm.server.unknowns import take
from localllm.server.vector_shapes import (
    METHOD,
    RankedText,
    Ranking,
    RerankRequest,
    ScoreRequest,
    Scores,
    VectorRequest,
    usage_of,
)
from localllm.server.vectors import Cut, Embedded, cut_of, embed, numbers_of, told

METHOD_HEADER = "x-localllm-method"


class Ranker:
    """`POST /v1/rerank` and `/v1/score`, each under its other names."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        rerank = {
            "/v1/rerank": "Order documents by relevance",
            "/v2/rerank": "Order documents by relevance as Cohere does",
            "/rerank": "Order documents by relevance as TEI does",
            "/v1/reranking": "Order documents by relevance as llama-server does",
            "/reranking": "Order documents by relevance as old llama-server does",
        }
        score = {"/v1/score": "Compare texts", "/score": "Compare texts as vLLM does"}
        return [
            *(
                Operation("POST", path, self.rerank, summary, "vectors", Ranking | list[RankedText], RerankRequest)
                for path, summary in rerank.items()
            ),
            *(
                Operation("POST", path, self.score, summary, "vectors", Scores, ScoreRequest)
                for path, summary in score.items()
            ),
        ]

    async def rerank(self, request: Request) -> Response:
        wanted, warnings, headers = take(await self._desk.read(request), RerankRequest, request)
        texts = [wanted.query, *wanted.passages]
        done = await self._embed(request, wanted, texts, wanted.kind, Cut() if wanted.truncate else cut_of(wanted))
        query, *others = done.vectors
        scores = [cosine(query, other) for other in others]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        headers |= {METHOD_HEADER: METHOD}
        if wanted.documents is None:
            return Json(_bare(best, scores, wanted), headers=headers)
        results = [_ranked(index, scores[index], wanted) for index in best[: wanted.top_n]]
        head = {"id": f"rerank-{done.id}", "object": "list", "model": done.name, "method": METHOD}
        body = {**head, "results": results, "usage": usage_of(sum(done.num_tokens))}
        return Json(body | told(warnings + done.warnings), headers=headers)

    async def score(self, request: Request) -> Response:
        wanted, warnings, headers = take(await self._desk.read(request), ScoreRequest, request)
        first, second = wanted.first, wanted.second
        done = await self._embed(request, wanted, [*first, *second], "text_2", cut_of(wanted))
        vectors = done.vectors[: len(first)] * (len(second) if len(first) == 1 else 1)
        pairs = zip(vectors, done.vectors[len(first) :], strict=True)
        data = [{"index": i, "object": "score", "score": cosine(*pair)} for i, pair in enumerate(pairs)]
        head = {"id": f"score-{done.id}", "object": "list", "created": int(time.time()), "model": done.name}
        body = {**head, "method": METHOD, "data": data, "usage": usage_of(sum(done.num_tokens))}
        return Json(body | told(warnings + done.warnings), headers=headers)

    async def _embed(
        self, request: Request, wanted: VectorRequest, texts: list[str], param: str, cut: Cut | None
    ) -> Embedded:
        add_special = wanted.add_special_tokens is not False
        async with contextlib.AsyncExitStack() as stack:
            work = embed(
                self._desk, request, stack, wanted.common(), texts, cut=cut, add_special=add_special, param=param
            )
            return await attended(request, work)


def cosine(one: bytes, other: bytes) -> float:
    """Of two vectors of length 1, little-endian float32; -1 to 1."""
    product = sum(a * b for a, b in zip(numbers_of(one), numbers_of(other), strict=True))
    return max(-1.0, min(1.0, product))


def _ranked(index: int, score: float, wanted: RerankRequest) -> dict[str, Any]:
    shown = {"index": index, "relevance_score": score}
    return shown | ({"document": {"text": wanted.passages[index]}} if wanted.return_documents else {})


def _bare(best: list[int], scores: list[float], wanted: RerankRequest) -> list[dict[str, Any]]:
    """TEI's list."""
    return [
        {"index": index, "score": scores[index]} | ({"text": wanted.passages[index]} if wanted.return_text else {})
        for index in best
    ]
