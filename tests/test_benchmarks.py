"""The benchmark commands: what they accept, and the shape of what they write. No peer, no model."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from compress import library
from compress.artifact.layout import open_artifact
from compress.artifact.write import companions, write
from compress.catalogue import Catalogue, Measurement, changed
from compress.catalogue import read as read_catalogue
from compress.kernels.grid import Rounded
from compress.recipe.load import load
from compress.recipe.resolve import canonical_json
from compress.recipe.scheme import scheme_for
from compress.recipe.suite import load_suite
from compress.results import to_json
from compress.surgery.load import tokenizer
from compress.teacher.folder import open_folder

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def request_(tmp_path):
    """The smallest complete command line of quantize.py."""
    return [
        *("--teacher", str(tmp_path / "teacher"), "--calibration", str(tmp_path / "valid.txt")),
        *("--test", str(tmp_path / "test.txt"), "--peer-python", sys.executable),
        *("--out", str(tmp_path / "out")),
    ]


RUN = {"seconds": 2.0, "peak_memory_bytes": 100, "sampled_bytes": 90, "anonymous_bytes": 80}


def a_result(summary, *, peer_bytes=1000, peer_kl=0.2):
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
    kl = {"kl_mean": 0.1, "kl_p99": 0.7, "top1_agreement": 0.8, "perplexity": 30.0}
    sizes = {"size_bytes": 1010, "weights_bytes": 1000}
    bits = {"bits_per_weight": 4.25, "bits_per_weight_with_head": 6.5}
    read = {"perplexity": 22.0, **sizes, **bits}
    readings = {
        "teacher": {
            **{"perplexity": 21.0, "size_bytes": 4000, "weights_bytes": 3990},
            **{"bits_per_weight": 16.0, "bits_per_weight_with_head": 16.0, "divergence": {}},
        },
        "compress": {**read, "divergence": {"test.txt": kl}},
        "peer": {
            **read,
            "weights_bytes": peer_bytes,
            "divergence": {"test.txt": {**kl, "kl_mean": peer_kl}},
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
    given = quantize.arguments([*request_, "--also", "w4-fast"])
    ours, also, *_ = quantize.contestants(given, windows)
    assert (ours.name, also.name) == ("compress", "compress w4-fast")
    sets = [argument.removeprefix("--set=") for argument in also.command if "--set=" in argument]
    assert load("w4-fast", sets=sets).calibration.samples == 64


def test_result_holds_medians_ratios_and_the_names_of_results_json(bench):
    result = json.loads(json.dumps(a_result(bench("summary"))))
    ours = result["sides"]["compress"]
    assert ours["seconds"] == 2.0
    assert ours["identical_runs"] is True
    assert {"perplexity", "size_bytes", "bits_per_weight", "peak_memory_bytes"} <= ours.keys()
    assert result["ratios"]["peer"]["seconds"] == pytest.approx(0.2)
    assert result["ratios"]["peer"]["kl_mean"] == {"test.txt": pytest.approx(0.5)}
    assert result["equal_bytes"] is True


def test_a_side_that_left_the_teacher_as_it_was_is_compared_with_nobody(bench):
    with pytest.raises(ValueError, match="peer: a KL of 0"):
        a_result(bench("summary"), peer_kl=0.0)


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


def test_results_page_holds_every_marker(bench):
    text = (BENCHMARKS.parent / "docs" / "results.md").read_text("utf-8")
    commands = ("quantize", "prune", "decode", "equal_bytes", "tasks", "kv_cache")
    assert all(bench(command).MARKER in text for command in commands)


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

    rest = {"norm.weight": ([8], 16), "q.bias": ([8], 16)}
    head = {"model.embed_tokens.weight": ([32, 16], 1024)}
    write(tmp_path / "dense", {"q.weight": ([8, 16], 256), **rest, **head})
    packed = {"q.weight_packed": ([8, 2], 64), "q.weight_scale": ([8, 1], 16)}
    write(tmp_path / "packed", {**packed, **rest, **head})
    (tmp_path / "packed" / "config.json").write_text("{}")
    (tmp_path / "packed" / "results.json").write_text("a record")
    sizes = bench("stored").measure(tmp_path / "packed", tmp_path / "dense")
    assert sizes["linear_weights"] == 128
    assert sizes["bits_per_weight"] == 8 * (64 + 16) / 128
    assert sizes["bits_per_weight_with_head"] == 8 * (64 + 16 + 1024) / (128 + 512)
    assert sizes["size_bytes"] == sizes["weights_bytes"] + 2


@pytest.mark.parametrize(("bits", "sym"), [(2, True), (3, False), (4, False), (8, True)])
def test_packed_is_read_by_its_page_as_we_read_it(bench, tiny_tied, tmp_path, bits, sym):
    teacher, out = open_folder(tiny_tied), tmp_path / "student"
    generator = torch.Generator().manual_seed(bits)
    parts = {}
    for name, tensor in (teacher.outside() | teacher.block(0) | teacher.block(1)).items():
        if tensor.dim() == 1:
            parts[name] = tensor
            continue
        codes = torch.randint(0, 1 << bits, tensor.shape, generator=generator).byte()
        scale = 2.0 ** torch.randint(-9, 0, (len(codes), codes.shape[1] // 32), generator=generator)
        zero = torch.randint(0, 1 << bits, scale.shape, generator=generator)
        zero = torch.full_like(zero, 1 << (bits - 1)) if sym else zero
        module = name.removesuffix(".weight")
        parts[module] = Rounded(codes, scale, zero.byte(), bits, 32, sym)
    write(
        out,
        parts.items(),
        anatomy=teacher.anatomy,
        config=teacher.config,
        tokenizer_files=companions(tiny_tied),
        format="packed",
    )
    found, artifact = bench("dense").from_packed(out), open_artifact(out)
    assert set(found) == set(artifact.names())
    assert all(found[name].equal(artifact.tensor(name).float()) for name in found)


def test_a_packed_folder_that_holds_more_is_refused_by_its_reader(bench, tmp_path):
    told = {"quant_method": "compress", "format": "packed", "version": 1, "exceptions": {}}
    config = {"quantization_config": {**told, "default": {"bits": 8, "inputs": {}}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"\['inputs'\].*not read here"):
        bench("dense").from_packed(tmp_path)


def test_ours_at_a_peers_bytes_must_be_below_it_everywhere(bench):
    equal_bytes = bench("equal_bytes")

    def side(perplexity, kl, size_bytes):
        read = {"perplexity": perplexity + 1, "kl_mean": kl}
        texts = {"a.txt": read, "b.txt": dict(read)}
        return {"perplexity": perplexity, "size_bytes": size_bytes, "divergence": texts}

    sides = {
        "llama.cpp Q4_0": side(25.0, 0.2, 100),
        "compress at the bytes of Q4_0": side(24.0, 0.1, 100),
    }
    assert equal_bytes.verdicts(sides) == {"llama.cpp Q4_0": True}
    sides["compress at the bytes of Q4_0"]["divergence"]["b.txt"]["kl_mean"] = 0.3
    assert equal_bytes.verdicts(sides) == {"llama.cpp Q4_0": False}
    sides["compress at the bytes of Q4_0"] = side(24.0, 0.1, 101)
    assert equal_bytes.verdicts(sides) == {"llama.cpp Q4_0": False}


def test_our_recipe_gets_exactly_the_bytes_of_a_peer(bench, tmp_path):
    equal_bytes, windows = bench("equal_bytes"), tmp_path / "calibration.txt"
    windows.touch()
    words = [f"--teacher={tmp_path}", f"--calibration={windows}", f"--test={windows}"]
    words += [f"--llama={tmp_path}", f"--out={tmp_path / 'out'}"]
    given = equal_bytes.arguments([*words, "--set=allocate.samples=8"])
    assert [side.name for side in equal_bytes.peers(given)] == [
        "llama.cpp Q4_0",
        "llama.cpp Q4_K_M",
    ]
    own, same = equal_bytes.ours(given, windows, {"llama.cpp Q4_0": 91_731_392})
    found = []
    for side in (own, same):
        sets = [word.removeprefix("--set=") for word in side.command if word.startswith("--set=")]
        found.append(load("w-80mb", sets=sets))
    assert [one.stages[0].allocate.parsed.nbytes for one in found] == [80_000_000, 91_731_392]
    assert {one.artifact.format for one in found} == {"packed"}
    assert {one.stages[0].allocate.samples for one in found} == {8}


@pytest.mark.parametrize(
    ("words", "peer", "stored"),
    [
        (["--recipe=w8a8"], ["--scheme", "W8A8"], "compressed-tensors"),
        (["--bits=3"], ["--bits", "3"], "packed"),
    ],
)
def test_a_peer_is_told_the_same_grid_and_ours_is_stored_where_it_fits(
    bench, request_, tmp_path, words, peer, stored
):
    quantize, windows = bench("quantize"), tmp_path / "calibration.txt"
    windows.touch()
    ours, theirs = quantize.contestants(quantize.arguments([*request_, *words]), windows)
    assert " ".join(peer) in " ".join(theirs.command)
    _, _, name, _, *rest = ours.command
    sets = [word.removeprefix("--set=") for word in rest if word.startswith("--set=")]
    assert load(name, sets=sets).artifact.format == stored


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


def test_speculation_tells_both_texts(bench, tiny_llama, tmp_path, capsys):
    out = tmp_path / "speculation.json"
    asked = ["--artifact", str(tiny_llama), "--draft", str(tiny_llama), "--dtype", "float32"]
    asked += ["--tokens", "6", "--rounds", "1", "--threads", "1", "--requests", "2"]
    speculation = bench("speculation")
    speculation.REPETITIVE = "again and again and "
    assert speculation.main([*asked, "--out", str(out)]) == 0
    found = json.loads(out.read_text())["texts"]
    assert set(found) == {"repetitive", "ordinary"}
    assert all(one["same_tokens"] == 1 and one["ratio"] > 0 for one in found.values())
    assert "| repetitive |" in capsys.readouterr().out


@pytest.fixture
def apply_(bench, monkeypatch):
    """Stands for `compress apply`: notes what was run, and leaves the records of a run."""
    applied, ran = bench("applied"), []

    def run(recipe, out, *, sets=(), threads, cache=None):
        ran.append((recipe, sets))
        read = {"perplexity": 20.0 + len(sets), "fingerprint": "ab"}
        side = {"size_bytes": 10**8, "perplexity": read, "bits_per_weight": 4.25}
        kl = {"kl_mean": 0.1 - 0.01 * len(ran), "kl_p99": 1.0, "top1_agreement": 0.8}
        results = {
            "before": side, "after": side, "divergence": {**kl, "fingerprint": "ab"},
            "provenance": {"threads": 2, "teacher": "pypi:x==1"},
        }  # fmt: skip
        seconds = {"teacher": 60.0, "total": 180.0}
        spent = {"seconds": seconds, "cpu_seconds": {"teacher": 30.0, "total": 270.0}}
        speed = {"peak_memory_bytes": 2**30, "decode_tokens_per_second": 200.0}
        return applied.Left(results, {**spent, **speed})

    monkeypatch.setattr(applied, "run", run)
    return ran


def test_every_row_of_an_experiment_is_settings_that_the_recipe_accepts(bench, tmp_path):
    ablate = bench("ablate")
    texts = {name: tmp_path / f"{name}.txt" for name in ("calibration", "held-out")}
    for text in texts.values():
        text.write_text("text")
    words = [f"--{name}={text}" for name, text in texts.items()]
    for experiment in ablate.EXPERIMENTS:
        out = tmp_path / experiment
        out.mkdir()
        given = ablate.arguments([experiment, *words, "--teacher=pypi:x==1", f"--out={out}"])
        recipe = ablate.write_recipe(given)
        found = [load(str(recipe), sets) for sets in ablate.rows(given)]
        assert len({canonical_json(one) for one in found}) == len(found), "two rows are the same"
        assert load_suite(found[0].evaluate.suite).perplexity.set == str(texts["held-out"])


def test_an_ablation_runs_each_row_once_and_shows_the_closest_first(
    bench, apply_, tmp_path, capsys
):
    words = ["--teacher=t", "--calibration=a.txt", "--held-out=b.txt", f"--out={tmp_path}"]
    row = "quantize.bits=3 quantize.sweeps=0"
    assert bench("ablate").main([*words, "--row", row, "--row", row]) == 0
    assert [sets for _, sets in apply_] == [(), tuple(row.split())]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[1:]] == [
        "| quantize.bits=3, quantize.sweeps=0",
        "| defaults",
    ]
    assert len(json.loads((tmp_path / "result.json").read_text())["rows"]) == 2
    assert bench("ablate").main([*words, "--row", row, "--samples=8"]) == 2
    assert "of another request" in capsys.readouterr().err


def test_an_ablation_is_read_on_another_text(bench, tmp_path, capsys):
    words = ["sinks", "--teacher=t", "--calibration=a.txt", f"--out={tmp_path}"]
    with pytest.raises(SystemExit):
        bench("ablate").arguments([*words, "--held-out=./a.txt"])
    assert "judged on another" in capsys.readouterr().err


@pytest.fixture
def catalogue(bench, apply_, monkeypatch, tmp_path):
    """`catalogue(*words)`: the command on a copy of the recipes, whose runs are `apply_`'s."""
    module, recipes = bench("catalogue"), tmp_path / "recipes"
    shutil.copytree(library.folder("recipes"), recipes)
    (recipes / "catalogue.json").unlink(missing_ok=True)
    dense = {
        "texts": ["ab"], "size_bytes": 3 * 10**8, "bits_per_weight": 16.0, "perplexity": 18.0,
        "decode_tokens_per_second": 90.0, "seconds": 60.0, "cpu_seconds": 90.0,
        "peak_memory_bytes": 2**30,
    }  # fmt: skip
    ran = SimpleNamespace(output=dense)
    monkeypatch.setattr(module.measure, "run", lambda command, **how: ran)

    def run(*words, out="out"):
        return module.main([f"--out={tmp_path / out}", f"--recipes={recipes}", *words])

    run.folder, run.module, run.ran = recipes, module, apply_
    return run


