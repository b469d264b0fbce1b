"""A run over a random base and a few rows, without a training."""

import pytest

from langmerge_jax.config import default
from langmerge_jax.files import write_jsonl
from langmerge_jax.lifecycle.run import Run

LABELS = ("positive", "neutral", "negative")


@pytest.fixture
def make_run(tmp_path, tiny_config, make_base):
    """Makes a run over a random base, with 20 rows of English and of Japanese."""
    base = make_base(tiny_config)
    for language, text in (("en", "The screen is good"), ("ja", "画面は良いです")):
        rows = [
            {"id": str(i), "text": f"{text} {'x' * (7 * i % 23)} {i}", "label": LABELS[i % 3]}
            for i in range(20)
        ]
        folder = tmp_path / "data" / language
        folder.mkdir(parents=True)
        write_jsonl(folder / "test.jsonl", rows)

    def make(name="work", **settings):
        config = default()
        config.base, config.dtype = str(base), "float32"
        config.languages = ("en", "ja")
        config.task.template = "{text}\nMood?"
        config.data.path = str(tmp_path / "data" / "{language}" / "{split}.jsonl")
        config.data.language_field = ""
        config.data.rows.test = 0
        config.train.buckets = (64, 96)
        config.evaluate.batch_size = 8
        config.update_from_flattened_dict(settings)
        return Run(config.lock(), tmp_path / name)

    return make
