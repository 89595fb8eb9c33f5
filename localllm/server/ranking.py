"""How near texts are to each other: `/v1/rerank` in the forms of Jina, Cohere, vLLM and TEI, and `/v1/score`.

A model with a head judges each pair; of any other relevance is the cosine between embeddings. Answers say which.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.server.comparing import Compared, compare
from localllm.server.desk import Desk
from localllm.server.http import Json, attended
from localllm.server.operations import Operation
from localllm.server.unknowns import take
from localllm.server.vector_shapes import RankedText, Ranking, RerankRequest, ScoreRequest, Scores, usage_of
from localllm.server.vectors import Cut, cut_of, told

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
                Operation(
                    "POST", path, self.rerank, summary, "vectors", Ranking | list[RankedText], RerankRequest, asks=True
                )
                for path, summary in rerank.items()
            ),
            *(
                Operation("POST", path, self.score, summary, "vectors", Scores, ScoreRequest, asks=True)
                for path, summary in score.items()
            ),
        ]

    async def rerank(self, request: Request) -> Response:
        wanted, warnings, headers = take(await self._desk.read(request), RerankRequest, request)
        cut = Cut() if wanted.truncate else cut_of(wanted)
        done = await self._compare(request, wanted, [wanted.query], wanted.passages, ("query", wanted.kind), cut)
        scores = done.scores
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        headers |= {METHOD_HEADER: done.method}
        if wanted.documents is None:
            return Json(_bare(best, scores, wanted), headers=headers)
        results = [_ranked(index, scores[index], wanted) for index in best[: wanted.top_n]]
        head = {"id": f"rerank-{done.id}", "object": "list", "model": done.name, "method": done.method}
        body = {**head, "results": results, "usage": usage_of(done.num_tokens)}
        return Json(body | told(warnings + done.warnings), headers=headers)

    async def score(self, request: Request) -> Response:
        wanted, warnings, headers = take(await self._desk.read(request), ScoreRequest, request)
        done = await self._compare(request, wanted, wanted.first, wanted.second, ("text_1", "text_2"), cut_of(wanted))
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(done.scores)]
        head = {"id": f"score-{done.id}", "object": "list", "created": int(time.time()), "model": done.name}
        body = {**head, "method": done.method, "data": data, "usage": usage_of(done.num_tokens)}
        return Json(body | told(warnings + done.warnings), headers=headers)

    async def _compare(
        self,
        request: Request,
        wanted: RerankRequest | ScoreRequest,
        first: Sequence[str],
        second: Sequence[str],
        params: tuple[str, str],
        cut: Cut | None,
    ) -> Compared:
        async with contextlib.AsyncExitStack() as stack:
            work = compare(
                self._desk,
                request,
                stack,
                wanted.common(),
                first,
                second,
                cut=cut,
                add_special=wanted.add_special_tokens is not False,
                raw=wanted.raw_scores is True,
                first_param=params[0],
                param=params[1],
            )
            return await attended(request, work)


def _ranked(index: int, score: float, wanted: RerankRequest) -> dict[str, Any]:
    shown = {"index": index, "relevance_score": score}
    return shown | ({"document": {"text": wanted.passages[index]}} if wanted.return_documents else {})


def _bare(best: list[int], scores: list[float], wanted: RerankRequest) -> list[dict[str, Any]]:
    """TEI's list."""
    return [
        {"index": index, "score": scores[index]} | ({"text": wanted.passages[index]} if wanted.return_text else {})
        for index in best
    ]
