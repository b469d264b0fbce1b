"""Groups of languages that are merged apart: named ones, or found by their vocabularies."""

import numpy as np

from langmerge_jax.errors import InputError
from langmerge_jax.files import read_json, write_json
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.stages import digest, digest_rows

CLUSTERS = "clusters.json"


def clusters_of(run: Run) -> dict[str, tuple[str, ...]]:
    """Returns {cluster: its languages}: `merge.clusters`, or `merge.find_clusters` of them found.

    Those found are kept, with how much of their vocabularies the languages share, in
    `clusters.json`.

    Raises:
      InputError: if the clusters named do not hold every language once, or cannot be found.
    """
    named, count = run.config.merge.clusters.to_dict(), run.config.merge.find_clusters
    if named and count:
        raise InputError(
            "merge.clusters names clusters and merge.find_clusters finds some; use one"
        )
    if named:
        held = [language for languages in named.values() for language in languages]
        if sorted(held) != sorted(run.languages):
            raise InputError(
                f"merge.clusters={named}: they are to hold each of {', '.join(run.languages)} once"
            )
        return {name: tuple(languages) for name, languages in named.items()}
    if not count:
        return {}
    if not 1 < count < len(run.languages):
        raise InputError(
            f"merge.find_clusters={count}: give 2 to {len(run.languages) - 1} for "
            f"{len(run.languages)} languages"
        )
    path = run.home / CLUSTERS
    rows = {x: digest_rows(run.examples(x, "train")) for x in run.languages}
    inputs = digest({"rows": rows, "count": count, "base": run.base_identity})
    if not (path.exists() and read_json(path)["inputs"] == inputs):
        shared = shared_vocabulary(run)
        found = {"+".join(x): x for x in group(shared, run.languages, count)}
        write_json(path, {"inputs": inputs, "clusters": found, "shared": shared.tolist()})
    return {name: tuple(x) for name, x in read_json(path)["clusters"].items()}


def shared_vocabulary(run: Run) -> np.ndarray:
    """Returns how much of their vocabularies each two languages share, [language, language].

    A vocabulary is the set of tokens that the base's tokenizer cuts a language's training texts
    into; two share their intersection over their union (Jaccard 1912).
    """
    tokens = {
        x: {t for e in run.examples(x, "train") for t in run.tokenizer.encode(e.text)}
        for x in run.languages
    }
    return np.array([[len(a & b) / len(a | b) for b in tokens.values()] for a in tokens.values()])


def group(shared: np.ndarray, languages: tuple[str, ...], count: int) -> list[list[str]]:
    """Returns `count` groups, joined one by one where what is shared is most on average."""
    # Takes seconds to import, and only clusters that are to be found need it.
    import sklearn.cluster

    model = sklearn.cluster.AgglomerativeClustering(count, metric="precomputed", linkage="average")
    labels = model.fit_predict(1 - shared)
    found = [[x for x, y in zip(languages, labels, strict=True) if y == k] for k in range(count)]
    return sorted(found, key=lambda some: languages.index(some[0]))
