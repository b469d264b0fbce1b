"""The demo's config, shrunk until it runs in half a minute. It learns nothing worth knowing."""

from configs import demo


def get_config():
    config = demo.get_config()
    config.languages = ("en", "ja", "fr")
    # Two side by side, then the third.
    config.adapters_at_once = 2
    config.lora.rank = 2
    config.train.epochs = 1
    config.train.checkpoint_steps = 2
    config.train.buckets = (64,)
    config.merge.tune_lambda = (1.0, 2.0)
    config.merge.tune_recipes = ("ties_knots@1.0", "ties_knots@0.5")
    config.demo.corpus.languages = ("en", "ja", "fr", "es")
    config.demo.corpus.rows = {
        "train": 32,
        "update": 32,
        "validation": 20,
        "test": 40,
        "instruct": 16,
    }
    config.demo.corpus.unlabelled = 100
    config.demo.base.vocab_size = 400
    config.demo.base.hidden_size = 16
    config.demo.base.intermediate_size = 24
    config.demo.base.layers = 2
    config.demo.base.heads = 2
    config.demo.base.kv_heads = 1
    config.demo.base.instruct_epochs = 1
    config.demo.base.checkpoint_steps = 3
    config.demo.base.buckets = (96,)
    config.train.buckets = (96,)
    config.task.max_length = 96
    config.evaluate.batch_size = 64
    return config
