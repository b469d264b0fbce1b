"""Trains one LoRA adapter a language, all in one program over one frozen base.

  python -m langmerge_jax.train --config=configs/sentiment_en.py

writes runs/sentiment_en/adapters/en in PEFT format. With --config.combined=True one adapter,
`combined`, is trained on the rows of all languages together. Adapters that are there already are
skipped.
"""

from langmerge_jax import cli

cli.define_flags()


def main() -> None:
    config, workdir = cli.config_and_workdir()
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.run import Run
    from langmerge_jax.lifecycle.training import train_adapters

    run = Run(config, workdir)
    train_adapters(run, combined=config.combined)
    print(f"adapters: {run.workdir / 'adapters'}")


if __name__ == "__main__":
    cli.run(main)
