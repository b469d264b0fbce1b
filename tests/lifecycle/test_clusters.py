"""Languages are merged in the clusters that are named or found, and weighted as asked."""

import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter, save_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.files import read_json, write_jsonl
from langmerge_jax.lifecycle.clusters import clusters_of, group, shared_vocabulary
from langmerge_jax.lifecycle.evaluation import evaluate
from langmerge_jax.lifecycle.merging import merged, of_languages
from langmerge_jax.lifecycle.prediction import keep_rows
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.variants import table_rows
from langmerge_jax.merging import merge, parse

TEXTS = {
    "en": "The screen is good and the box is red",
    "nl": "The screen is good en the box is rood",
    "ja": "画面は良いです、箱は赤いです",
    "zh": "画面は良い、箱は赤い",
}


@pytest.fixture
def languages(make_run, tmp_path, tiny_config, random_adapter):
    """Makes a run of four languages, two of which look alike and two others, with adapters."""
    for language, text in TEXTS.items():
        folder = tmp_path / "data" / language
        folder.mkdir(exist_ok=True)
        for split in ("train", "validation", "test"):
            rows = [{"text": f"{text} {split} {i}", "label": "neutral"} for i in range(4)]
            write_jsonl(folder / f"{split}.jsonl", rows)

    def make(name="work", **settings) -> Run:
        run = make_run(name, languages=tuple(TEXTS), **settings)
        for seed, language in enumerate(run.languages):
            save_adapter(run.adapter_directory(language), random_adapter(tiny_config, seed))
        return run

    return make


def test_named_clusters_answer_for_their_own_languages(languages):
    clusters = {"west": ("en", "nl"), "east": ("ja", "zh")}
    run = languages(**{"merge.clusters": clusters, "merge.recipes": ("ties_knots@0.5",)})
    found = evaluate(run, ["ties_knots@0.5", "clustered/ties_knots@0.5"])
    name = "{}/ties_knots@0.5"
    assert found["clustered/ties_knots@0.5"] == {
        "en": name.format("west"),
        "nl": name.format("west"),
        "ja": name.format("east"),
        "zh": name.format("east"),
    }
    for cluster, of in clusters.items():
        folder = run.predictions_directory(name.format(cluster))
        assert {p.stem for p in folder.glob("*.jsonl")} == set(of)
        adapters = {x: load_adapter(run.adapter_directory(x)) for x in of}
        wanted = merge(adapters, "ties_knots@0.5")
        ours = load_adapter(run.merged_directory(name.format(cluster)))
        for module, factors in wanted.modules.items():
            np.testing.assert_array_equal(ours.modules[module].b, factors.b)


def test_clusters_are_found_by_the_vocabulary_that_texts_share(languages):
    run = languages(**{"merge.find_clusters": 2, "merge.recipes": ("linear",)})
    assert clusters_of(run) == {"en+nl": ("en", "nl"), "ja+zh": ("ja", "zh")}
    shared = shared_vocabulary(run)
    np.testing.assert_allclose(np.diag(shared), 1)
    np.testing.assert_array_equal(shared, shared.T)
    assert shared[0, 1] > max(shared[0, 2:])
    kept = read_json(run.home / "clusters.json")
    assert kept["shared"] == shared.tolist()
    assert "clustered/linear" in table_rows(run, lambda: None, {})


def test_groups_join_where_most_is_shared_on_average():
    shared = np.array(
        [[1, 0.9, 0.2, 0.1], [0.9, 1, 0.3, 0.1], [0.2, 0.3, 1, 0.4], [0.1, 0.1, 0.4, 1]]
    )
    names = ("a", "b", "c", "d")
    assert group(shared, names, 2) == [["a", "b"], ["c", "d"]]
    assert group(shared, names, 3) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merge.clusters": {"west": ("en", "nl")}}, "hold each of en, nl, ja, zh once"),
        ({"merge.clusters": {"a": ("en", "nl", "ja", "zh"), "b": ("en",)}}, "hold each of"),
        ({"merge.find_clusters": 4}, "merge.find_clusters=4: give 2 to 3 for 4 languages"),
        ({"merge.find_clusters": 2, "merge.clusters": {"a": tuple(TEXTS)}}, "use one"),
    ],
)
def test_clusters_that_cannot_be_are_refused(languages, settings, message):
    with pytest.raises(InputError, match=message):
        clusters_of(languages(**settings))


def test_weights_reach_the_merge_and_what_it_says_of_itself(languages):
    run = languages(**{"merge.weights": {"ja": 3.0}})
    recipe = parse("linear")
    found = merged(run, of_languages(run, recipe))
    adapters = {x: load_adapter(run.adapter_directory(x)) for x in run.languages}
    weights = {"en": 1.0, "nl": 1.0, "ja": 3.0, "zh": 1.0}
    wanted = merge(adapters, recipe, weights=weights)
    equal = merge(adapters, recipe)
    for module, factors in wanted.modules.items():
        np.testing.assert_array_equal(found.modules[module].b, factors.b)
        assert not np.array_equal(found.modules[module].b, equal.modules[module].b)
    inputs = read_json(run.merged_directory("linear") / "inputs.json")
    assert inputs["weights"] == weights
    # Another weight is another merge.
    again = languages(**{"merge.weights": {"ja": 2.0}})
    assert of_languages(again, recipe).inputs(again) != inputs
    with pytest.raises(InputError, match=r"merge\.weights\.fr: the languages are en, nl, ja, zh"):
        of_languages(languages(**{"merge.weights": {"fr": 2.0}}), recipe)


def test_the_rows_to_answer_are_kept_once_and_anew_when_they_change(make_run, tmp_path):
    run = make_run()
    keep_rows(run)
    path = run.home / "test" / "en.jsonl"
    before = path.stat().st_mtime_ns
    keep_rows(make_run())
    assert path.stat().st_mtime_ns == before
    write_jsonl(
        tmp_path / "data" / "en" / "test.jsonl", [{"id": "0", "text": "New", "label": "neutral"}]
    )
    keep_rows(make_run())
    assert len(path.read_text().splitlines()) == 1