def rows_of(folder):
    lines = (folder / "README.md").read_text("utf-8").splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def numbers_of(row):
    return [cell.strip() for cell in row.split("|")[6:-1]]


def test_the_catalogue_fills_in_numbers_and_leaves_words_and_what_was_not_run(catalogue):
    before = rows_of(catalogue.folder)
    assert catalogue() == 0
    after = rows_of(catalogue.folder)
    assert before.keys() == after.keys()
    filled = [name for name in before if numbers_of(after[name])[5:] == ["2.0", "4.0", "1.00"]]
    assert len(filled) == len(catalogue.ran) == len(before) - 3, "but header, teacher, hub's"
    for name in before:
        assert after[name].split("|")[:6] == before[name].split("|")[:6]
    assert numbers_of(after["dense"])[:4] == ["300.0", "18.00", "0.0000", "100.0 %"]
    for name in library.names("recipes"):
        old, new = (load(str(folder / f"{name}.yaml"))
                    for folder in (library.folder("recipes"), catalogue.folder))  # fmt: skip
        assert canonical_json(old) == canonical_json(new)
    head = (catalogue.folder / "quickstart.yaml").read_text("utf-8").splitlines()[2:4]
    assert head[0] == (
        "# cost:    2.0 minutes on 2 threads after the download (4.0 of processors), 1.00 GiB"
    )
    assert head[1].startswith("# expect:  300 → 100 MB, perplexity 18.00 → 20.00   (")


