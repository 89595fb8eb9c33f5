"""`localllm bench serve`: several clients at one server, ours or any other with OpenAI's API."""

import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.cli.connect import as_seen_by_daemon, running_client
from localllm.cli.files import check_target, write_text
from localllm.cli.human import aligned
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson
from localllm.cli.output import json_text, print_json, print_text
from localllm.errors import DaemonUnreachable, LocalLLMError, UsageError
from localllm.settings import Settings

if TYPE_CHECKING:
    from localllm.lab.bench_load import LoadPlan
    from localllm.lab.bench_report import Report

REQUESTS_PER_CLIENT = 4
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def serve(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model to ask for; else the default, or the server's first.")
    ] = None,
    clients: Annotated[
        int, typer.Option("--clients", "--max-concurrency", metavar="N", help="Requests that run at the same time.")
    ] = 4,
    num_prompts: Annotated[
        int | None, typer.Option(metavar="N", help="Requests in all; else four for each client.")
    ] = None,
    input_len: Annotated[int, typer.Option(metavar="N", help="Words of a prompt, about a token each.")] = 128,
    output_len: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer.")] = 64,
    prefix_len: Annotated[int, typer.Option(metavar="N", help="Words that all prompts begin with.")] = 0,
    request_rate: Annotated[
        float, typer.Option(metavar="RATE", help="Requests a second; inf: as soon as a client is free.")
    ] = math.inf,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Another server with OpenAI's API; http only.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions instead of /v1/completions.")] = False,
    goodput: Annotated[
        list[str] | None, typer.Option(metavar="GOAL", help="What a good answer takes at most, as ttft:MS tpot:MS.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Ask the server to go on after the answer's end.")
    ] = True,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The same seed gives the same prompts; else they are new.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(metavar="KEY", help="Key that the server of --url wants.")] = None,
    save_result: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures to this file, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how a server bears several clients.

    Figures are by the definitions of `vllm bench serve`. The daemon has to run; one request goes ahead and is not
    counted. No two prompts are the same.
    """
    from localllm.lab import bench_load, bench_report  # numpy comes with the figures
    from localllm.lab.bench_stream import Address

    if save_result is not None:
        check_target(save_result)
    invocation = Invocation.of(ctx)
    settings = invocation.settings()
    target, key = (url, api_key or "") if url is not None else _own(settings)
    address = Address.of(target)
    plan = bench_load.LoadPlan(
        address=address,
        model=_model_to_ask(model, settings) if url is None else model or first_model(address.url, key),
        clients=clients,
        num_prompts=REQUESTS_PER_CLIENT * clients if num_prompts is None else num_prompts,
        input_len=input_len,
        output_len=output_len,
        prefix_len=prefix_len,
        request_rate=request_rate,
        goodput=bench_load.goals(goodput or []),
        kind="chat" if chat else "completions",
        ignore_eos=ignore_eos,
        seed=secrets.randbits(31) if seed is None else seed,  # a server may have cached the prompts of the last run
        api_key=key,
    ).checked()
    found = _driven(plan, invocation)
    figures = bench_report.as_json(found, plan)
    if save_result is not None:
        write_text(save_result, json_text(figures) + "\n")
    if as_json:
        print_json(figures)
    else:
        print_text(_as_text(found))


def _driven(plan: "LoadPlan", invocation: Invocation) -> "Report":
    """LocalLLMError with the first failure where all requests failed."""
    from localllm.lab import bench_load, bench_report

    with invocation.progress() as progress:
        progress.status(f"warming up {plan.model}")
        load = bench_load.drive(plan, lambda done, total: progress.status(f"{done} of {total} requests"))
    found = bench_report.report(load, plan)
    if not found.completed:
        raise LocalLLMError(f"no request succeeded: {found.errors[0]}")
    return found


def _own(settings: Settings) -> tuple[str, str]:
    """Address of the daemon and a key for it."""
    client = running_client(settings)
    if client is None:
        raise DaemonUnreachable(
            "no daemon runs", hint="start it with `localllm daemon start`, or name another server with --url"
        )
    return client.url, client.api_key


def _model_to_ask(model: str | None, settings: Settings) -> str:
    return as_seen_by_daemon(model) if model else settings.default_model


def first_model(url: str, api_key: str) -> str:
    """The first model that a server has; UsageError when it tells none."""
    from localllm.client import Client

    names = Client(url, api_key).model_names()
    if not names:
        raise UsageError(f"{url} names no model", hint="name one with --model")
    return names[0]


def _as_text(found: "Report") -> str:
    counted = "" if found.is_counted else " (events: the server counts no tokens)"
    rows = [
        ("successful requests", str(found.completed)),
        ("failed requests", str(found.failed)),
        ("duration", f"{found.duration_s:.2f} s"),
        ("input tokens", str(found.num_input)),
        ("generated tokens", f"{found.num_output}{counted}"),
        ("request throughput", f"{found.request_throughput:.2f} /s"),
        *([] if found.goodput is None else [("goodput", f"{found.goodput:.2f} /s")]),
        ("output token throughput", f"{found.output_throughput:.2f} t/s"),
        ("total token throughput", f"{found.total_token_throughput:.2f} t/s"),
        ("processor time of the clients", f"{found.client_cpu_s:.2f} s"),
    ]
    spreads = [
        (f"{TITLES[name]} ms", f"{spread.mean:.2f}", f"{spread.median:.2f}", f"{spread.std:.2f}", f"{spread.p99:.2f}")
        for name, spread in found.spreads.items()
    ]
    failures = "".join(f"failed: {error}\n" for error in found.errors)
    return aligned(rows) + "\n" + aligned([("", "mean", "median", "sd", "p99"), *spreads]) + failures
