import dataclasses
import json
import math

import pytest
import torch
from learners import GENERATOR, again, cut_before, kl, pruned_student, teach
from students import cut, run, states

from compress.calibrate import tokens
from compress.errors import RunError, TrainingError
from compress.kernels.grid import storable
from compress.recipe.distill import Distill
from compress.results import Limits
from compress.stages import distill, keeping, moving, training
from compress.stages.lessons import Order
from compress.student import HEAD
from compress.teacher.folder import open_folder


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_cut_student_comes_nearer_to_its_teacher_in_its_own_shape(tiny_model, tmp_path, kind):
    teacher = open_folder(tiny_model("llama", tied=True))
    student, _ = cut(teacher, tmp_path, ffn=0.5, repair=False)
    shapes = dict(student.anatomy.tensors)
    found = teach(student, tmp_path, learning_rate=3e-3, loss={"kind": kind}).distilled
    assert student.anatomy.tensors == shapes
    assert found.kl_after < 0.9 * found.kl_before
    assert found.kl_after == pytest.approx(kl(student), rel=1e-4)
    assert [check.step for check in found.checks] == [0, 4, 8, 12]
    assert found.checks[0].kl == pytest.approx(found.kl_before, rel=1e-3)
    assert found.kept_step == min(found.checks, key=lambda check: check.kl).step
    assert (found.tokens, found.read_tokens, found.held_out_tokens) == (256, 768, 128)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_low_rank_corrections_are_merged_into_linears_and_all_else_stays(
    tiny_model, tmp_path, family
):
    pytest.importorskip("peft")
    student, _ = cut(open_folder(tiny_model(family, tied=True)), tmp_path, ffn=0.5, repair=False)
    before = student.outside() | student.block(0)
    fields = {"learning_rate": 3e-3, "lora": {"rank": 4, "alpha": 8}}
    found = teach(student, tmp_path, train="lora", **fields).distilled
    assert found.kl_after < 0.95 * found.kl_before
    assert found.kl_after == pytest.approx(kl(student), rel=1e-4)
    linears = {linear.name: linear for linear in student.anatomy.blocks[0].linears}
    for name, now in (student.outside() | student.block(0)).items():
        if name.removesuffix(".weight") in linears:
            assert torch.linalg.matrix_rank(now - before[name], rtol=1e-4) == 4
        else:
            assert torch.equal(now, before[name])
    sides = [x.in_features + x.out_features for x in student.anatomy.linears]
    assert found.learned_weights == 4 * sum(sides)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pruned_weights_stay_zero_and_all_others_stay(tiny_model, tmp_path, family):
    student = pruned_student(tiny_model(family, tied=True), tmp_path)
    before = [student.block(index) for index in range(2)]
    counts = dict(student.kept)
    found = teach(student, tmp_path, learning_rate=3e-3, weight_decay=0.1).distilled
    assert found.kl_after < found.kl_before
    for index, was in enumerate(before):
        now = student.block(index)
        for linear in student.anatomy.blocks[index].linears:
            name = f"{linear.name}.weight"
            assert torch.equal(now[name] != 0, was[name] != 0)
            assert not torch.equal(now[name], was[name])
    assert student.kept == counts
    assert torch.equal(states(student.base), states(student))  # what later stages hold to


@pytest.mark.parametrize(
    ("family", "fields"),
    [("llama", {"head": 8}), ("gpt2", {}), ("opt", {"sym": False}), ("qwen2", {"bits": 3})],
)
def test_scales_and_norms_learn_and_integers_stay(tiny_model, tmp_path, family, fields):
    teacher = tiny_model(family, tied=True)
    student, _ = run(teacher, tmp_path, **{"method": "rtn", "bits": 4, **fields})
    units = [HEAD, 0, 1]
    names = [name for unit in units for name in student.coded(unit)]
    before = {name: student.rounded(name) for name in names}
    stored = [student.block(index) for index in range(2)]
    found = teach(student, tmp_path, train="scales_and_norms", learning_rate=1e-2).distilled
    assert found.kl_after < found.kl_before
    assert found.kl_after == pytest.approx(kl(student), rel=1e-4)
    moved = 0
    for name, was in before.items():
        now = student.rounded(name)
        assert torch.equal(now.codes, was.codes)
        assert torch.equal(now.zero, was.zero)
        assert torch.equal(storable(now.scale), now.scale)
        moved += int((now.scale != was.scale).sum())
    assert moved > 0
    for index, was in enumerate(stored):
        for name, tensor in student.block(index).items():
            frozen = name.endswith(".bias") and "norm" not in name and "ln_" not in name
            if frozen:
                assert torch.equal(tensor, was[name])


