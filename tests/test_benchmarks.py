"""The benchmark commands: what they accept, and the shape of what they write. No peer, no model."""

from __future__ import annotations

import importlib
import json
import struct
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Import a module of benchmarks/ the way its scripts see each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "readers"))
    names = ("measure", "summary", "texts", "quantize", "decode", "stored")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def request_(tmp_path):
    """The smallest complete command line of quantize.py."""
    return [
        *("--teacher", str(tmp_path / "teacher"), "--calibration", str(tmp_path / "valid.txt")),
        *("--test", str(tmp_path / "test.txt"), "--peer-python", sys.executable),
        *("--out", str(tmp_path / "out")),
    ]


RUN = {"seconds": 2.0, "peak_memory_bytes": 100, "sampled_bytes": 90, "anonymous_bytes": 80}


def a_result(summary, *, peer_bytes=1000):
    runs = {
        "compress": [
            {**RUN, "seconds": seconds, "weights_sha256": ["a"], "versions": {"torch": "2"}}
            for seconds in (1.0, 3.0, 2.0)
        ],
        "peer": [
            {**RUN, "seconds": 10.0, "weights_sha256": ["b"], "calibration_fingerprint": "other"}
        ],
    }
    runs["peer"][0]["calibration_fingerprint"] = "other"
    kl = {"kl_mean": 0.1, "kl_p99": 0.7, "top1_agreement": 0.8}
    read = {"perplexity": 22.0, "size_bytes": 1000, "bits_per_weight": 4.25}
    readings = {
        "teacher": {"perplexity": 21.0, "size_bytes": 4000},
        "compress": {**read, "divergence": {"test.txt": kl}},
        "peer": {
            **read,
            "size_bytes": peer_bytes,
            "divergence": {"test.txt": {**kl, "kl_mean": 0.2}},
        },
    }
    facts = {
        **{name: name for name in ("date", "commit", "hardware", "command", "teacher")},
        "calibration_fingerprint": "this",
        "texts_sha256": {"test.txt": "0123456789abcdef"},
        "settings": {
            **{"method": "gptq", "bits": 4, "group_size": 64, "samples": 128, "seq_len": 512},
            **{"threads": 2, "runs": 3},
        },
    }
    return summary.summarize(facts, runs, readings, ours="compress", bytes_tolerance=0.01)


