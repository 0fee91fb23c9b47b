"""Compile every kernel for a GPU that need not be there; a process without the interpreter."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from compress.runtime.triton.attention import _attend
from compress.runtime.triton.products import _multiply

PRODUCT = {
    "x": "*bf16", "codes": "*i32", "scales": "*bf16", "zeros": "*u8", "y": "*fp32",
    **dict.fromkeys(("rows", "inputs", "words", "groups", "group_words", "outputs"), "i32"),
}  # fmt: skip
ATTENTION = {
    "tables": "*i32", "owners": "*i32", "positions": "*i64",
    **dict.fromkeys(("heads", "kv_heads", "width", "table_width", "key_words"), "i32"),
    "value_blocks": "i32", "scale": "fp32", "cap": "fp32", "window": "i32",
}  # fmt: skip


def compiled(kernel, types, told, capability):
    """The size of the binary for one GPU."""
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in kernel.arg_names},
        {(kernel.arg_names.index(name),): value for name, value in told.items()},
    )
    return len(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"])


def main() -> None:
    capability = int(sys.argv[1])
    for bits in (2, 4, 8):
        for alike in (True, False):
            told = {
                "alike": alike, "bits": bits, "part": 256, "at_once": 32, "lanes": 16,
                "most_rows": 16 if alike else 64, "floats": False,
            }  # fmt: skip
            assert compiled(_multiply, PRODUCT, told, capability)
    for states, pages, steps, coded, stepped, bent in (
        ("*bf16", "*bf16", "*bf16", False, False, False),
        ("*bf16", "*u8", "*bf16", True, True, True),
        ("*fp32", "*fp32", "*fp32", False, False, True),
    ):
        told = {
            "group": 3, "groups": 16, "wide": 64, "page_tokens": 32, "lanes": 16,
            "each": {"*fp32": 1, "*bf16": 2, "*u8": 4}[pages], "coded": coded, "stepped": stepped,
            "capped": bent, "windowed": bent, "floats": states == "*fp32",
        }  # fmt: skip
        types = {
            "queries": states, "mixed": states, "keys": pages, "values": pages,
            "key_steps": steps, "value_steps": steps, **ATTENTION,
        }  # fmt: skip
        assert compiled(_attend, types, told, capability)


if __name__ == "__main__":
    main()