@pytest.mark.parametrize("train", ["scales_and_norms", "codes"])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_embedding_and_head_learn_beside_codes_where_they_are_asked_to(
    tiny_model, tmp_path, family, tied, train
):
    folder, found, ends = tiny_model(family, tied=tied), {}, {}
    for rate in (None, 5e-4):
        out = tmp_path / str(rate)
        student, _ = run(folder, out, method="rtn", bits=3)
        before = student.outside()
        fields = {"train": train, "embedding_learning_rate": rate}
        found[rate] = teach(student, out, **fields).distilled
        assert found[rate].kl_after == pytest.approx(kl(student), rel=1e-4)
        now = student.outside()
        ends[rate] = {n for n, was in before.items() if not torch.equal(now[n], was)}
    names = {f"{student.anatomy.embedding}.weight"}
    names |= set() if tied else {f"{student.anatomy.head.name}.weight"}
    assert ends[5e-4] - ends[None] == names
    assert found[5e-4].kl_after < found[None].kl_after
    shown = {rate: [look.learning_rate for look in found[rate].checks] for rate in found}
    assert shown[5e-4] == shown[None]  # learning_rate, not that of embeddings
    learned = found[5e-4].learned_weights - found[None].learned_weights
    assert learned == sum(before[name].numel() for name in names)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"head": 8, "bits": 3, "method": "gptq"}),
        ("gpt2", {"bits": 2}),
        ("opt", {"sym": False, "bits": 3}),
        ("qwen2", {"bits": 3, "method": "gptq", "group_size": -1}),
    ],
)
def test_codes_learn_on_their_grids_and_a_head_keeps_its_own(tiny_model, tmp_path, family, fields):
    teacher = tiny_model(family, tied=True)
    student, _ = run(teacher, tmp_path, **{"method": "rtn", **fields})
    before = rounded_of(student)
    found = teach(student, tmp_path, train="codes", learning_rate=0.03).distilled
    assert found.kl_after < 0.9 * found.kl_before
    assert found.kl_after == pytest.approx(kl(student), rel=1e-4)
    now = rounded_of(student)
    assert now.keys() == before.keys()
    for name, was in before.items():
        assert torch.equal(now[name].zero, was.zero)
        assert torch.equal(storable(now[name].scale), now[name].scale)
        assert int(now[name].codes.max()) < 2**was.bits
        assert (now[name].bits, now[name].group_size) == (was.bits, was.group_size)
    changed = {n: int((now[n].codes != was.codes).sum()) for n, was in before.items()}
    assert found.changed_codes == sum(changed.values()) > 0
    assert not changed.get(student.anatomy.embedding)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("train", ["scales_and_norms", "codes"])
def test_linears_that_round_their_inputs_learn_with_inputs_rounded(
    tiny_model, tmp_path, family, train
):
    student, _ = run(tiny_model(family), tmp_path, method="w8a8", group_size=-1)
    inputs = {name: matrix.inputs for name, matrix in rounded_of(student).items()}
    fields = {"learning_rate": 0.02} if train == "codes" else {}
    found = teach(student, tmp_path, train=train, **fields).distilled
    assert found.kl_after < found.kl_before
    assert found.kl_after == pytest.approx(kl(student), rel=1e-3)
    assert found.checks[0].kl == pytest.approx(found.kl_before, rel=1e-2)
    assert {name: matrix.inputs for name, matrix in rounded_of(student).items()} == inputs


