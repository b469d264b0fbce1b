"""The training stage: adapters of single languages in one program, or one of all together."""

import logging

from langmerge_jax.adapters import save_adapter
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.training.loop import train

logger = logging.getLogger(__name__)


def train_adapters(run: Run, *, combined: bool) -> None:
    """Trains the adapters that are not there yet and writes them in PEFT format.

    Args:
      combined: train the one adapter `combined` on the rows of all languages instead of one
        adapter a language.
    """
    names = [COMBINED] if combined else list(run.config.languages)
    missing = [name for name in names if not run.adapter_directory(name).exists()]
    done = [name for name in names if name not in missing]
    if done:
        logger.info("adapters there already, skipped: %s", ", ".join(done))
    if not missing:
        return

    # Rows before weights: a bad line should be known before gigabytes are read.
    languages = run.config.languages if combined else missing
    examples = {language: run.examples(language, "train") for language in languages}
    encoded = {
        language: run.task.encode(run.base.tokenizer, rows) for language, rows in examples.items()
    }
    data = {COMBINED: [row for rows in encoded.values() for row in rows]} if combined else encoded
    log = run.workdir / "logs" / f"train_{COMBINED if combined else 'individual'}.jsonl"
    log.parent.mkdir(exist_ok=True)
    for name, adapter in train(run.base, data, run.train_settings(), log).items():
        save_adapter(run.adapter_directory(name), adapter)
        logger.info("adapter written: %s", run.adapter_directory(name))
