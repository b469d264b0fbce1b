r"""Real rows: what the demo does, on texts and labels that people have written.

  python -m langmerge_jax.experiment --config=configs/realdata_sentiment.py \
      --config.data.path='DIR/{language}/*.csv'

DIR is `data/` of tyqiangz/multilingual-sentiment-datasets on GitHub: english, german and french
hold tweets, japanese and chinese product reviews, in CSV files with the columns text and label.
All rows of a language are shared out anew. A Llama of 0.9 million parameters reads the texts of
training and instruct rows, is tuned on the instruct rows, and the paper's procedure runs on the
rest. About sixteen minutes on two cores, a combined macro F1 of about 0.52, which is less than the
0.61 of character n-grams: it cannot judge merging, and says so (docs/realdata.md).
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

    # Where the rows lie is for the command to say.
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

    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.train.epochs = 3
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
        # Few texts: small batches take more steps over them.
        "batch_size": 12,
        "learning_rate": 2e-3,
        "pretrain_epochs": 5,
        "instruct_epochs": 3,
        "instruct_batch_size": 16,
        "instruct_learning_rate": 1e-3,
        "buckets": (32, 64, 96),
        "checkpoint_steps": 200,
        "seed": 0,
    }
    return config
