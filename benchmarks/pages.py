"""What a context adds to a decoding step: contiguous arenas, pages gathered, pages read in place.

    python benchmarks/pages.py --artifact DIR

An arena is a tensor of its own for each request, attended to by torch where it lies. Gathered pages
are copied into such a tensor first. Pages are read in place by our compiled step, of which the time
with one token of context is taken away. Each is the least of `--rounds` rounds, for all blocks, in
processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from compress.artifact.layout import open_artifact
from compress.runtime.batch import gather
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.model import Model
from compress.runtime.scheduler import Span

POOL = 512  # pages, of which a request has some in no order


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Attention: arenas against pages.")
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="a folder whose steps our runtime compiles")
    add("--contexts", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    add("--rounds", type=int, default=40)
    return parser.parse_args()


def least(step: Callable[[], object], rounds: int) -> float:
    """Milliseconds of processor time of the fastest of some rounds: others may be busy beside."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        step()
        found.append(1e3 * (time.process_time() - begun))
    return min(found)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One token's attention, the queries of a group as rows."""
    return scaled_dot_product_attention(queries, keys[None], values[None])


def gathered(pool: Tensor, table: Tensor, tokens: int) -> Tensor:
    """Keys or values [KV, tokens, D] of a request, out of pages [pages, KV, PAGE_TOKENS, D]."""
    return pool.index_select(0, table).transpose(0, 1).flatten(1, 2)[:, :tokens]


@torch.inference_mode()
def row(model: Model, tokens: int, alone: float, rounds: int) -> dict[str, float]:
    """Milliseconds that a context adds to a step, in each way, and what sharing it costs arenas."""
    s, blocks = model.settings, len(model.blocks)
    queries = torch.randn(1, s.kv_heads, s.heads // s.kv_heads, s.head_dim).to(model.dtype)
    arenas = torch.randn(blocks, 2, s.kv_heads, tokens, s.head_dim).to(model.dtype)
    pools = torch.randn(blocks, 2, POOL, s.kv_heads, PAGE_TOKENS, s.head_dim).to(model.dtype)
    table = torch.randperm(POOL)[: -(-tokens // PAGE_TOKENS)]

    def by_arena() -> None:
        for keys, values in arenas:
            attend(queries, keys, values)

    def by_gathering() -> None:
        for keys, values in pools:
            attend(queries, *(gathered(half, table, tokens) for half in (keys, values)))

    return {
        "arena": least(by_arena, rounds),
        "pages, gathered": least(by_gathering, rounds),
        "pages, in place": step(model, table.tolist(), tokens, rounds) - alone,
        "to copy a prefix": least(arenas.clone, rounds),
    }


def step(model: Model, table: list[int], tokens: int, rounds: int) -> float:
    """Milliseconds of one compiled decoding step behind so many tokens."""
    pages = model.pages(POOL * PAGE_TOKENS)
    batch = gather([Span([1], tokens - 1, table)])
    return least(lambda: model.next_logits(batch, pages), rounds)


def main() -> None:
    """Print a Markdown table."""
    given = arguments()
    torch.set_num_threads(1)
    model = Model(open_artifact(given.artifact), torch.bfloat16)
    alone = step(model, [0], 1, given.rounds)
    print(f"A step without context: {alone:.2f} ms.\n")
    for number, tokens in enumerate(given.contexts):
        found = row(model, tokens, alone, given.rounds)
        if number == 0:
            print("| tokens | " + " | ".join(found) + " |\n|--:" * 1 + "|--:" * len(found) + "|")
        print(f"| {tokens:,} | " + " | ".join(f"{ms:.2f}" for ms in found.values()) + " |")


if __name__ == "__main__":
    main()
