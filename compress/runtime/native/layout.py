"""What the compiled step is told: records of addresses and numbers, filled in once."""

from __future__ import annotations

import numpy as np


def _record(*names: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in names])


MATRIX = _record(
    "kernels",  # address of those for its bits, see `lanes.kernels`
    "codes", "scales", "zeros",  # addresses, see `lanes.kernel`
    "code_bytes", "scale_bytes", "zero_bytes",  # from sixteen rows to the next sixteen
    "zero_step",
    "blocks", "groups", "share", "units", "inputs",
    "reads",  # how kernels read inputs, see `lanes`
    "bias",  # address of float32; 0: none
    "rounds",  # 1: its inputs become int8, all but outliers
    "columns",  # address of uint8 [I], 1 where inputs stay as they are; 0: none do
)  # fmt: skip
MATRIX = np.dtype([
    *MATRIX.descr,
    ("threshold", np.float32),  # columns in which an input reaches it stay as they are; 0: none do
    ("input_scale", np.float32),  # of rounded inputs; 0: each token has its own
])  # fmt: skip
BLOCK = _record(
    "attention_norm", "mlp_norm", "qk_norm",  # addresses of gains; qk_norm 0: none
    "q", "k", "v", "o", "gate", "up", "down",  # numbers of matrices
    "heads", "kv_heads",
    "window",  # 0: none
    "keys", "values",  # addresses of this layer's pages
    "key_steps", "value_steps",  # of bfloat16, where each token has its own; 0: none
    "key_scales", "value_scales",  # of float32 [KV, D], what all tokens' codes are worth
)  # fmt: skip
STATE = _record(
    "rows", "requests", "wanted",  # tokens, requests and rows with logits of this step
    "parts",  # of requests, see `attention.PART`
    "hidden", "head_dim", "table_width",
    "x", "q", "k", "v", "mixed", "mlp", "logits",  # addresses of float32 [N, …_width]
    "q_width", "k_width", "v_width", "mlp_width", "logits_width",
    "cosine", "sine",  # [N, D/2]
    "starts", "lengths", "tables", "slots", "wanted_rows",  # of int64
    "own", "own_bytes",  # scratch of the first thread, and from it to the next one's
    "final_norm", "head",
    "cache_kernels", "cache_reads",  # as of a matrix, for what pages hold
    "cache_bits",  # of a number in pages: 16, or 8 for int8 codes, stored with 128 added
    "ones", "middle",  # addresses: sixteen times 1.0 as bfloat16, sixteen times 128
    "counters",  # of int64, see OPERATIONS
)  # fmt: skip
STATE = np.dtype([*STATE.descr, ("hidden_floor", np.float32), ("head_floor", np.float32)])

LINE = 8  # int64 in a cache line: what threads write apart lies apart
GO, OVER, ASLEEP = 0, LINE, 2 * LINE  # places in control: newest step, last one over, threads
ENDED = np.iinfo(np.int64).min  # of GO: there will be no more steps
OPERATIONS = 6  # of a block that threads share out: each has a line of what is taken, one of made