def test_the_catalogue_is_filled_in_again_to_the_same_files(catalogue):
    assert catalogue() == 0
    files = contents_of(catalogue.folder)
    ran = len(catalogue.ran)
    assert catalogue() == 0
    assert len(catalogue.ran) == ran, "what OUT holds is read"
    assert contents_of(catalogue.folder) == files


def test_each_entry_is_kept_as_soon_as_it_is_there(catalogue, monkeypatch, capsys):
    recipes, run = catalogue.folder, catalogue.module.applied.run

    def failing(recipe, *words, **how):
        if "nvfp4" in recipe:
            raise catalogue.module.measure.ChildError("exit code 1, see nvfp4.log")
        return run(recipe, *words, **how)

    monkeypatch.setattr(catalogue.module.applied, "run", failing)
    assert catalogue("--only", "fp8", "nvfp4", "w4-best") == 1
    assert "nvfp4: exit code 1, see nvfp4.log" in capsys.readouterr().err
    assert set(read_catalogue(recipes).recipes) == {"fp8", "w4-best"}
    assert catalogue("--only", "dense", out="other") == 0
    found = read_catalogue(recipes)
    assert found.dense.perplexity == 18.0
    assert set(found.recipes) == {"fp8", "w4-best"}, "entries of recipes not run stay"
    assert catalogue("--only", "dense", "w4-best", out="other") == 0
    with pytest.raises(SystemExit):
        catalogue("--only", "w4-bset")
    assert "no w4-bset; known: " in capsys.readouterr().err


