"""Where one stored tensor lies, and its values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
    "F8_E4M3": "u1",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Where one stored tensor lies, and what its header says it is."""

    file: Path
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    start: int  # first byte in the file
    stop: int  # byte after the last

    def raw(self) -> NDArray[np.uint8]:
        """Its bytes."""
        return np.fromfile(self.file, np.uint8, self.stop - self.start, offset=self.start)

    def array(self) -> NDArray[Any]:
        """Its values; bfloat16, which numpy lacks, as the words that hold them."""
        return self.raw().view(NUMPY[self.dtype]).reshape(self.shape)

    def floats(self) -> NDArray[np.float32]:
        """Its values as float32, exact for all narrower floats."""
        values = self.array()
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)
