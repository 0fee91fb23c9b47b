"""Ray Tune and Optuna: Tune decides who runs when, and begins again what was killed.

A trial that fails says so in its report; what Tune sees fail is a process that was ended.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from compress.errors import CompressError, RequestError, RunError
from compress.recipe.sweep import Dimension, Sweep
from compress.results import Progress
from compress.results.swept import Trial
from compress.sweep import worker
from compress.sweep.board import Board
from compress.sweep.budget import WORST, score
from compress.sweep.candidates import Candidate, Point
from compress.sweep.cluster import QUIET, Crew, environment, last_line, running
from compress.sweep.work import Work
from compress.sweep.worker import Order

RESTARTS = 3  # of a trial whose process is killed
_TOLD_SECONDS = 2.0  # between two reports of progress; each is a round trip to the driver
_RECIPE = "recipe"  # what a search calls the choice of a recipe; fields have a dot


def check_installed() -> None:
    """Check that Ray Tune and Optuna are there.

    Raises:
        RequestError: they are not.
    """
    try:
        with environment(QUIET):
            import optuna
            import ray.tune  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"compress sweep needs ray and optuna ({error}). Install them: pip install "
            "'compress-llm[sweep]'.",
            section="sweep",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def run(
    order: Order,
    work: Work,
    board: Board,
    crew: Crew,
    watch: Callable[[str], None],
) -> None:
    """Run trials until none is left, or the time is over.

    Args:
        order: of the sweep.
        work: what is left to do.
        board: where it is noted what becomes of them.
        crew: who runs them.
        watch: told the name of each trial of which something is new.

    Raises:
        RequestError: there is no such cluster.
        RunError: Ray has failed.
    """
    import ray
    from ray import tune

    sweep, todo = order.located.sweep, work.todo
    storage = order.out / ".tune"
    shutil.rmtree(storage, ignore_errors=True)
    need = {"cpu": float(sweep.threads), **({"gpu": 1.0} if order.device == "cuda" else {})}
    space = {"trial": tune.grid_search(list(range(len(todo))))} if todo else None
    with running(crew, sweep.threads):
        tuner = tune.Tuner(
            tune.with_resources(partial(_work, order=order, todo=todo), need),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=None if todo else _search(sweep, work),
                num_samples=1 if todo else work.left,
                max_concurrent_trials=crew.workers,
                time_budget_s=crew.seconds,
                reuse_actors=True,  # to begin a process, and Ray in it, takes seconds
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(storage),
                verbose=0,
                callbacks=[_listener(order, todo, board, watch)],
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
            ),
        )
        try:
            tuner.fit()
        except (tune.TuneError, ray.exceptions.RayError) as error:
            raise RunError(f"Ray Tune has failed: {last_line(error)}") from error
    shutil.rmtree(storage, ignore_errors=True)


def _work(config: Mapping[str, Any], order: Order, todo: Sequence[Candidate]) -> None:
    """One trial, in a worker: what Ray Tune calls."""
    from ray import tune

    what = _what(order, todo, config)
    sweep = order.located.sweep
    try:
        trial = worker.carry_out(order, what, _Teller())
    except CompressError as error:
        told = what.trial if isinstance(what, Candidate) else worker.unplanned(what)
        trial = replace(told, state="failed", reason=" ".join(str(error).split()))
    tune.report({"trial": asdict(trial), "score": score(trial, sweep.objective, sweep.budget)})


def _what(order: Order, todo: Sequence[Candidate], config: Mapping[str, Any]) -> Candidate | Point:
    """What one of Tune's trials is of ours."""
    return todo[config["trial"]] if todo else point(order.located.sweep, config)


class _Teller:
    """Tells the driver of a trial, and of its progress now and then."""

    def __init__(self) -> None:
        self._told, self._step = 0.0, ""

    def __call__(self, news: Trial | Progress) -> None:
        from ray import tune

        if isinstance(news, Trial):
            tune.report({"trial": asdict(news), "score": WORST})  # a sampler reads every report
            return
        now = time.monotonic()
        if news.step != self._step or now - self._told >= _TOLD_SECONDS:
            tune.report({"progress": asdict(news), "score": WORST})
            self._told, self._step = now, news.step