def test_a_recipe_that_was_changed_is_named_and_run_again(catalogue):
    assert catalogue("--only", "fp8", "w4-best") == 0
    recipe = catalogue.folder / "w4-best.yaml"
    recipe.write_text("# a word more\n" + recipe.read_text("utf-8"), "utf-8")
    assert not changed(read_catalogue(catalogue.folder), catalogue.folder), "words are no change"
    recipe.write_text(recipe.read_text("utf-8").replace("samples: 128", "samples: 64"), "utf-8")
    assert changed(read_catalogue(catalogue.folder), catalogue.folder) == ["w4-best"]
    assert catalogue("--only", "fp8") == 0
    page = (catalogue.folder / "README.md").read_text("utf-8")
    assert "Measured before it was changed: w4-best." in page
    assert len(catalogue.ran) == 2
    assert catalogue("--only", "w4-best") == 0
    assert len(catalogue.ran) == 3
    assert not changed(read_catalogue(catalogue.folder), catalogue.folder)


def test_a_promise_that_drifted_fails_the_check_by_its_name(catalogue, capsys):
    assert catalogue("--only", "dense", "fp8", "nvfp4") == 0
    files = contents_of(catalogue.folder)
    assert catalogue("--check", "--only", "dense", "fp8") == 0
    capsys.readouterr()
    assert catalogue("--check", "--only", "fp8", "nvfp4", "w4-best", out="fresh") == 1
    told, wrong = capsys.readouterr()
    assert "fp8: kl_mean: promised 0.09, found 0.07; may move by 5%" in wrong
    assert "w4-best: catalogue.json has no entry" in wrong
    assert "perplexity" not in wrong, "it is what it was"
    assert "fp8: cpu_seconds was 240, is 240" in told
    assert contents_of(catalogue.folder) == files


