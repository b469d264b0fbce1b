"""Scores base, individual, combined and merged variants of a run on every language.

  python -m langmerge_jax.evaluate --config=configs/demo.py --workdir=runs/demo

writes predictions/, scores.json, scores.csv and scores.md under the workdir and prints the table.
Needs the adapters of all languages (the train door); `combined` joins if it has been trained.
"""

from langmerge_jax import cli

cli.define_flags()


def main() -> None:
    config, workdir = cli.config_and_workdir()
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.experiment import evaluate_and_report
    from langmerge_jax.lifecycle.run import Run

    print(evaluate_and_report(Run(config, workdir)))
    print(f"results: {workdir}")


if __name__ == "__main__":
    cli.run(main)
