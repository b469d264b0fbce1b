"""Writes docs/merging.md from the presets, options and refusals that the engine itself uses.

  .venv-test/bin/python -m docs.from_recipes

tests/test_merging_page.py checks that the committed page is what this makes.
"""

import pathlib

from langmerge_jax.merging.consensus import CONSENSUS
from langmerge_jax.merging.presets import PRESETS, Preset
from langmerge_jax.merging.recipe import CONCATENATION, OPTIONS, REFUSED, Option, Rule
from langmerge_jax.merging.spaces import SPACES
from langmerge_jax.merging.sparsify import SPARSIFIERS

PAGE = pathlib.Path(__file__).resolve().with_name("merging.md")

INTRODUCTION = """\
# Merging

<!-- Made by `python -m docs.from_recipes` from langmerge_jax/merging; change it there. -->

A merge takes adapters of one base model and makes one adapter, or one model, of them. It needs no
data, and the base only where the result is full rank and is to be folded into it.

```sh
python -m langmerge_jax.merge --adapters=en=DIR,de=DIR,fr=DIR --method=ties_knots --density=0.5 \\
  --output=merged
```

```python
from langmerge_jax.adapters import load_adapter
from langmerge_jax.merging import merge

adapters = {name: load_adapter(name) for name in ("en", "de", "fr")}
merged = merge(adapters, "ties_knots@0.5", weights={"en": 2.0, "de": 1.0, "fr": 1.0})
```

## Which one

- **`ties_knots@0.5`** is where to begin: an adapter comes out, and signs are elected in directions
  that the adapters share.
- **`soup`** is the plain average, **`linear`** the plain sum. Five adapters of one task summed are
  up to five times as large as one: give `linear*0.2`, or take `soup`.
- **`ties@0.5`** and **`dare_ties@0.5`** work on the weights themselves. What comes out is full
  rank: `--base=DIR` folds it into a model, `--rank=64` truncates it and says what is lost.
- The presets under `peft/`, `mergekit/`, `knots/` and `ties/` do what those implementations do, to
  compare with or to reproduce; where a random mask is drawn, it is another one.

Which is best for given adapters is for validation data to say: `config.merge.recipes` tries several
and `config.merge.tune_recipes` and `tune_lambda` search among them.

## How a recipe is written

`<method>[@<density>][*<lambda>][,<option>=<value>]...`, such as `ties@0.5*1.2,scope=global`. The
method is a preset below, or three names of your own, `<space>:<sparsifier>:<consensus>`, such as
`core:dare:ties@0.5`.

1. The **space** gives each adapter coordinates in which entries can be compared. `delta`: the task
   vector tau = scale B A itself. `factor`: A and B apart, as PEFT does. `knots`: S V in the basis
   that all task vectors side by side share; `knots_v`: V in that basis, S multiplied afterwards.
   `core`: U^T tau V in bases that all B's and all A's share. `cat` has no coordinates: the exact
   sum as one adapter.
2. The **sparsifier** drops entries: `magnitude` keeps the largest, `dare` draws, `della` draws with
   larger entries more likely, `breadcrumbs` drops the largest and the smallest, `sce` keeps what
   varies most between adapters, `none` keeps all. `magnitude_official` is the TIES authors' code.
   Density 1 keeps all with any of them.
3. The **consensus** makes one of the survivors: `sum`, `mean`, `ties` (elect a sign, average what
   agrees), `sce` (the same, weighed by mean squares).

**Weights** are relative importance for `mean`, `sce` and `ties` (doubling all of them changes
nothing), and gains for `sum` and where TIES divides by something else than the weights. **Lambda**
is the gain on the result. An adapter's weight can differ by module and go with the depth:
`--weights=en=1,ja=0.5..1.5,ja:*.mlp.*=0.7` gives `ja` 0.5 in the first layer, 1.5 in the last, and
0.7 in all MLPs.

**Rank**: `exact` by default. `rank=64` truncates every module to 64, `rank=0.95` to what keeps 95 %
of its energy (squared singular values), `rank=inputs` to the inputs' highest. The energy kept is
printed and written.

**Ties and counts.** A trim keeps exactly int(d N) entries of the N of a module, of equal ones the
first in row-major order. Zero never agrees with a sign; where a sum is zero, + is elected. Adapters
are taken in the order of their names. Random masks depend on seed, adapter, module, factor, row and
column alone.

"""

ROLES = """\
## Roles: arithmetic with signs

AdaMergeX (Zhao et al., [arXiv 2402.18913](https://arxiv.org/abs/2402.18913)) carries a task to a
language without training data in it: the adapter of the task in a source language, plus that of a
reference task in the target language, minus that of the reference task in the source language. That
is `linear` with signed weights:

```sh
python -m langmerge_jax.merge --adapters=task_en=DIR,reference_sw=DIR,reference_en=DIR \\
  --method=linear --weights=task_en=1,reference_sw=1,reference_en=-1 --output=task_sw
```

"""

