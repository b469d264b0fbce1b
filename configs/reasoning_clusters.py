r"""The paper's reasoning adapters, merged within clusters of related languages.

  python -m langmerge_jax.experiment --config=configs/reasoning_clusters.py \
      --workdir=runs/reasoning_all

answers each language by the merge of its cluster, beside the merges of all: European (en, de, fr)
and East Asian (ja, zh); with :found behind the file's name two clusters by shared vocabulary of the
training texts. In the workdir of reasoning_all.py, whose adapters serve both, it trains nothing; in
another it costs what that does. Score: the paper's value could not be read (docs/paper.md); by
reviews of an earlier version, clusters did not beat merging all.
"""

from langmerge_jax.config import default
from langmerge_jax.paper import clustered


def get_config(clusters=""):
    return clustered(default("reasoning"), clusters)
