from __future__ import annotations

import pytest

from compress.recipe import docs


@pytest.mark.parametrize("path", docs.generated(), ids=lambda path: path.name)
def test_generated_files_are_what_the_schema_says_now(path):
    hint = "run python -m compress.recipe.docs"
    assert path.read_text(encoding="utf-8") == docs.generated()[path], hint


def test_every_field_has_a_row():
    page = docs.page()
    for name in ("damp_percent", "head", "on_unsolvable", "max_shard_size", "teacher_fingerprint"):
        assert f"\n| `{name}` |" in page


def test_the_check_fails_on_a_stale_file(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "generated", lambda: {tmp_path / "recipes.md": "new\n"})
    monkeypatch.setattr(docs.library, "root", lambda: tmp_path)
    with pytest.raises(SystemExit, match=r"recipes\.md: not what the schema says now"):
        docs.main(["--check"])
    docs.main([])
    docs.main(["--check"])
    assert (tmp_path / "recipes.md").read_text() == "new\n"