INPUTS = """\
## What goes in

Adapters in PEFT's format, of any architecture: mixed ranks, `rank_pattern`, `alpha_pattern`,
rsLoRA, alpha unlike rank, float32, bfloat16 or float16, one file or shards, LoRA on embeddings and
on the head. They are mapped, not loaded, and modules stream, so memory is bounded by a few modules.

| what | by default | otherwise |
|---|---|---|
| a module that some adapters lack | refused | `--missing=zero`: a change of zero |
| fully trained modules (`modules_to_save`) | refused | `--heads=average`, `--heads=from=en` |
| base models of different names | refused | `--allow_base_mismatch` |
| base models that differ in quantisation | merged, with a warning | |
| the dtype of the result | the widest of the inputs | `--dtype=bfloat16` |

Refused with adapter, module and reason: DoRA, LoRA biases, shapes that differ, NaN and infinity,
weights that do not match their config, files that are no safetensors, an output directory that
holds something else. A merge that fails leaves nothing behind.

The result comes with a card (`README.md`) and the same as JSON (`merge.json`): recipe, inputs with
SHA-256, cosines between them, conflicting signs, norms, rank, energy kept, and how to load it.
`--dry_run` says what a merge will take.
"""


def page() -> str:
    """Returns docs/merging.md."""
    ours = {name: preset for name, preset in PRESETS.items() if "/" not in name}
    theirs = {name: preset for name, preset in PRESETS.items() if "/" in name}
    return (
        INTRODUCTION
        + _presets("## Presets", ours)
        + _presets("## Presets of other implementations", theirs)
        + _options()
        + _validity()
        + ROLES
        + INPUTS
    )


def _presets(title: str, presets: dict[str, Preset]) -> str:
    lines = [title, "", "tau_i is the task vector of adapter i, w_i its weight, d the density.", ""]
    for name, preset in presets.items():
        parts = [preset.fields[key] for key in ("space", "sparsify", "consensus")]
        options = [f"{k}={v}" for k, v in preset.fields.items() if k in (*OPTIONS, "rank")]
        lines += [
            f"### `{name}`",
            "",
            f"`{','.join([':'.join(parts), *options])}`",
            "",
            f"- **computes** {_code(preset.formula)}",
            f"- **source** {preset.source}",
            f"- **result** {preset.result}",
            f"- **cost** {preset.cost}",
            f"- **when** {preset.when}",
            "",
        ]
    return "\n".join(lines) + "\n"


def _options() -> str:
    lines = ["## Options", "", "| option | values | for | what |", "|---|---|---|---|"]
    for name, option in OPTIONS.items():
        lines.append(
            f"| `{name}` | {_values(option)} | {_fields(option.applies)} | {option.help} |"
        )
    lines.append("| `rank` | **exact**, inputs, a number, a share in (0, 1) | all | see above |")
    return "\n".join([*lines, "", "The default is bold.", "", ""])


def _validity() -> str:
    """The table of what goes with what, from the same rules that refuse."""
    reasons = list(dict.fromkeys(rule.reason for rule in REFUSED))
    lines = [
        "## What goes with what",
        "",
        "A number is the reason why a combination is refused.",
        "",
        "| space | sparsifier | " + " | ".join(CONSENSUS) + " |",
        "|---|---|" + "---|" * len(CONSENSUS),
    ]
    for space in [*SPACES, CONCATENATION]:
        for sparsify in SPARSIFIERS:
            cells = []
            for consensus in CONSENSUS:
                chosen = {"space": space, "sparsify": sparsify, "consensus": consensus}
                found = next((rule for rule in REFUSED if _refuses(rule, chosen)), None)
                cells.append(str(reasons.index(found.reason) + 1) if found else "yes")
            lines.append(f"| {space} | {sparsify} | " + " | ".join(cells) + " |")
    lines.append("")
    for number, reason in enumerate(reasons, 1):
        limits = [_limits(rule) for rule in REFUSED if rule.reason == reason]
        only = f" (only with {limits[0]})" if limits[0] else ""
        lines.append(f"{number}. {reason[0].upper()}{reason[1:]}{only}.")
    return "\n".join([*lines, "", ""])


def _refuses(rule: Rule, chosen: dict[str, str]) -> bool:
    """Whether a rule refuses three names whatever the options."""
    return rule.fields.keys() <= chosen.keys() and all(
        chosen[name] in values for name, values in rule.fields.items()
    )


def _limits(rule: Rule) -> str:
    return _fields({name: values for name, values in rule.fields.items() if name in OPTIONS})


def _fields(fields) -> str:
    return ", ".join(f"{name} {' or '.join(values)}" for name, values in fields.items())


def _values(option: Option) -> str:
    if not option.choices:
        return f"a number, **{option.default}**"
    return ", ".join(f"**{x}**" if x == option.default else x for x in option.choices)


def _code(formula: str) -> str:
    """A formula as Markdown text; what it has in backticks stays so."""
    pieces = formula.split("`")
    plain = str.maketrans({"|": "\\|", "_": "\\_", "*": "\\*"})
    return "`".join(x if i % 2 else x.translate(plain) for i, x in enumerate(pieces))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