def rounded_of(student):
    names = [name for unit in (HEAD, 0, 1) for name in student.coded(unit)]
    return {name: student.rounded(name) for name in names}


def test_codes_that_learn_nothing_stay(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="gptq", bits=3)
    before = rounded_of(student)
    rates = {"learning_rate": 1e-6, "scale_learning_rate": 1e-2}
    found = teach(student, tmp_path, train="codes", **rates).distilled
    assert found.kl_after < found.kl_before
    assert found.changed_codes == 0
    assert all(torch.equal(now.codes, before[n].codes) for n, now in rounded_of(student).items())


def test_codes_reach_lower_than_scales_alone(tiny_llama, tmp_path):
    found = []
    for train in ("scales_and_norms", "codes"):
        student, _ = run(tiny_llama, tmp_path / train, method="gptq", bits=2)
        found.append(teach(student, tmp_path / train, train=train, steps=20).distilled)
    assert found[1].kl_after < found[0].kl_after < found[0].kl_before


@pytest.mark.parametrize("pattern", [{"sparsity": 0.5}, {"sparsity": None, "pattern": "2:4"}])
def test_pruned_codes_stay_pruned_while_others_learn(tiny_llama, tmp_path, pattern):
    rounding = {"bits": 4, "group_size": 32, "sym": False}
    fields = {"method": "sparsegpt", **pattern, "quantize": rounding}
    student = pruned_student(tiny_llama, tmp_path, **fields)
    before, counts = rounded_of(student), dict(student.kept)
    found = teach(student, tmp_path, train="codes", learning_rate=0.03).distilled
    assert found.kl_after < found.kl_before
    assert found.changed_codes > 0
    assert student.kept == counts
    for name, now in rounded_of(student).items():
        gone = before[name].dequantize() == 0
        assert not now.dequantize()[gone].any()


def test_a_step_is_the_same_however_it_is_cut_into_passes(tiny_llama, tmp_path):
    found = []
    for room in (1 << 30, 40_000, 1):  # whole, a window at a time, blocks computed again
        student = pruned_student(tiny_llama, tmp_path / str(room))
        context = {"limits": Limits(64, room)}
        teach(student, tmp_path / str(room), context=context, steps=2, learning_rate=1e-3)
        found.append(states(student))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)


