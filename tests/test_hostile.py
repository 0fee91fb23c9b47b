"""What strangers can write: every hostile input ends soon, in little memory, with one message."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hostile import CASES, PAGE, parts, table

from compress.errors import RequestError

MAX_SECONDS = 8.0
MAX_BYTES = 512 * 1024**2  # of Python's own; what is mapped is not memory
MAX_MESSAGE = 12_000  # characters: fifty mistakes, a line each


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.input}")
def test_a_hostile_input_ends_soon_with_one_message(case, tmp_path, tiny_llama):
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(case.error) as caught:
            case.attempt(tmp_path, tiny_llama)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert case.says in message
    assert isinstance(caught.value, RequestError)
    assert len(message) < MAX_MESSAGE
    assert message.replace("\n", "").isprintable()
    assert time.process_time() - begun < MAX_SECONDS  # of work, whatever else computes
    assert peak < MAX_BYTES


def test_the_page_shows_every_case():
    assert parts(PAGE.read_text(encoding="utf-8"))[1] == table()


def test_what_is_allowed_stays_allowed(tiny_llama, tmp_path):
    """The hub's cache is made of links to blobs; a folder may be a link itself."""
    from compress.teacher.folder import open_folder

    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny_llama.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "link").symlink_to(snapshot)
    wanted = open_folder(tiny_llama).fingerprint
    assert open_folder(snapshot).fingerprint == wanted
    assert open_folder(tmp_path / "link").fingerprint == wanted


def test_a_config_cannot_name_code(tiny_llama):
    """transformers would fetch an attention that is named like a repository, and run it."""
    import json

    import torch

    from compress.surgery.walk import empty_model

    config = json.loads((tiny_llama / "config.json").read_text())
    names = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    plain = empty_model(config, torch.float32)
    spoilt = empty_model({**config, **dict.fromkeys(names, "owner/evil")}, torch.float32)
    assert spoilt.config._attn_implementation == plain.config._attn_implementation
