"""Write a dense teacher as one GGUF file, for llama.cpp's own quantizer to begin with.

    python teacher_gguf.py TEACHER_DIR OUT_DIR

By the exporter that `compress export --format gguf` uses, matrices in the teacher's own dtype, so
nothing is rounded. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from compress.artifact.formats.gguf import FILE
from compress.artifact.write import companions, write
from compress.teacher.folder import open_folder


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description="Write a dense teacher as a GGUF file.")
    parser.add_argument("teacher", type=Path, help="a dense Hugging Face folder")
    parser.add_argument("out", type=Path, help="new folder")
    given = parser.parse_args()
    teacher = open_folder(given.teacher)
    tensors = teacher.outside()
    for block in teacher.anatomy.blocks:
        tensors |= teacher.block(block.index)
    write(
        given.out,
        tensors.items(),
        anatomy=teacher.anatomy,
        config=teacher.config,
        tokenizer_files=companions(given.teacher),
        format="gguf",
    )
    print(json.dumps({"size_bytes": (given.out / FILE).stat().st_size}))


if __name__ == "__main__":
    main()
