"""The paper's summarization adapters on its second base, Llama-3.2-3B, r=64.

  python -m langmerge_jax.experiment --config=configs/summarization_3b.py

does what summarization_all.py does, over the smaller base: 1,500 steps of 5 x 8 rows and 7,500 of
8; device hours were not measured. Score: the paper's value could not be read (docs/paper.md).

The paper's text, as far as it is known, says Llama-3.2-3B where it says Llama-3.1-8B-Instruct of
the larger one, so this is the model that is not tuned to instructions: it has no chat template, the
prompt is the plain text, and the two sizes differ in more than size.
--config.base=meta-llama/Llama-3.2-3B-Instruct takes the tuned one.
"""

from langmerge_jax.config import default


def get_config():
    config = default("summarization")
    config.base = "meta-llama/Llama-3.2-3B"
    return config
