"""A teacher's distributions on disk: exact, told of, and refused where they cannot be."""

import json
from pathlib import Path

import pytest
import torch

from compress import logits, storage
from compress.cli.app import app
from compress.errors import ArtifactError, RequestError
from compress.kernels.divergence import kl
from compress.kernels.topk import TopK, divergence
from compress.surgery import walk
from compress.teacher.folder import open_folder

LEARN = (
    "[{restructure: {ffn: 0.5}}, {distill: {held_out: 2, batch_tokens: 64, "
    "text: {set: TEXT, samples: 5, seq_len: 16}}}]"
)


@pytest.fixture
def asked(recipe, tmp_path):
    return recipe(LEARN.replace("TEXT", str(tmp_path / "text.txt")))


def test_kl_from_what_was_written_is_that_of_the_teacher(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(logits, "SHARD_TOKENS", 32)
    found = logits.export(asked, out=tmp_path / "a", top_k=320)
    teacher = open_folder(Path(asked.teacher.model))
    assert (found.windows, found.seq_len, len(found.files)) == (5, 16, 3)
    parts = [
        storage.read_file(tmp_path / "a" / name, ["tokens", "ids", "log_probs", "log_tail"])
        for name in found.files
    ]
    held = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert held["ids"].shape == (5, 16, 320)
    ids = held["tokens"].long()
    hidden = walk.hidden_states(teacher, ids, device="cpu", dtype=torch.float32)
    exact = walk.logits(teacher, hidden.flatten(0, 1))
    student = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    kept = TopK(*(held[n].flatten(0, 1) for n in ("ids", "log_probs", "log_tail")))
    torch.testing.assert_close(divergence(kept, student), kl(exact, student), rtol=1e-3, atol=1e-4)
    told = json.loads((tmp_path / "a" / "logits.json").read_text())
    assert told["teacher_fingerprint"] == teacher.fingerprint
    assert told["top_k"] == 320


def test_bytes_a_token_and_the_tail_are_told(asked, tmp_path):
    found = logits.export(asked, out=tmp_path / "a", top_k=8)
    header = 1000 / (5 * 16)  # of a file, at most
    assert 8 + 8 * 8 <= found.bytes_per_token <= 8 + 8 * 8 + header
    assert 0 < found.tail_mean < 1


def test_what_cannot_be_written_is_refused(asked, tmp_path):
    with pytest.raises(RequestError, match=r"--top-k 321: the teacher's vocabulary has 320 tokens"):
        logits.export(asked, out=tmp_path / "a", top_k=321)
    (tmp_path / "b").mkdir()
    with pytest.raises(ArtifactError, match="is there already"):
        logits.export(asked, out=tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_the_command_prints_bytes_a_token(asked, tmp_path):
    from typer.testing import CliRunner

    command = ["logits", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "a"), "--top-k", "4"]
    done = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "bytes per token" in done.output
