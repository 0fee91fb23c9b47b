"""The only door to safetensors and GGUF files: checked headers, mapped reads, durable writes.

Headers are read without torch, so that planning and inspecting stay light. What is read was written
by strangers: nothing here executes it, and no header, however it lies, takes more memory or time
than the bounds named at the top of each module. `docs/security.md` lists what is defended.
"""

from compress.storage.checkpoint import INDEX, SINGLE, Checkpoint, check_links, read_file
from compress.storage.gguf import (
    GgufHeader,
    GgufTensor,
    check_gguf,
    gguf_fields,
    read_gguf,
    read_gguf_bytes,
)
from compress.storage.gguf_writing import GgufWriter
from compress.storage.headers import ITEM_BITS, TensorInfo, parse_header, read_header
from compress.storage.locking import locked
from compress.storage.text import parse_json, read_json, read_text
from compress.storage.writing import (
    ShardWriter,
    append,
    copy_file,
    cut,
    link_file,
    make_folder,
    mapped,
    sync_folder,
    write_file,
    write_text,
)

__all__ = [
    "INDEX",
    "ITEM_BITS",
    "SINGLE",
    "Checkpoint",
    "GgufHeader",
    "GgufTensor",
    "GgufWriter",
    "ShardWriter",
    "TensorInfo",
    "append",
    "check_gguf",
    "check_links",
    "copy_file",
    "cut",
    "gguf_fields",
    "link_file",
    "locked",
    "make_folder",
    "mapped",
    "parse_header",
    "parse_json",
    "read_file",
    "read_gguf",
    "read_gguf_bytes",
    "read_header",
    "read_json",
    "read_text",
    "sync_folder",
    "write_file",
    "write_text",
]
