"""The sections of a run's report, each from the files of its workdir; None where they are not."""

import json
import pathlib
import re

import numpy as np

from langmerge_jax.evaluation.metrics import LOWER_IS_BETTER, TITLES
from langmerge_jax.files import read_json, read_jsonl
from langmerge_jax.merging.recipe import parse
from langmerge_jax.reporting import figures, tables
from langmerge_jax.reporting.figures import Figure
from langmerge_jax.reporting.page import Section
from langmerge_jax.reporting.results import Results
from langmerge_jax.reporting.table import Cell, Table

# What rows of the score table are whose names begin so.
_BESIDE = {
    "clustered/": "clustered: each language by the merge of its own cluster of languages.",
    "combined_tasks": "combined_tasks: one adapter trained on all rows of all tasks.",
    "all_tasks/": "all_tasks: every adapter of every task, merged at once.",
    "by_task/": "by_task: the languages of each task merged first, the results after.",
}
# Ranks that `vllm serve --max-lora-rank` takes.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Rows shown for each language where the merge and `combined` differ.
EXAMPLES = 2


def _scores(found: Results) -> Section:
    table = tables.scores_table(found.home, found.metric)
    notes = [
        "individual: each language by its own adapter. routed: by the adapter of the language that "
        "the text was detected as. combined: one adapter trained on all languages together."
    ]
    beside = [text for start, text in _BESIDE.items() if found.has(start)]
    if beside:
        notes.append(" ".join(beside))
    if (found.home / "baselines.json").exists():
        notes.append(
            "majority: the commonest label of the training rows. char n-gram: a linear classifier "
            "a language, no language model at all."
        )
    if found.metric in LOWER_IS_BETTER:
        notes.append("Lower is better.")
    shown, drawn = [table], []
    if (found.home / "comparisons.json").exists():
        shown.append(tables.comparisons_table(found.home))
        rows = [r for r in read_json(found.home / "comparisons.json") if r["language"] == "all"]
        names, margin = tables.variant_names(found.home), 100 * rows[0]["margin"]
        sign = -1 if found.metric in LOWER_IS_BETTER else 1
        defined = [r for r in rows if r["difference"] is not None]
        best = [r for r in defined if sign * r["difference"] > -0.1] or defined
        left_out = len(defined) - len(best)
        values = {
            names.get(r["variant"], r["variant"]): tuple(
                100 * r[key] for key in ("difference", "low", "high")
            )
            for r in best
        }
        drawn.append(
            Figure(
                "against_combined",
                f"Points of {tables.decisive(found.home)} against combined, with 95 % intervals; "
                "shaded: the margin."
                + (f" {left_out} variants are more than 10 points worse." if left_out else ""),
                "; ".join(f"{name} {value:+.1f}" for name, (value, *_) in values.items()),
                figures.points(values, "points against combined", (-margin, margin)),
                1.0 + 0.27 * len(values),
            )
        )
    return Section("What each variant scores", notes, shown, drawn)


def _savings(found: Results) -> Section | None:
    if found.costs is None:
        return None
    rows = found.costs["rows"]
    groups = {
        row["what"]: {"adapters": row["device_seconds"], "combined": row["combined_device_seconds"]}
        for row in rows
    }
    alt = "; ".join(
        f"{what}: adapters {x['adapters']:.1f}, combined {x['combined']:.1f} device seconds"
        for what, x in groups.items()
    )
    bars = Figure(
        "costs",
        "Device seconds of training, against retraining combined.",
        alt,
        figures.bars(groups, "device seconds"),
        1.0 + 0.6 * len(groups),
    )
    padding = max(
        1 - row[f"{whose}tokens"] / row[f"{whose}slots"]
        for row in rows
        for whose in ("", "combined_")
    )
    notes = [
        "Seconds are those of training steps. Loading the base and compiling are counted apart in "
        "each ledger.json: they do not grow with the rows. Of the tokens a device worked on, "
        f"at most {tables.percent(padding)} were padding.",
    ]
    shown = [tables.costs_table(found.home), _ledgers(found)]
    if "scheduled_seconds" in found.costs:
        shown.append(tables.schedule_table(found.home))
    return Section("What it saves", notes, shown, [bars])


