"""Write a teacher that says what another says and whose weights lie on no earlier grid.

    python benchmarks/rotated.py TEACHER OUT [--seed 0]

A teacher that was itself quantized once flatters whoever rounds to a grid like its own. Here its
residual stream and its values are turned at random (`compress.surgery.rotate`), in float32: the
same function, other numbers. A tied head comes off its embedding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from compress.artifact.write import write
from compress.surgery.rotate import rotated
from compress.teacher.folder import open_folder


def main() -> None:
    """Rotate and write."""
    parser = argparse.ArgumentParser(description="Rotate a teacher.")
    parser.add_argument("teacher", type=Path, help="a dense Hugging Face folder")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    teacher = open_folder(given.teacher)
    turned = rotated(teacher, residual="random", values="hadamard", seed=given.seed)
    blocks = range(len(turned.anatomy.blocks))
    tensors = turned.outside() | {k: v for i in blocks for k, v in turned.block(i).items()}
    write(
        given.out,
        tensors.items(),
        anatomy=turned.anatomy,
        config={**turned.config, "dtype": "float32"},
        tokenizer_files=teacher.tokenizer_files,
        format="dense",
    )


if __name__ == "__main__":
    main()
