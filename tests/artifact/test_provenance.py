"""The facts of a manifest, and the commit of a checkout, read without git."""

from __future__ import annotations

import hashlib
import json
import subprocess

from compress.artifact.provenance import checkout_commit, facts
from compress.results import Divergence, Perplexity, Provenance, Results, Side

SIDE = Side(1000, 4.5, Perplexity(10.0, "text", 512, 512, 4, 2044))
RESULTS = Results(
    Provenance("r", "version: 1\n", "m", "f", "self", "c", 1024, 7, 2, "cpu", {"torch": "2.13.0"}),
    SIDE, SIDE, Divergence("text", 2048, 0.1, 0.05, 0.7, 0.9, 10, (0.0, 1.0), (1,)), (), (),
)  # fmt: skip


def test_facts_name_all_that_decided_an_artifact():
    found = facts(RESULTS, teacher_revision=None, teacher_source_sha256="s", commit="0123")
    assert found["teacher"] == {
        "name": "m", "revision": None, "source_sha256": "s", "fingerprint": "f"
    }  # fmt: skip
    assert found["calibration"] == {"set": "self", "tokens": 1024, "fingerprint": "c"}
    assert found["recipe"]["lock_sha256"] == hashlib.sha256(b"version: 1\n").hexdigest()
    assert (found["seed"], found["threads"], found["commit"]) == (7, 2, "0123")
    assert found["versions"] == {"torch": "2.13.0"}
    assert found["evaluation"]["after"]["perplexity"]["perplexity"] == 10.0
    assert found["evaluation"]["divergence"]["kl_mean"] == 0.1
    assert not any(name.startswith("histogram") for name in found["evaluation"]["divergence"])
    json.dumps(found)


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", folder, *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_commit_of_a_checkout_is_read_from_its_files(tmp_path):
    root = tmp_path / "repo"
    (root / "compress").mkdir(parents=True)
    assert checkout_commit(root / "compress") is None
    git(tmp_path, "init", "-q", root)
    assert checkout_commit(root / "compress") is None  # no commit yet
    git(root, "commit", "-q", "--allow-empty", "-m", "one")
    commit = git(root, "rev-parse", "HEAD")
    assert checkout_commit(root / "compress") == commit
    git(root, "pack-refs", "--all")
    assert checkout_commit(root / "compress") == commit
    git(root, "worktree", "add", "-q", "-b", "other", tmp_path / "tree")
    assert checkout_commit(tmp_path / "tree" / "compress") == commit
    git(root, "checkout", "-q", "--detach")
    assert checkout_commit(root / "compress") == commit
