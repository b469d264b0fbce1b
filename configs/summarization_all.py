"""The paper's five summarization adapters and their merges: Llama-3.1-8B-Instruct, r=64.

  python -m langmerge_jax.experiment --config=configs/summarization_all.py

trains the five adapters in one program (1,500 steps of 5 x 8 rows), the combined one (7,500 steps
of 8 rows), merges by the paper's recipes and scores all on 500 test rows a language. Device hours
were not measured. Score: the paper's value could not be read (docs/paper.md). The base and the data
come from the hub; --config.base=DIR and --config.data.path=hf:DIR read copies of them on disk.
"""

from langmerge_jax.config import default


def get_config():
    return default("summarization")
