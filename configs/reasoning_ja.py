"""The paper's reasoning adapter of one language: Llama-3.1-8B-Instruct, r=64, 5,000 rows.

  python -m langmerge_jax.train --config=configs/reasoning_ja.py

writes runs/reasoning_ja/adapters/ja. Cost: 2,500 steps of 8 rows; device hours were not measured.
Score of one adapter: the paper's value could not be read (docs/paper.md). The base and the data
come from the hub; --config.base=DIR and --config.data.path=hf:DIR read copies of them on disk.
"""

from langmerge_jax.config import default


def get_config():
    config = default("reasoning")
    config.languages = ("ja",)
    return config