def test_defaults_are_the_protocol_of_the_recorded_results(bench, request_):
    given = bench("quantize").arguments(request_)
    assert (given.method, given.bits, given.group_size) == ("gptq", 4, 64)
    assert (given.samples, given.seq_len, given.windows) == (128, 512, [40, 20])
    assert given.peer_dtype == ["bfloat16"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--runs", "0"], "at least 1"),
        (["--reread"], "runs.json"),
        (["--peer-python", "/nowhere/python"], "is missing"),
    ],
)
def test_wrong_requests_end_before_anything_runs(bench, request_, capsys, extra, message):
    with pytest.raises(SystemExit) as ended:
        bench("quantize").arguments([*request_, *extra])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_in_use_is_not_written_into(bench, request_, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(SystemExit):
        bench("quantize").arguments(request_)
    assert "not empty" in capsys.readouterr().err


def test_each_peer_dtype_is_a_side_after_ours(bench, request_, tmp_path):
    quantize = bench("quantize")
    given = quantize.arguments([*request_, "--peer-dtype", "bfloat16", "float32"])
    sides = quantize.contestants(given, tmp_path / "calibration.txt")
    assert [side.name for side in sides] == [
        *("compress", "llm-compressor bfloat16", "llm-compressor float32")
    ]
    assert all("{out}" in side.command for side in sides)


def test_the_recipe_it_writes_is_one_that_we_load(bench, request_, tmp_path):
    load = pytest.importorskip("compress.recipe.load").load
    quantize, windows = bench("quantize"), tmp_path / "calibration.txt"
    windows.touch()
    for method in ("gptq", "rtn"):
        given = quantize.arguments([*request_, "--method", method, "--scale-search", "mse"])
        path, _ = quantize.our_recipe(given, windows)
        stage = load(path).stages[0].quantize
        assert (stage.method, stage.sym, stage.head) == (method, True, None)
        assert stage.scale_search == "mse"


def test_a_shipped_recipe_is_moved_to_this_teacher_and_text(bench, request_, tmp_path):
    load = pytest.importorskip("compress.recipe.load").load
    quantize, windows = bench("quantize"), tmp_path / "calibration.txt"
    windows.touch()
    given = quantize.arguments([*request_, "--recipe", "w4g64-gptq"])
    name, _, *sets = quantize.our_recipe(given, windows)
    recipe = load(name, sets=[argument.removeprefix("--set=") for argument in sets])
    assert recipe.teacher.model == str(tmp_path / "teacher")
    assert recipe.teacher.sha256 is None
    assert recipe.calibration.set == str(windows)


def test_result_holds_medians_ratios_and_the_names_of_results_json(bench):
    result = json.loads(json.dumps(a_result(bench("summary"))))
    ours = result["sides"]["compress"]
    assert ours["seconds"] == 2.0
    assert ours["identical_runs"] is True
    assert {"perplexity", "size_bytes", "bits_per_weight", "peak_memory_bytes"} <= ours.keys()
    assert result["ratios"]["peer"]["seconds"] == pytest.approx(0.2)
    assert result["ratios"]["peer"]["kl_mean"] == {"test.txt": pytest.approx(0.5)}
    assert result["equal_bytes"] is True


def test_unequal_bytes_and_other_windows_are_said_on_the_page(bench):
    summary = bench("summary")
    result = a_result(summary, peer_bytes=900)
    assert result["equal_bytes"] is False
    assert "NOT equal (1.111×)" in summary.page(result)
    assert "peer did NOT calibrate on the windows" in summary.page(result)
    assert "compress does not say whether it calibrated on" in summary.page(result)


def test_both_sides_name_their_windows_alike(bench):
    torch = pytest.importorskip("torch")
    tokens = pytest.importorskip("compress.calibrate.tokens")
    ids = [1, 2, 3, 4, 5, 600]
    ours = tokens.fingerprint(torch.tensor(ids).view(2, 3))
    assert bench("texts").fingerprint(ids, 2, 3) == ours


def test_sections_are_inserted_newest_first_and_only_below_a_marker(bench, tmp_path):
    summary, page = bench("summary"), tmp_path / "results.md"
    page.write_text("# Results\n\n<!-- here -->\n")
    summary.insert(page, "first", marker="<!-- here -->")
    summary.insert(page, "second\n", marker="<!-- here -->")
    assert page.read_text() == "# Results\n\n<!-- here -->\n\nsecond\n\nfirst\n"
    with pytest.raises(ValueError, match="no line"):
        summary.insert(page, "third", marker="<!-- there -->")


def test_results_page_holds_both_markers(bench):
    text = (BENCHMARKS.parent / "docs" / "results.md").read_text("utf-8")
    assert bench("quantize").MARKER in text
    assert bench("decode").MARKER in text


def test_cut_text_gives_the_first_tokens_of_the_whole(bench, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("a b c a b c a b")
    texts = bench("texts")
    windows = texts.cut(tmp_path, text, tmp_path / "cut.txt", samples=2, seq_len=3)
    assert windows.path.read_text() == "a b c a b c"
    assert windows.fingerprint == texts.fingerprint([1, 2, 3, 1, 2, 3], 2, 3)
    with pytest.raises(ValueError, match="8 tokens, 3 windows of 3 need 9"):
        texts.cut(tmp_path, text, tmp_path / "cut.txt", samples=3, seq_len=3)


def test_pydoc_topics_is_the_same_text_twice(bench, tmp_path):
    texts = bench("texts")
    first = texts.resolve("pydoc-topics", tmp_path).read_bytes()
    assert first == texts.resolve("pydoc-topics", tmp_path).read_bytes()
    assert len(first.split()) > 50_000
    with pytest.raises(FileNotFoundError, match="pydoc-topics for the one built in"):
        texts.resolve("nowhere.txt", tmp_path)


def test_stored_bits_count_everything_kept_for_a_linear(bench, tmp_path):
    def write(folder, tensors):
        folder.mkdir()
        entries, end = {}, 0
        for name, (shape, size) in tensors.items():
            entries[name] = {"dtype": "U8", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        header = json.dumps(entries).encode()
        content = struct.pack("<Q", len(header)) + header + bytes(end)
        (folder / "model.safetensors").write_bytes(content)

    norm = {"norm.weight": ([8], 16)}
    write(tmp_path / "dense", {"q.weight": ([8, 16], 256), **norm})
    packed = {"q.weight_packed": ([8, 2], 64), "q.weight_scale": ([8, 1], 16)}
    write(tmp_path / "packed", {**packed, **norm})
    sizes = bench("stored").measure(tmp_path / "packed", tmp_path / "dense")
    assert sizes["quantized_weights"] == 128
    assert sizes["bits_per_weight"] == 8 * (64 + 16) / 128


def test_a_child_is_measured_and_its_last_json_line_returned(bench, tmp_path):
    measure = bench("measure")
    code = "print('{\"seconds\": 0}'); x = bytearray(80_000_000); print('{\"seconds\": 1}')"
    done = measure.run([sys.executable, "-c", code], env={}, cwd=tmp_path, log=tmp_path / "log")
    assert done.output == {"seconds": 1}
    assert done.memory.peak_memory_bytes > 80_000_000


@pytest.mark.parametrize("code", ["raise SystemExit('broken')", "print('no json')"])
def test_a_child_that_fails_says_where_its_log_is(bench, tmp_path, code):
    measure = bench("measure")
    with pytest.raises(measure.ChildError, match="log"):
        measure.run([sys.executable, "-c", code], env={}, cwd=tmp_path, log=tmp_path / "log")


def test_decode_names_each_side_and_refuses_none(bench, tmp_path, capsys):
    decode = bench("decode")
    out = ["--out", str(tmp_path / "decode.json")]
    given = decode.arguments(["--artifact", "a", "--transformers", "b", *out])
    assert list(decode.commands(given)) == ["ours, a", "transformers, b"]
    with pytest.raises(SystemExit):
        decode.arguments(out)
    assert "nothing to measure" in capsys.readouterr().err
