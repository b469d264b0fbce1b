"""What the best merge scores at smaller ranks, and folded into the base."""

import functools
import logging

from langmerge_jax.adapters import Adapter
from langmerge_jax.files import read_json, write_json
from langmerge_jax.lifecycle.merging import merged, of_languages, trained
from langmerge_jax.lifecycle.prediction import Answerer, predict, run_inputs
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.scores import Scorer
from langmerge_jax.lifecycle.stages import digest
from langmerge_jax.lifecycle.update import live_recipe
from langmerge_jax.lifecycle.variants import Variant
from langmerge_jax.merging.truncate import dense, highest_rank, truncate

logger = logging.getLogger(__name__)

SHARES = (0.75, 0.5, 0.25)


def score_ranks(run: Run) -> None:
    """Evaluates the live recipe at its exact rank, at parts of it, and folded into the weights.

    A full-rank merge is truncated to parts of the sum of the adapters' ranks, as many as the exact
    merge in another space would have. Writes `ranks.json`: {inputs, rows}, with rows {recipe, form,
    rank (None: folded), energy, language, metric, value, n, low, high}.
    """
    recipe = live_recipe(run)
    spec = of_languages(run, recipe)
    path, wanted = run.home / "ranks.json", spec.inputs(run) | run_inputs(run, "test")
    wanted = digest(wanted)
    if path.exists() and read_json(path)["inputs"] == wanted:
        logger.info("scores by rank there already, skipped: %s", recipe.name)
        return
    whole = merged(run, spec)
    exact = highest_rank(whole) if isinstance(whole, Adapter) else None
    full = exact or sum(highest_rank(trained(run, language)) for language in run.languages)
    folded = dense(whole) if isinstance(whole, Adapter) else whole
    inputs = spec.inputs(run)
    forms = {"folded": (None, 1.0, Variant(inputs | {"form": "folded"}, lambda: folded))}
    if exact:
        forms["exact"] = (exact, 1.0, Variant(inputs, lambda: whole))
    for share in SHARES if exact else (1.0, *SHARES):
        rank = max(1, round(share * full))
        cut, energy = truncate(whole, rank)
        variant = Variant(inputs | {"rank": rank}, functools.partial(lambda x: x, cut))
        forms[f"rank-{rank}"] = (rank, energy, variant)
    predict(run, Answerer(run), {_name(recipe.name, f): x[2] for f, x in forms.items()})
    rows = []
    for form, (rank, energy, _) in forms.items():
        scored = Scorer(run).read(dict.fromkeys(run.languages, _name(recipe.name, form)))
        for language, some in scored.items():
            head = {"recipe": recipe.name, "form": form, "rank": rank, "energy": energy}
            rows += [head | {"language": language} | row for row in some.rows()]
    write_json(path, {"inputs": wanted, "rows": rows})


def _name(recipe: str, form: str) -> str:
    return recipe if form == "exact" else f"{recipe}-{form}"
