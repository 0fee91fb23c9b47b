import pytest
import torch
from conftest import CONFIGS, VOCAB
from transformers import AutoModelForCausalLM

from compress.surgery.walk import hidden_states, logits
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (3, 48), generator=torch.Generator().manual_seed(0))


def walked(weights, ids=IDS, **options):
    hidden = hidden_states(weights, ids, device="cpu", dtype=torch.float32, **options)
    return logits(weights, hidden.flatten(0, 1)).view(*ids.shape, VOCAB)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_family_walked_block_by_block_says_what_transformers_says(tiny_model, family, tied):
    folder = tiny_model(family, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(IDS).logits
    found = walked(open_folder(folder))
    assert (found - expected).abs().max() < 1e-4


def test_batches_and_padding_on_the_right_change_nothing(tiny_llama):
    teacher = open_folder(tiny_llama)
    whole = walked(teacher)
    assert torch.allclose(walked(teacher, batch_tokens=48), whole, atol=1e-5)
    padded = torch.cat([IDS, torch.zeros(3, 16, dtype=torch.long)], dim=1)
    assert torch.allclose(walked(teacher, padded)[:, :48], whole, atol=1e-5)


def test_a_walk_reports_every_block(tiny_llama):
    seen = []
    walked(open_folder(tiny_llama), watch=seen.append)
    assert [(p.done, p.total) for p in seen] == [(1, 2), (2, 2)]
