"""The command that holds an artifact against what it should be: `verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli import console, progress
from compress.cli.apply import Json, Quiet

if TYPE_CHECKING:
    from compress.results import Consumer, Verification


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="The folder of a finished run.")
    ],
    no_consumers: Annotated[
        bool, typer.Option("--no-consumers", help="Load it in no engine: only read its bytes.")
    ] = False,
    vllm_python: Annotated[
        Path | None,
        typer.Option(
            "--vllm-python",
            envvar="COMPRESS_VLLM_PYTHON",
            metavar="PATH",
            help="The Python of the environment that holds vLLM.",
        ),
    ] = None,
    llama_python: Annotated[
        Path | None,
        typer.Option(
            "--llama-python",
            envvar="COMPRESS_LLAMA_PYTHON",
            metavar="PATH",
            help="The Python of the environment that holds llama.cpp (xllamacpp).",
        ),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            "--signature", metavar="KEY", help="The signer's public key (PEM), to check too."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hold an artifact against its student; load it everywhere.

    A reader that shares no code with the writer follows the written format, bit by bit; then every
    engine that is installed answers a few prompts.
    """
    from compress.artifact.signature import check_signature
    from compress.verify import run
    from compress.verify.consumers import CONSUMERS, Pythons

    if signature is not None:
        check_signature(folder, signature)
    consumers = () if no_consumers else CONSUMERS
    pythons = Pythons(vllm_python, llama_python)
    with progress.watching(quiet=quiet) as watch:
        found = run.verify(folder, consumers=consumers, pythons=pythons, watch=watch)
    if json:
        console.emit_json({**dataclasses.asdict(found), "passed": found.passed})
    elif not quiet:
        console.show(console.outcome_table(lines(found)))
        if found.passed:
            console.tell(sentence(found))
    run.check_passed(folder, found)


def lines(found: Verification) -> Iterator[tuple[str, str, str]]:
    """Every check and every consumer: its name, how it ended, what was found."""
    for check in found.checks:
        yield check.name, check.outcome, check.detail
    for one in found.consumers:
        name = " ".join(filter(None, (one.name, one.version, one.dtype)))
        yield name, one.outcome, measured(one)


def sentence(found: Verification) -> str:
    """How the verification ended, in one line: checks passed, and what became of every engine."""
    passed = sum(check.outcome == "passed" for check in found.checks)
    told = [f"{passed} of {len(found.checks)} checks passed"]
    for outcome in dict.fromkeys(one.outcome for one in found.consumers):
        names = dict.fromkeys(one.name for one in found.consumers if one.outcome == outcome)
        words = "loads and answers alike in" if outcome == "passed" else f"{outcome}:"
        told.append(f"{words} {', '.join(names)}")
    if not found.consumers:
        told.append("loaded in no engine")
    return f"{'Verified' if found.passed else 'Not what it should be'}: {'; '.join(told)}."


def measured(one: Consumer) -> str:
    """What a consumer's answers showed, and what is to be said of them."""
    if one.margin_max is None or one.kl_mean is None:
        return one.detail
    told = (
        f"{one.tokens - one.ties} of {one.tokens} tokens the likeliest, largest margin "
        f"{one.margin_max:.2g}, KL {one.kl_mean:.1e} nats"
    )
    return "\n".join(filter(None, (one.detail, told)))
