"""Many recipes under one budget: planned before any runs, run beside each other, one chosen.

candidates.py  every trial loaded, planned, checked, named by its content, put in order
worker.py      one trial: an ordinary `apply` in a worker's process, and a record of it
tuned.py       Ray Tune and Optuna: who runs when, and again when killed
cluster.py     Ray, running: a cluster's, or this machine's own
budget.py      who keeps the budget, who is best, what a sampler is told
board.py       every trial as it stands, for whoever watches
run.py         all of it: `plan`, then `sweep`
"""

from compress.sweep.run import Ready, check_folder, plan, sweep

__all__ = ["Ready", "check_folder", "plan", "sweep"]