def _ledgers(found: Results) -> Table:
    """What the trainings of today's adapters cost in all."""
    cells = {}
    for folder, one in {path: ledger for _, path, ledger in found.ledgers(everywhere=True)}.items():
        cells[folder.name.rpartition("-")[0]] = [
            Cell(f"{one['steps']}"),
            Cell(f"{sum(one['tokens'].values()):,}"),
            Cell(f"{one['device_seconds']:.1f}"),
            Cell(f"{one['compile_seconds']:.1f}"),
            Cell(f"{one['load_seconds']:.1f}"),
            Cell(f"{one['wall_seconds']:.1f}"),
        ]
    return Table(
        "Ledger of each training",
        "training",
        ["steps", "tokens", "device s", "compile s", "load s", "wall s"],
        cells,
    )


def _updates(found: Results) -> Section | None:
    if not found.updates:
        return None
    shown = [tables.changes_table(found.home / "updates" / name) for name in found.updates]
    notes = [
        "Only the adapter of the language that changes was trained; all were merged again. The "
        "change is that of the same test rows before and after, with its paired 95 % interval; "
        "combined was retrained on everything."
    ]
    return Section("What an update changes", notes, shown)


def _alike(found: Results) -> Section:
    names = found.languages
    matrix = {
        (r["adapter"], r["language"]): r["value"]
        for r in read_json(found.home / "matrix.json")
        if r["metric"] == found.metric
    }
    values = [[matrix[adapter, language] for language in names] for adapter in names]
    title, known = TITLES[found.metric], [x for row in values for x in row if x is not None]
    drawn = [
        Figure(
            "matrix",
            f"{title} of each language's adapter (row) on each language (column).",
            f"{title} of each adapter on "
            + ", ".join(names)
            + ": "
            + "; ".join(
                f"{name} {', '.join(tables.number(x, 2) for x in row)}"
                for name, row in zip(names, values, strict=True)
            ),
            figures.heat_map(
                values,
                names,
                names,
                low=min(known, default=0.0),
                high=max(known, default=1.0),
                across="language",
                up="adapter",
            ),
            1.0 + 0.45 * len(names),
        )
    ]
    path = found.home / "similarity.json"
    shown = [tables.matrix_table(found.home)]
    if path.exists():
        shown.append(tables.similarity_table(found.home))
        similarity = read_json(path)
        codes, cosines = similarity["languages"], similarity["cosines"]
        drawn.append(
            Figure(
                "cosines",
                "Cosine between the adapters' deltas (Figure 3 of the paper).",
                "Cosines: "
                + "; ".join(
                    f"{a} and {b} {cosines[i][j]:.2f}"
                    for i, a in enumerate(codes)
                    for j, b in enumerate(codes[:i])
                    if cosines[i][j] is not None
                ),
                figures.heat_map(cosines, codes, codes, low=0.0, high=1.0),
                1.0 + 0.45 * len(codes),
            )
        )
        conflicts = {f"layer {k}": v for k, v in similarity["sign_conflicts"].items()}
        drawn.append(
            Figure(
                "sign_conflicts",
                "Share of the adapters' deltas that goes against the elected sign, by layer, mean "
                "over its modules; 50 % at most.",
                "; ".join(f"{layer} {100 * share:.1f} %" for layer, share in conflicts.items()),
                figures.bars(
                    {layer: {"against": 100 * share} for layer, share in conflicts.items()}, "%"
                ),
                0.9 + 0.28 * len(conflicts),
            )
        )
    return Section("How alike the adapters are", [], shown, drawn)


