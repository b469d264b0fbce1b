"""An experiment of configs/ at the demo's size, shrunk until it runs in seconds: `:themes`, ….

It needs a base, --config.base=DIR. It learns nothing worth knowing.
"""

import importlib

from langmerge_jax.paper import UPDATE_RECIPE

# One of each space: folded into the base, an adapter of the sum of the ranks, and of one's rank.
RECIPES = ("ties@0.5", UPDATE_RECIPE, "peft/ties@0.5")
ROWS = {"train": 16, "update": 16, "validation": 8, "test": 8}


def get_config(name):
    config = importlib.import_module(f"configs.{name}_experiment").get_config("demo")
    more = {"reasoning": ("en", "fr", "ja"), "themes": ("en", "ja", "mix")}
    config.languages = more.get(name, ("en", "ja"))
    if config.tasks:  # One that chooses and one that writes.
        del config.tasks.reasoning, config.demo.corpus.tasks["reasoning"]
    config.merge.recipes = tuple(x for x in config.merge.recipes if x in RECIPES)
    config.merge.clusters = {
        cluster: tuple(x for x in languages if x in config.languages)
        for cluster, languages in config.merge.clusters.items()
    }
    # Most of the time is compiling: so there are fewest programs.
    config.cpu_devices, config.adapters_at_once = 1, 0
    config.evaluate.batch_size, config.evaluate.variants_at_once = 8, 1
    config.lora.rank = 2
    config.train.batch_size = 8
    config.train.buckets = (192,)
    for section in config.tasks.values() or [config]:
        section.task.max_length, section.task.max_new_tokens = 192, 8
    config.demo.corpus.update(
        languages=("en", "fr", "ja"),
        rows={**ROWS, "instruct": 0},
        tasks=dict.fromkeys(config.demo.corpus.tasks, ROWS),
        unlabelled=0,
    )
    return config
