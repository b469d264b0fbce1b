"""Real rows: everything the demo does, but on texts and labels that people have written.

  python -m langmerge_jax.experiment --config=configs/realdata_sentiment.py \\
      --config.data.path='DIR/{language}/*.csv' --workdir=runs/realdata

DIR is `data/` of tyqiangz/multilingual-sentiment-datasets on GitHub: english, german and french
hold tweets, japanese and chinese product reviews, in CSV files with the columns text and label.
All files of a language are shared out anew, into rows for the base, for training, validation and
test. A Llama of under a million parameters reads the texts of the first two, is tuned to answer on
the first, and then the paper's procedure runs on the rest.
"""

from langmerge_jax.config import default


def get_config():
    config = default()
    config.base = "{workdir}/base"
    config.dtype = "float32"
    config.cpu_devices = 2
    config.adapters_at_once = 1

    config.task.template = "{text}\nSentiment?"
    config.task.max_length = 96

    config.data.path = ""
    config.data.fields = {"text": "text", "target": "label"}
    config.data.language_field = ""
    config.data.names = {
        "en": "english",
        "de": "german",
        "fr": "french",
        "ja": "japanese",
        "zh": "chinese",
    }
    config.data.shares = {"train": 0.45, "validation": 0.1, "test": 0.2, "instruct": 0.25}
    config.data.rows.update({"train": 0, "validation": 0, "test": 0})

    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.train.epochs = 4
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.buckets = (32, 64, 96)
    config.train.remat = "none"
    config.train.checkpoint_steps = 100

    config.merge.tune_lambda = (1.0, 1.5, 2.0, 3.0)
    config.merge.tune_recipes = ("ties@1.0", "ties@0.5", "ties_knots@1.0", "ties_knots@0.5")
    config.evaluate.batch_size = 128
    config.evaluate.baselines = True

    config.demo.base = {
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 256,
        "layers": 3,
        "heads": 4,
        "kv_heads": 1,
        "batch_size": 48,
        "learning_rate": 3e-3,
        "pretrain_epochs": 6,
        "instruct_epochs": 3,
        "instruct_batch_size": 32,
        "instruct_learning_rate": 1.5e-3,
        "buckets": (32, 64, 96),
        "checkpoint_steps": 200,
        "seed": 0,
    }
    return config