def _ranks(found: Results) -> Section | None:
    if not (found.home / "ranks.json").exists():
        return None
    rows = read_json(found.home / "ranks.json")["rows"]
    rows = [r for r in rows if r["metric"] == found.metric and r["language"] == "all"]
    kept = sorted((r for r in rows if r["rank"]), key=lambda r: r["rank"])
    if any(row["low"] is None for row in kept):
        return Section("How small the merge can be", [], [tables.ranks_table(found.home)])
    places = [row["rank"] for row in kept]
    line = {rows[0]["recipe"]: (places, [row["value"] for row in kept])}
    band = (places, [row["low"] for row in kept], [row["high"] for row in kept])
    drawn = Figure(
        "ranks",
        f"{TITLES[found.metric]} over all languages by the rank of the merged adapter, with 95 % "
        "intervals.",
        "; ".join(f"rank {r['rank']} {r['value']:.3f}" for r in kept),
        figures.curves(line, across="rank", up=tables.decisive(found.home), band=band),
    )
    notes = [
        "A merged adapter of smaller rank is cheaper to serve. Each row keeps the largest singular "
        "values of every module; folded adds the whole merge to the base's weights."
    ]
    return Section("How small the merge can be", notes, [tables.ranks_table(found.home)], [drawn])


def _rival(found: Results) -> Section | None:
    path = found.home / "routing.json"
    if not path.exists():
        return None
    accuracy = read_json(path)
    lowest = min(accuracy, key=accuracy.__getitem__)
    routed, merged = found.score("routed"), found.score(found.chosen)
    apart = [found.home / "adapters" / x / "adapter_model.safetensors" for x in found.languages]
    sizes = [p.stat().st_size for p in apart if p.exists()]
    if routed["value"] is None or merged["value"] is None:
        return None
    difference = 100 * (routed["value"] - merged["value"])
    notes = [
        "Without merging a team would keep the adapters apart and choose one for each text by its "
        f"language. Its {tables.decisive(found.home)} is {routed['value']:.3f}, "
        f"{abs(difference):.1f} points "
        f"{'above' if difference > 0 else 'below'} the merge. The language was detected rightly in "
        f"{100 * np.mean(list(accuracy.values())):.2f} % of the rows, {lowest} least "
        f"often with {100 * accuracy[lowest]:.2f} %, by character n-grams fitted on training rows.",
        f"Routing keeps {len(sizes)} adapters in memory, {_bytes(sum(sizes))}, and needs a "
        "detector before every request, fitted again whenever a language joins; a batch of mixed "
        "languages is served by several adapters, and a text in two languages by the wrong one "
        f"for half of it. {_merged_memory(found)} One name is served, and the caller need not "
        "know the language.",
    ]
    return Section("The rival: route by language", notes)


def _merged_memory(found: Results) -> str:
    path = found.merged()
    if path is None:
        return (
            f"The merge by {found.recipe} is full rank: it is folded into the base's weights and "
            "needs no memory beside them."
        )
    size = (path / "adapter_model.safetensors").stat().st_size
    return f"The merge by {found.recipe} is one adapter of {_bytes(size)}."


def _bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _curves(found: Results) -> Section | None:
    series = {}
    for adapter, folder, _ in found.ledgers():
        final = {r["step"]: r for r in read_jsonl(folder / "steps.jsonl") if r["event"] == "step"}
        losses = [r["loss"][adapter] for _, r in sorted(final.items()) if adapter in r["loss"]]
        parts = np.array_split(np.arange(len(losses)), min(len(losses), 40))
        values = np.array(losses)
        series[adapter] = (
            [100 * float(part.mean() + 1) / len(losses) for part in parts],
            [float(values[part].mean()) for part in parts],
        )
    if not series:
        return None
    drawn = Figure(
        "losses",
        "Training loss, nats a token of the answer; means over fortieths of the training.",
        "; ".join(f"{name}: from {y[0]:.2f} to {y[-1]:.2f}" for name, (_, y) in series.items()),
        figures.curves(series, across="% of the training", up="loss"),
        3.2,
    )
    return Section("How training went", [], [], [drawn])


def _differences(found: Results) -> Section | None:
    """Rows on which the merge and `combined` do not agree."""
    rows = found.home / "test"
    if not rows.exists() or not found.score("combined"):
        return None
    cells = {}
    for language in found.languages:
        texts = read_jsonl(rows / f"{language}.jsonl")
        ours, theirs = (found.predictions(x, language) for x in (found.chosen, "combined"))
        differ = [i for i in range(len(texts)) if ours[i]["output"] != theirs[i]["output"]]
        for i in differ[:EXAMPLES]:
            reference = texts[i]["reference"]
            cells[f"{language} {texts[i]['id']}"] = [
                Cell(_short("\n".join([texts[i]["text"], *texts[i].get("choices", [])]))),
                Cell(_short(reference)),
                *(
                    Cell(_short(x["output"]), best=x["parsed"] == reference)
                    for x in (ours[i], theirs[i])
                ),
            ]
    if not cells:
        return None
    table = Table(
        "The first rows on which the merge and combined differ",
        "row",
        ["text", "reference", "merged", "combined"],
        cells,
        ["bold: equal to the reference"],
    )
    return Section("Where the merge and combined differ", [], [table])


