from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS

from compress.surgery import load
from compress.surgery.decode import Decoder
from compress.teacher.folder import open_folder


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_one_token_at_a_time_says_what_the_whole_sequence_says(family, tiny_model):
    teacher = open_folder(tiny_model(family, tied=True))
    ids = torch.randint(0, 256, (3, 80), generator=torch.Generator().manual_seed(0))
    model = load.materialize(teacher, torch.float32)
    # Eager: the reference that caps attention scores where a family does.
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model(ids).logits
    decoder = Decoder(load.materialize(teacher, torch.float32), room=80)
    got = torch.stack([decoder.step(ids[:, t]) for t in range(80)], dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