def test_every_group_of_weights_rises_to_its_own_peak_and_falls_by_the_same_share():
    groups = [{"params": [torch.ones(1, requires_grad=True)], "lr": rate} for rate in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    spec = Distill(text={"set": "smoke"}, warmup=0.1, final_rate=0.2)
    schedule, found = moving.schedule(optimizer, spec, 20), []
    for _ in range(21):
        found.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    first, second = zip(*found, strict=True)
    assert first[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert list(first[2:]) == sorted(first[2:], reverse=True)
    assert (first[11], first[20]) == (pytest.approx(0.6), pytest.approx(0.2))
    assert second == pytest.approx([rate / 10 for rate in first])


def test_every_window_is_read_once_an_epoch():
    order = Order(10, 4, seed=3)
    read = [window for step in range(5) for window in order.of(step)]
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10] != read[10:]
    assert read == [window for step in range(5) for window in Order(10, 4, seed=3).of(step)]


def started(train, folder, scratch):
    """A student that the stage before has finished."""
    if train != "codes":
        return pruned_student(folder, scratch)
    return run(folder, scratch, method="gptq", bits=3)[0]


@pytest.mark.parametrize(
    ("train", "at"),
    [("all", 1), ("all", 5), ("all", 8), ("all", 11), ("lora", 5), ("codes", 1), ("codes", 9)],
)
def test_a_run_that_is_cut_at_any_step_ends_in_the_same_bits(
    tiny_llama, tmp_path, monkeypatch, train, at
):
    whole, rate = (
        started(train, tiny_llama, tmp_path / "whole"),
        {"all": 1e-4, "lora": 1e-3, "codes": 0.03},
    )
    fields = {"train": train, "learning_rate": rate[train]}
    expected = teach(whole, tmp_path / "whole", **fields)
    started(train, tiny_llama, tmp_path / "cut")
    with cut_before(at, monkeypatch):
        teach(again(tiny_llama, tmp_path / "cut"), tmp_path / "cut", **fields)
    torch.manual_seed(7)  # the process that goes on has drawn other numbers
    student = again(tiny_llama, tmp_path / "cut")
    assert teach(student, tmp_path / "cut", **fields) == expected
    for index in range(2):
        for name, tensor in whole.block(index).items():
            assert torch.equal(student.block(index)[name], tensor), name
    for name, now in rounded_of(student).items():
        assert torch.equal(now.codes, whole.rounded(name).codes)
        assert torch.equal(now.scale, whole.rounded(name).scale)
    assert all(torch.equal(student.outside()[n], t) for n, t in whole.outside().items())
    assert not list((tmp_path / "cut").glob("*moments*"))


def test_a_finished_stage_is_taken_up_as_it_is(tiny_llama, tmp_path, monkeypatch):
    student = pruned_student(tiny_llama, tmp_path)
    expected = teach(student, tmp_path)
    monkeypatch.setattr(distill, "_taught", None)  # nothing is trained again
    later = again(tiny_llama, tmp_path)
    assert teach(later, tmp_path) == expected
    assert torch.equal(states(later), states(student))


def test_a_loss_that_is_no_number_ends_the_run_with_the_best_state_kept(
    tiny_llama, tmp_path, monkeypatch
):
    student, real = pruned_student(tiny_llama, tmp_path), training.Training._backward
    before = states(student)

    def backward(self, lesson, share):
        factor = float("nan") if self.checks[-1].step == 4 else 1
        return real(self, dataclasses.replace(lesson, said=lesson.said * factor), share)

    monkeypatch.setattr(training.Training, "_backward", backward)
    with pytest.raises(TrainingError, match=r"step 5: the loss is nan.*of step 4 \(held-out KL"):
        teach(student, tmp_path, learning_rate=3e-3)
    assert list(tmp_path.glob("stage-1-training-weights-4.safetensors"))
    assert torch.equal(states(student), before)
    assert TrainingError.exit_code == 1


def test_a_training_that_diverges_is_stopped(tiny_llama, tmp_path):
    student = pruned_student(tiny_llama, tmp_path)
    with pytest.raises(TrainingError, match=r"held-out KL went from .* Lower learning_rate"):
        teach(student, tmp_path, learning_rate=3.0, warmup=0.0)
    with pytest.raises(TrainingError, match=r"No state was better than the first \(held-out KL"):
        teach(
            pruned_student(tiny_llama, tmp_path / "b"),
            tmp_path / "b",
            learning_rate=3.0,
            warmup=0.0,
        )


def test_a_student_that_gains_nothing_stays_as_it_was(tiny_llama, tmp_path, caplog):
    student = pruned_student(tiny_llama, tmp_path)
    before = states(student)
    # a teacher that is noise says nothing of one text that helps with another
    dice = tokens.whole(torch.randint(0, 256, (24, 16), generator=GENERATOR), source="dice")
    fields = {"learning_rate": 0.02, "patience": 1, "warmup": 0.0}
    found = teach(student, tmp_path, context={"text": dice}, **fields).distilled
    assert (found.kept_step, found.stopped, len(found.checks)) == (0, "patience", 2)
    assert found.kl_after == found.kl_before
    assert torch.equal(states(student), before)
    assert "won nothing: no look at held-out text was better than the first" in caplog.text
    assert "Lower learning_rate" in caplog.text


def test_a_gain_that_is_lost_as_it_is_stored_is_told(tiny_llama, tmp_path, caplog, monkeypatch):
    stored = iter([0.25, 0.5])
    monkeypatch.setattr(distill, "_held_out", lambda *_: next(stored))
    found = teach(pruned_student(tiny_llama, tmp_path), tmp_path).distilled
    assert found.kept_step
    assert "its held-out KL of 0.5 nats is 0.25 more than before" in caplog.text
    assert "Raise learning_rate" in caplog.text


def test_a_gain_is_not_warned_of(tiny_llama, tmp_path, caplog):
    teach(pruned_student(tiny_llama, tmp_path), tmp_path)
    assert "won nothing" not in caplog.text


def test_steps_are_told_with_loss_and_held_out_kl(tiny_llama, tmp_path):
    student, told = pruned_student(tiny_llama, tmp_path), []
    teach(student, tmp_path, context={"watch": told.append}, steps=2)
    steps = [record for record in told if record.unit == "step"]
    assert [(record.done, record.total) for record in steps] == [(1, 2), (2, 2)]
    assert "loss " in steps[0].detail
    assert "held-out KL " in steps[0].detail


def test_what_is_told_can_be_written_and_read(tiny_llama, tmp_path):
    found = teach(pruned_student(tiny_llama, tmp_path), tmp_path, steps=1).distilled
    assert json.loads(json.dumps(dataclasses.asdict(found)))["asked"] == "forward kl"


def test_a_text_that_is_read_again_and_again_is_warned_of(tiny_llama, tmp_path, caplog):
    student = pruned_student(tiny_llama, tmp_path)
    teach(student, tmp_path, steps=1)
    assert "learned by heart" not in caplog.text
    again = pruned_student(tiny_llama, tmp_path / "again")
    teach(again, tmp_path / "again", steps=30)
    assert "times: a text read more than 4 times is learned by heart" in caplog.text


def test_a_text_that_is_too_little_is_warned_of_with_the_numbers(tiny_llama, tmp_path, caplog):
    found = teach(pruned_student(tiny_llama, tmp_path), tmp_path, steps=1).distilled
    learned = f"{found.learned_weights:,} numbers learn from 256 tokens: less than 16,384"
    assert learned in caplog.text
    assert "128 tokens are held out: less than 1,024" in caplog.text


def test_a_held_out_text_that_is_trained_on_is_no_test_and_is_told(tiny_llama, tmp_path, caplog):
    window = torch.randint(0, 256, (1, 16), generator=GENERATOR)
    same = tokens.whole(window.expand(24, 16).contiguous(), source="same")
    teach(pruned_student(tiny_llama, tmp_path), tmp_path, context={"text": same}, steps=1)
    assert "8 of 8 held-out windows are trained on, too" in caplog.text


def test_whoever_does_not_write_a_state_does_not_hold_it(tiny_llama, tmp_path, monkeypatch):
    held, real = [], keeping.State.tensors

    def tensors(self, *, kept=True):
        held.append(real(self, kept=False))
        return real(self, kept=kept)

    monkeypatch.setattr(keeping.State, "tensors", tensors)
    teach(pruned_student(tiny_llama, tmp_path), tmp_path, steps=1)
    assert held == [({}, {})]


def test_the_course_of_a_training_is_drawn_in_a_line():
    assert training.curve([4.0, 3.0, 2.0, 0.5]) == "█▆▄▁"
    assert training.curve([1.0, 1.0]) == "▁▁"
    assert training.curve(list(range(40))) == training.curve(list(range(24, 40)))
    assert training.curve([1.0]) == training.curve([]) == training.curve([1.0, math.inf]) == ""


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_shards_of_a_launcher_are_refused(monkeypatch, tiny_llama, tmp_path, kind):
    import accelerate

    class Launched:
        def __init__(self, **_):
            self.distributed_type = accelerate.DistributedType(kind)
            self.num_processes = 1

    monkeypatch.setattr(accelerate, "Accelerator", Launched)
    student = pruned_student(tiny_llama, tmp_path)
    with pytest.raises(RunError, match=f"launched with {kind}, .* give compress apply --shard"):
        teach(student, tmp_path)