def _short(text: str, length: int = 160) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= length else text[: length - 1] + "…"


def _lineage(found: Results) -> Section:
    recipe = parse(found.recipe)
    trained = {name: ledger for name, _, ledger in found.ledgers()}
    cells = {}
    for name in found.languages:
        path = found.home / "adapters" / name / "inputs.json"
        if not path.exists():
            cells[name] = [Cell("not made here"), Cell(""), Cell(""), Cell("")]
            continue
        inputs, ledger = read_json(path), trained.get(name)
        cells[name] = [
            Cell(f"{inputs['rows']['count']:,}"),
            Cell(inputs["rows"]["digest"][:12]),
            Cell(f"{ledger['tokens'][name]:,}" if ledger else ""),
            Cell(f"{inputs['base'][:12]}"),
        ]
    table = Table(
        "What the merge is made of", "adapter", ["rows", "digest", "tokens", "base"], cells
    )
    density = "all entries kept" if recipe.density is None else f"density {recipe.density}"
    lora, train = found.config["lora"], found.config["train"]
    notes = [
        f"Recipe {recipe.name}: space {recipe.space}, sparsify {recipe.sparsify}, {density}, "
        f"consensus {recipe.consensus}, lambda {recipe.lam}, seed {found.config['merge']['seed']}; "
        f"{found.by_choice}.",
        f"Adapters: rank {lora['rank']}, alpha {lora['alpha']:g} on {', '.join(lora['targets'])}; "
        f"epochs: {train['epochs']}, batch {train['batch_size']}, learning rate "
        f"{train['learning_rate']:g}, seed {train['seed']}. Every setting stands in config.json.",
    ]
    return Section("Recipe and lineage", notes, [table])


def _serving(found: Results) -> Section:
    home, base = found.home, found.config["base"].replace("{workdir}", str(found.home))
    folder = found.merged()
    if folder:
        rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        room = next((x for x in VLLM_RANKS if x >= rank), None)
        notes = [f"The merge is one PEFT adapter of rank {rank}, which vLLM serves over the base."]
        if room is None:
            notes.append(f"vLLM takes ranks up to {VLLM_RANKS[-1]}: fold it into the base instead.")
        command = (
            f"vllm serve {base} --enable-lora --max-lora-rank {room or VLLM_RANKS[-1]} \\\n"
            f"    --lora-modules merged={folder}"
        )
    else:
        adapters = ",".join(f"{x}={home / 'adapters' / x}" for x in found.languages)
        recipe = parse(found.recipe)
        method = found.recipe.partition("*")[0].partition("@")[0]
        settings = "" if recipe.density is None else f" --density={recipe.density}"
        settings += "" if recipe.lam == 1 else f" --lambda={recipe.lam}"
        if recipe.sparsify == "dare":
            settings += f" --seed={found.config['merge']['seed']}"
        local = base if pathlib.Path(base).is_dir() else f'"$(hf download {base})"'
        notes = [f"The merge by {found.recipe} is full rank: fold it into the base's weights."]
        command = (
            f"python -m langmerge_jax.merge --method={method}{settings} \\\n"
            f"    --adapters={adapters} \\\n    --base={local} --output=merged-model\n"
            "vllm serve merged-model"
        )
    if found.updates:
        notes.append(
            "Each update has made a merge of its own, which is served the same way: "
            f"{home / 'updates'}/<name>/merged, from the adapters there and in {home / 'adapters'}."
        )
    return Section("How to serve it", notes, commands=command)


SECTIONS = (
    _scores,
    _savings,
    _updates,
    _rival,
    _ranks,
    _alike,
    _curves,
    _differences,
    _lineage,
    _serving,
)
