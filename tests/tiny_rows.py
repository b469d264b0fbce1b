"""configs/realdata_sentiment.py, shrunk to two languages and a few rows. It learns nothing."""

from configs import realdata_sentiment


def get_config():
    config = realdata_sentiment.get_config()
    config.languages = ("en", "ja")
    config.task.max_length = 48
    config.lora.rank = 2
    config.train.epochs = 1
    config.train.keep = "last"
    config.train.buckets = (48,)
    config.merge.recipes = ("ties@1.0", "linear")
    config.merge.tune_lambda = ()
    config.merge.tune_recipes = ()
    config.demo.base.update(
        {
            "vocab_size": 400,
            "hidden_size": 16,
            "intermediate_size": 24,
            "layers": 2,
            "heads": 2,
            "pretrain_epochs": 2,
            "instruct_epochs": 1,
            "batch_size": 16,
            "instruct_batch_size": 16,
            "buckets": (32, 48),
        }
    )
    return config