def point(sweep: Sweep, config: Mapping[str, Any]) -> Point:
    """What a sampler has chosen, as values of fields."""
    values = {
        key: json.loads(config[key]) if one.values is not None else config[key]
        for key, one in sweep.search.items()
    }
    return sweep.recipes[int(config.get(_RECIPE, 0))], values


def config(sweep: Sweep, chosen: Point) -> dict[str, Any]:
    """The same as a sampler says it."""
    recipe, values = chosen
    listed = {
        key: json.dumps(values[key]) if one.values is not None else values[key]
        for key, one in sweep.search.items()
    }
    several = {_RECIPE: sweep.recipes.index(recipe)} if len(sweep.recipes) > 1 else {}
    return {**several, **listed}


def _search(sweep: Sweep, work: Work) -> Any:
    """The sampler. One that goes on draws otherwise: it would draw the same again."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    space = {key: _distribution(one) for key, one in sweep.search.items()}
    if len(sweep.recipes) > 1:
        choices = range(len(sweep.recipes))
        space = {_RECIPE: optuna.distributions.CategoricalDistribution(choices), **space}
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    seen = len(work.known) + len(work.begun)
    search = OptunaSearch(
        space=space,
        metric="score",
        mode="min",
        sampler=samplers[sweep.sampler](seed=(sweep.seed + seen) % 2**32),
        points_to_evaluate=[config(sweep, one) for one in work.begun] or None,
    )
    for chosen, value in work.known:
        search.add_evaluated_point(config(sweep, chosen), value)
    return search


def _distribution(one: Dimension) -> Any:
    from optuna import distributions

    if one.values is not None:
        return distributions.CategoricalDistribution([json.dumps(value) for value in one.values])
    low, high = one.ends
    if one.whole:
        return distributions.IntDistribution(int(low), int(high), log=one.log)
    return distributions.FloatDistribution(low, high, log=one.log)


def _listener(
    order: Order, todo: Sequence[Candidate], board: Board, watch: Callable[[str], None]
) -> Any:
    """Notes on the board what Tune hears from trials."""
    from ray import tune

    names: dict[str, str] = {}  # of trials, by Tune's own

    class Listener(tune.Callback):
        """What Tune calls."""

        def __reduce__(self) -> tuple[Any, ...]:
            """Tune saves what it was begun with, which nobody reads: of this, nothing."""
            return tune.Callback, ()

        def __deepcopy__(self, memo: Any) -> Any:
            """Be the same one: it belongs to whoever watches."""
            return self

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **_: Any
        ) -> None:
            """Note what a trial says."""
            if told := result.get("trial"):
                found = Trial(**{**told, "over": tuple(told["over"])})
                names[trial.trial_id] = found.name
                board.show([found])
            elif (told := result.get("progress")) and trial.trial_id in names:
                board.advance(names[trial.trial_id], Progress(**told))
            if trial.trial_id in names:
                watch(names[trial.trial_id])

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            """A process was killed; its trial waits to go on."""
            self._ended(trial, "waiting", "its process was killed; it goes on when its turn comes")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            """A process was killed once too often, or something unforeseen has happened."""
            self._ended(trial, "failed", f"ended {RESTARTS + 1} times: {_told_error(trial)}")

        def _ended(self, trial: Any, state: Any, reason: str) -> None:
            name = names.get(trial.trial_id)
            if name is None:  # it has not even begun
                what = _what(order, todo, trial.config)
                begun = what.trial if isinstance(what, Candidate) else worker.unplanned(what)
            else:
                begun = board.rows[name].trial
            board.show([replace(begun, state=state, reason=reason)])
            watch(begun.name)

    return Listener()


def _told_error(trial: Any) -> str:
    return last_line(trial.get_error() or "its process was killed")
