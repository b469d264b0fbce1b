"""The paper's summarization adapter of one language: Llama-3.1-8B-Instruct, r=64, 3,000 rows.

  python -m langmerge_jax.train --config=configs/summarization_ja.py

writes runs/summarization_ja/adapters/ja. Cost: 1,500 steps of 8 rows; device hours were not
measured. Score of one adapter: the paper's value could not be read (docs/paper.md). The base and
the data come from the hub; --config.base=DIR and --config.data.path=hf:DIR read copies of them on
disk.
"""

from langmerge_jax.config import default


def get_config():
    config = default("summarization")
    config.languages = ("ja",)
    return config
