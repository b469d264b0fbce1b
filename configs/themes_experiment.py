r"""The paper's case study: themes of comments with examples, in five languages and mixed.

  python -m langmerge_jax.experiment --config=configs/themes_experiment.py \
      --config.data.path='DIR/{language}/{split}.jsonl'

The paper's comments are not public; DIR holds one's own, with en, es, de, fr, ja and mix for
{language}: {"id": …, "comments": [text, …], "themes": [{"theme": text, "examples": [text, …]}, …]}
a line. Languages are weighted by importance in the merges; the paper's weights are not known, those
here are an example: two for English and for mixed comments, one for the others. Second round:
Japanese alone is retrained, with up to 5,000 rows more that train.jsonl has beyond the first 5,000,
and merged again; what that changes is the last series of the paper's Figure 2. The cosine
similarity of its Figure 3 is `similarity` among the tables.

Cost, with 5,000 rows a language: 2,500 steps of 6 x 8 rows, 15,000 steps of 8 for the combined
adapter; the second round 5,000 and 17,500. Device hours were not measured. Score, the share of
examples that stand in no comment: the paper's value could not be read (docs/paper.md).

:demo behind the file's name runs all of it at the size of configs/demo.py, on generated comments.
"""

from langmerge_jax.demo.config import sized
from langmerge_jax.paper import experiment, updated


def get_config(size=""):
    config = updated(experiment("themes"), "ja")
    config.languages = ("en", "es", "de", "fr", "ja", "mix")
    config.merge.weights = {"en": 2.0, "mix": 2.0}
    return sized(config, size)
