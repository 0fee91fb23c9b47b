import pytest

from compress.errors import ArtifactError, StorageError
from compress.journal import Journal

IDENTITY = {"teacher": "ab", "machine": {"threads": 2}, "stages": [{"bits": 4}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


@pytest.fixture
def shard(tmp_path):
    file = tmp_path / "block.safetensors"
    file.write_bytes(b"weights")
    return file


def begun(path, *units):
    journal = Journal(path, IDENTITY)
    for unit in units:
        journal.add(unit, {"of": unit})
    return journal


def test_what_was_finished_is_found_again_in_order(path):
    begun(path, "a", "b")
    again = Journal(path, IDENTITY)
    assert again.finished == ("a", "b")
    assert again.get("b") == {"of": "b"}
    assert again.get("c") is None


def test_a_run_that_finished_nothing_leaves_no_file(path):
    begun(path)
    assert not path.exists()


def test_records_come_back_bit_by_bit(path):
    error = 0.1 + 0.2
    Journal(path, IDENTITY).add("a", {"error": error, "none": None})
    assert Journal(path, IDENTITY).get("a") == {"error": error, "none": None}


def test_a_last_line_cut_anywhere_is_a_unit_not_finished(path):
    begun(path, "a", "b")
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path, IDENTITY)
        assert journal.finished == ("a",)
        journal.add("b", {"of": "b"})
        assert path.read_bytes() == whole


def test_a_damaged_line_before_the_last_is_no_journal(path):
    begun(path, "a", "b")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"a"', b'"x"')
    path.write_bytes(b"".join(lines))
    with pytest.raises(ArtifactError, match=r"line 2 is damaged.*--fresh"):
        Journal(path, IDENTITY)


def test_another_run_is_refused_with_every_difference_by_name(path):
    begun(path, "a")
    other = {"teacher": "cd", "machine": {"threads": 1}, "stages": [{"bits": 8}]}
    with pytest.raises(ArtifactError) as caught:
        Journal(path, other)
    for text in ("teacher: was ab, is cd", "machine.threads: was 2, is 1", "stages[0].bits: was 4"):
        assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_changed_or_went_since_is_named(path, shard):
    begun(path).add("a", {}, [shard])
    assert Journal(path, IDENTITY).finished == ("a",)
    shard.write_bytes(b"weightz")
    with pytest.raises(ArtifactError, match=r"block\.safetensors: has changed since a"):
        Journal(path, IDENTITY)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"block\.safetensors: of finished a, cannot be read"):
        Journal(path, IDENTITY)


def test_a_full_disk_while_a_unit_is_recorded_leaves_it_unfinished(path, monkeypatch):
    import os

    journal = begun(path, "a")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            journal.add("b", {})
    assert journal.get("b") is None