def test_what_may_drift_is_stated(catalogue):
    promised = Measurement(
        "ab", "t", "quick", ("cd",), 100, 4.25, 20.0, 0.1, 1.0, 0.8, 200.0, 60.0, 90.0, 1, 2,
        "day", "commit", "h", "c",
    )  # fmt: skip
    drifted = catalogue.module.drifted
    slower = {"seconds": 600.0, "cpu_seconds": 600.0, "decode_tokens_per_second": 20.0}
    near = {"perplexity": 20.19, "kl_mean": 0.1049, "kl_p99": 1.09, "top1_agreement": 0.793}
    assert not list(drifted(promised, replace(promised, **near, **slower)))
    far = {"size_bytes": 101, "perplexity": 20.21, "kl_mean": 0.1051, "suite": "full"}
    assert len(list(drifted(promised, replace(promised, **far)))) == 4
    assert len(list(drifted(promised, replace(promised, kl_mean=None)))) == 1
    assert len(list(drifted(promised, replace(promised, recipe_sha256="xy")))) == 1


SHAPE = (
    "--blocks",
    "3",
    "--hidden",
    "64",
    "--intermediate",
    "96",
    "--heads",
    "4",
    "--vocab",
    "320",
)


def test_a_synthetic_checkpoint_is_a_whole_teacher_in_shards(bench, tmp_path):
    synthetic = bench("synthetic")
    folder = tmp_path / "teacher"
    given = synthetic.arguments([str(folder), *SHAPE, "--kv-heads", "2"])
    synthetic.write(folder, given, shard_bytes=60_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    teacher = open_folder(folder)
    assert (len(teacher.anatomy.blocks), teacher.anatomy.tied) == (3, False)
    weight = teacher.block(2)["model.layers.2.mlp.down_proj.weight"].float()
    assert 0.015 < weight.std() < 0.025
    assert not weight.equal(teacher.block(1)["model.layers.1.mlp.down_proj.weight"].float())
    assert tokenizer(folder).encode("any text") != []


def test_a_plan_is_held_against_a_run(bench):
    memory = bench("memory")
    foretold = {
        "size": {"size_bytes": 100}, "peak_memory_bytes": 3 * 2**20, "memory_bytes": {},
        "limits": {},
    }  # fmt: skip
    real = {"size_bytes": 100, "anonymous_bytes": 2 * 2**20, "by_step": {}, "seconds": 7.0}
    rows = [{"name": "smoke", **memory._compared(foretold, real)}]
    assert memory.table(rows)[-1] == "| smoke | 100 | 100 | 3 | 2 | 1.50 | 7 |"


def test_memory_against_blocks_is_drawn(bench, tmp_path):
    memory = bench("memory")
    rows = [
        {"blocks": count, "name": f"{name}-{count}", "anonymous_bytes": 2**29 + count}
        for count in (8, 16) for name in ("gptq", "rtn")
    ]  # fmt: skip
    for name in ("one.svg", "other.svg"):
        memory.draw(rows, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert all(word in text for word in ("W4 GPTQ", "W4 RTN", "decoder blocks", ">16<"))
    assert text == (tmp_path / "other.svg").read_text()


def test_recipes_of_the_memory_benchmark_load_and_solve_the_first_blocks(bench, tmp_path):
    memory = bench("memory")
    some = memory.some_blocks(2)
    for quantize in (memory.GPTQ, memory.RTN, some):
        text = memory.RECIPE.format(
            teacher=tmp_path, text=memory.TEXT, samples=4, quantize=quantize
        )
        (tmp_path / "x.yaml").write_text(text)
        recipe = load(str(tmp_path / "x.yaml"))
    (stage,) = recipe.stages
    names = [f"model.layers.{index}.mlp.up_proj" for index in (0, 1, 2, 10)]
    assert [bool(scheme_for(stage.quantize, name)) for name in names] == [True, True, False, False]


def test_a_pass_key_lies_in_text_of_the_right_length_and_is_drawn_from_the_seed(bench):
    passkey = bench("passkey")
    text = "One sentence here. Another one there! And a third? " * 20
    made = passkey.items(text, count=4, tokens=400, seed=7, encode=lambda t: list(t.encode()))
    again = passkey.items(text, count=4, tokens=400, seed=7, encode=lambda t: list(t.encode()))
    assert made == again
    assert [one.depth for one in made] == [0.125, 0.375, 0.625, 0.875]
    assert len({one.key for one in made}) == 4
    for one in made:
        read = bytes(one.ids).decode()
        assert len(one.ids) == 400
        assert read.count(one.key) == 2
        assert read.endswith(passkey.QUESTION)
        assert abs(read.index(one.key) / 400 - one.depth) < 0.3
    assert passkey.found(" 12345. It is", "12345")
    assert not passkey.found(" 12346", "12345")


def test_rows_of_keys_and_values_become_a_table(bench):
    kv_cache = bench("kv_cache")
    given = kv_cache.arguments(
        ["--teacher", "t", "--calibration", "c.txt", "--test", "x.txt", "--out", "o"]
    )
    assert tuple(given.rows) == kv_cache.ROWS
    row = {"kv_bytes_per_token": 23_040, "perplexity": 20.0, "found": [True, False]}
    other = {**row, "kv_bytes_per_token": 11_520, "perplexity": 20.02, "found": [True, True]}
    told = {"kl_mean": 0.00123, "top1_agreement": 0.98}
    about = {"date": "d", "commit": "c", "command": "python x", "hardware": "h", "test": "x.txt"}
    asked = {"samples": 1, "windows": 2, "seq_len": 2048, "items": 2, "item_tokens": 2048}
    page = kv_cache.page(
        {
            **about,
            **asked,
            "calibration": "c.txt",
            "rows": {"float": row, "int8 head": other | told},
        }
    )
    assert "| float | 23,040 | 20.000 |  |  |  | 1 of 2 |  |" in page
    assert "| int8 head | 11,520 | 20.020 | +0.100 % | 0.00123 | 0.9800 | 2 of 2 | 1 |" in page


def test_seconds_to_the_same_kl_lie_between_looks(bench):
    distill = bench("distill")
    ours, theirs = [(0, 0.0, 2.0), (5, 10.0, 1.0), (10, 20.0, 0.5)], [(0, 0, 2.0), (5, 40, 0.8)]
    assert distill.reached(ours, 1.5) == 5.0
    assert distill.reached(ours, 0.8) == 14.0
    sides = {
        name: {
            "output": {"curve": curve, "seconds": curve[-1][1]},
            "peak_memory_bytes": 10**9, "anonymous_bytes": 10**8,
        }
        for name, curve in (("compress", ours), ("TRL, amp", theirs))
    }  # fmt: skip
    told = "\n".join(distill.table(sides))
    assert "to a held-out KL of 0.8000 nats, from 2.0000" in told
    assert "compress over TRL, amp: seconds 0.35, peak memory 1.00" in told
    with pytest.raises(ValueError, match="never reached"):
        distill.reached(theirs, 0.5)


def test_the_front_holds_what_nobody_beats_and_peers_that_beat_ours_are_named(bench):
    pareto = bench("pareto")
    ours = [pareto.Point("compress", name, size, loss)
            for name, size, loss in (("a", 80, 5.0), ("b", 110, 6.0), ("c", 120, 1.0))]  # fmt: skip
    peer = pareto.Point("llama.cpp", "Q", 105, 4.0)
    panel = pareto.Panel("p", "said", "perplexity", (*ours, peer))
    assert pareto.front(panel.points) == [ours[0], peer, ours[2]]
    assert list(pareto.beaten(panel)) == [(ours[1], [peer])]


def test_the_picture_shows_recipes_and_peers_of_one_protocol_in_light_and_dark(bench, tmp_path):
    pareto = bench("pareto")
    shutil.copy(library.folder("recipes") / "peers.json", tmp_path)
    one = Measurement(
        "", "t", "quick", ("ab",), 10**8, 4.25, 20.0, 0.1, 1.0, 0.8, 200.0, 60.0, 90.0, 1, 2,
        "day", "commit", "h", "c",
    )  # fmt: skip
    measured = {"w4-best": one, "fp8": replace(one, kl_mean=0.01), "smoke": replace(one, suite="s")}
    (tmp_path / "catalogue.json").write_text(to_json(Catalogue(one, measured)))
    out = tmp_path / "pareto.svg"
    assert pareto.main([f"--recipes={tmp_path}", f"--out={out}"]) == 0
    first = out.read_text("utf-8")
    for text in (">w4-best<", ">fp8<", ">Q4_K_M<", "prefers-color-scheme: dark", ">auto-round<"):
        assert text in first
    assert ">smoke<" not in first, "another suite"
    assert pareto.main([f"--recipes={tmp_path}", f"--out={out}"]) == 0
    assert out.read_text("utf-8") == first
    assert ElementTree.fromstring(first).tag.endswith("svg")
    (tmp_path / "peers.json").write_text('{"protocols": {}, "rows": [{"protocol": "x"}]}')
    with pytest.raises(ValueError, match="no protocol x"):
        pareto.panels(tmp_path)


def test_every_row_of_a_peer_says_where_it_is_from():
    found = json.loads((library.folder("recipes") / "peers.json").read_text("utf-8"))
    for row in found["rows"]:
        said = {"by", "name", "version", "date", "commit", "command", "size_bytes", "protocol"}
        assert said <= row.keys()
        assert row["protocol"] in found["protocols"]
