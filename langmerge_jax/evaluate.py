"""Scores base, individual, combined and merged variants of a run on every language.

  python -m langmerge_jax.evaluate --config=configs/demo.py --workdir=runs/demo

writes predictions/, scores.json, scores.csv and scores.md under the workdir and prints the table.
Needs the adapters of all languages (the train door); `combined` joins if it has been trained.
--variants=base,ties@0.5 answers with these alone. --predictions=FILE scores outputs that another
program made to the rows of test/<language>.jsonl, without a model. --dry_run shows what would be
asked.
"""

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

cli.define_flags()
_VARIANTS = flags.DEFINE_list(
    "variants", [], "Rows of the score table, such as base,combined,individual,ties@0.5; or all."
)
_PREDICTIONS = flags.DEFINE_string(
    "predictions",
    None,
    "Outputs to score beside those of the run: a file (jsonl, csv, parquet; {language} where each "
    "has its own) of rows with id and output, and language where they share it.",
)

_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Show prompts, lengths and labels of the test rows, and stop."
)


def main() -> None:
    config, workdir = cli.config_and_workdir()
    if _VARIANTS.value and _PREDICTIONS.value:
        raise InputError("--predictions scores without a model; leave --variants out")
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.experiment import evaluate_and_report, score_and_report
    from langmerge_jax.lifecycle.preview import preview
    from langmerge_jax.lifecycle.run import Run

    run = Run(config, workdir, claim=not _DRY_RUN.value)
    if _DRY_RUN.value:
        print(preview(run, "test"))
        return
    if _PREDICTIONS.value:
        print(score_and_report(run, _PREDICTIONS.value))
    else:
        print(evaluate_and_report(run, _VARIANTS.value))
    print(f"results: {workdir}")


if __name__ == "__main__":
    cli.run(
        main,
        too_much="lower evaluate.batch_size or evaluate.variants_at_once, or spread the model over "
        f"more devices (mesh.fsdp, mesh.tensor); {cli.PLAN}",
    )
