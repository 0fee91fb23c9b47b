"""Real processes that share work over gloo, and what one process finds without others."""

import os
import socket
from functools import partial

import torch
from students import IDS
from torch.multiprocessing import start_processes

from compress.calibrate import tokens
from compress.journal import Journal
from compress.recipe.distill import Distill
from compress.recipe.prune import Prune
from compress.recipe.schema import Quantize
from compress.results import Limits
from compress.stages import blockwise, distill, prune, quantize, team, training
from compress.stages.context import Context
from compress.stages.drift import Sinks
from compress.student import Student
from compress.surgery.walk import hidden_states
from compress.teacher.folder import open_folder

ROWS = torch.randint(0, 256, (15, 16), generator=torch.Generator().manual_seed(1))
TEXT = tokens.whole(torch.cat([ROWS, ROWS[:7]]), source="dice")  # what is held out was read
LEARNING = {
    "held_out": 7, "batch_tokens": 80, "steps": 6, "check_every": 2, "patience": None,
    "learning_rate": 3e-3,
}  # fmt: skip
CASES = {  # stages that share their work; windows are odd in number, so that shares are not alike
    "gptq": [(quantize, Quantize(bits=8, group_size=32, head=8, error_correction=0.5))],
    "output curvature": [(quantize, Quantize(bits=8, group_size=32, output_curvature=True))],
    "learned rounding": [
        (quantize, Quantize(bits=8, group_size=32, error_correction=0.5, output_curvature=True,
                            learned_rounding=4)),
    ],
    "awq": [(quantize, Quantize(method="rtn", bits=8, group_size=32, smooth="awq"))],
    "sparsegpt": [(prune, Prune(method="sparsegpt", sparsity=0.5))],
    "distill": [
        (prune, Prune(method="wanda", sparsity=0.5)),
        (distill, Distill(weight_decay=0.1, **LEARNING)),
    ],
    "shards": [
        (prune, Prune(method="wanda", sparsity=0.5)),
        (distill, Distill(weight_decay=0.1, **LEARNING)),
    ],
    "shards, hidden states": [
        (prune, Prune(method="wanda", sparsity=0.5)),
        (distill, Distill(loss={"hidden": {"weight": 0.5}}, **LEARNING)),
    ],
    "shards, lora": [
        (prune, Prune(method="wanda", sparsity=0.5)),
        (distill, Distill(train="lora", **LEARNING)),
    ],
    "codes": [
        (quantize, Quantize(bits=3, group_size=32)),
        (distill, Distill(train="codes", **LEARNING)),
    ],
}  # fmt: skip


WALKS = {"in order": {"true_sequential": True}, "at once": {"true_sequential": False},
         "corrected": {"true_sequential": True, "correction": 0.5}}  # fmt: skip


def begin(among, folder, scratch):
    """A student of one run, and what its stages are given."""
    scratch.mkdir(exist_ok=True)
    among._heard.clear()  # of another journal
    journal = None if among.rank else Journal(scratch / "journal.jsonl", {})
    among.hear_of(among.first(lambda: {unit: journal.get(unit) for unit in journal.finished}))
    ledger = among.ledger(journal)
    student = Student(open_folder(folder), scratch, ledger)
    said = partial(hidden_states, student.teacher, device="cpu", dtype=torch.float32)
    return student, Context(
        IDS[:7], "cpu", torch.float32, scratch, limits=Limits(64, 1 << 30), ledger=ledger,
        text=TEXT, team=among, said=said,
    )  # fmt: skip


def staged(among, folder, scratch, case):
    """What the stages of a case tell, and the student behind them."""
    student, context = begin(among, folder, scratch)
    results = []
    among.sharded = among.size > 1 and case.startswith("shards")
    with among.together():
        for number, (stage, spec) in enumerate(CASES[case]):
            student.enter(number)
            results.append(stage.run(student, spec, context))
    return {"results": results, "tensors": tensors(student)}


def shown(among, folder, scratch, walk):
    """Hessian, peaks and lacks of every group of linears, which become smaller: no rounding."""
    student, context = begin(among, folder, scratch)
    seen = []

    def solve(group, weights, hessian, peaks, lacks):
        seen.append([hessian.clone(), peaks.clone(), *lacks.values()])
        return {name: weight.float() * 0.9 for name, weight in weights.items()}, []

    with among.together():
        _, final = blockwise.solve_blocks(
            student, context, solve, wanted=lambda _: True, sinks=Sinks(2, 8.0), step="walk",
            finish=partial(prune._apart, student.anatomy), **WALKS[walk],
        )  # fmt: skip
        states = final()
    return {"seen": seen, "states": states}


def cut_short(among, folder, scratch, case, at):
    """A case that every process ends before a step, and begins again."""
    real = training.Training._step

    def step(self, number):
        if number == at:
            raise KeyboardInterrupt
        return real(self, number)

    training.Training._step = step
    try:
        staged(among, folder, scratch, case)
    except KeyboardInterrupt:
        among._in_step = False
    finally:
        training.Training._step = real
    return staged(among, folder, scratch, case)


def tensors(student):
    """All of a student, dense."""
    blocks = [student.block(block.index) for block in student.anatomy.blocks]
    return {name: tensor for part in (student.outside(), *blocks) for name, tensor in part.items()}


def everything(among, folder, scratch):
    """Of all walks and cases."""
    walks = {walk: shown(among, folder, scratch / walk, walk) for walk in WALKS}
    found = {case: staged(among, folder, scratch / case, case) for case in CASES}
    found["shards, cut"] = cut_short(among, folder, scratch / "cut", "shards", 3)
    return walks, found


def in_processes(size, folder, scratch):
    """What each of several processes finds, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_process, (size, port, folder, scratch), nprocs=size, start_method="spawn")
    return [torch.load(scratch / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _process(rank, size, port, folder, scratch):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    among = team.found("cpu", None)
    torch.save(everything(among, folder, scratch), scratch / f"{rank}.pt")
