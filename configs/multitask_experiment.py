"""The paper's several tasks at once: three tasks in five languages, merged into one adapter.

  python -m langmerge_jax.experiment --config=configs/multitask_experiment.py

does for sentiment, reasoning and summarization what their configs *_all.py do, each in a folder of
its name, and asks in each beside them: `all_tasks/<recipe>`, the fifteen adapters merged at once;
`by_task/<recipe>`, each task's languages merged first and the three results after; and
`combined_tasks`, one adapter trained on all rows. Cost: 2,500, 2,500 and 1,500 steps of 5 x 8 rows;
12,500, 12,500 and 7,500 steps of 8 for the combined adapter of each task, and 32,500 for that of
all. Device hours were not measured. Score: the paper's value could not be read (docs/paper.md).

:demo behind the file's name runs all of it at the size of configs/demo.py.
"""

from langmerge_jax.config import section
from langmerge_jax.demo.config import sized
from langmerge_jax.paper import experiment


def get_config(size=""):
    config = experiment("sentiment")
    config.tasks = {name: section(name) for name in ("sentiment", "reasoning", "summarization")}
    return sized(config, size)
