"""The card of a merged adapter or model: what it was made from and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from langmerge_jax.merging.plan import Plan
from langmerge_jax.reporting.table import Cell, Table

# What vLLM's --max-lora-rank can be.
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# By PEFT's names of tasks.
_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def card(facts: Mapping[str, Any]) -> str:
    """Returns the README.md of a merge.

    Args:
        facts: See `merging.account.Account.facts`.
    """
    base = facts["base"]
    head = ["---", "library_name: peft"] if facts["rank"] else ["---"]
    if base:
        head.append(f"base_model: {_quoted(base)}")
    head += ["tags:", "- merge", "- lora", "---", ""]
    kind = "adapter" if facts["rank"] else "model"
    names = list(facts["inputs"])
    lines = [
        f"# {', '.join(names)}: merged by {facts['recipe']}",
        "",
        f"A LoRA {kind} merged from {len(names)} adapters"
        if facts["rank"]
        else f"A model merged from {len(names)} LoRA adapters and their base",
        f"of `{base}`, without data." if base else "of one base model, without data.",
        "",
        "## How it was made",
        "",
        *_recipe(facts),
        "",
        *_tables(facts),
        "## How to load it",
        "",
        *(_loading(facts, base or "<base model>") if facts["rank"] else _whole(facts)),
    ]
    return "\n".join(head + lines) + "\n"


def plan_table(plan: Plan, title: str) -> Table:
    """Returns what a merge will take, for a terminal."""
    rows = {
        share.example: [
            Cell(str(share.modules)),
            Cell(f"{share.shape[0]}x{share.shape[1]}"),
            Cell("+".join(map(str, share.ranks))),
            Cell("full" if share.rank is None else str(share.rank)),
            Cell(f"{share.seconds:.2f}"),
        ]
        for share in plan.shares
    }
    written = "" if plan.written is None else f" Writes up to {_bytes(plan.written)}."
    notes = [
        f"About {plan.seconds + plan.compile_seconds:.0f} s, of which {plan.compile_seconds:.0f} s "
        f"compile; {_bytes(plan.memory)} of memory beside mapped files.{written}",
        *([f"The modules are gone through {plan.passes} times."] if plan.passes > 1 else []),
        "Measured on one module of each shape; reading and writing files come on top.",
    ]
    head = "one of the modules alike"
    return Table(title, head, ["modules", "shape", "ranks", "rank", "s each"], rows, notes)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _recipe(facts: Mapping[str, Any]) -> list[str]:
    weights = ", ".join(f"{name} {_weight(w)}" for name, w in facts["weights"].items())
    lines = [
        f"- recipe: `{facts['recipe']}`",
        f"- weights: {weights}",
        f"- seed of random masks: {facts['seed']}",
        f"- modules that an adapter lacks: {facts['missing']}",
        f"- written in {facts['dtype'] or 'the dtype of the base'}, computed in float32 or wider",
    ]
    if facts["folded_into"]:
        lines.append(f"- folded into: {facts['folded_into']}")
    if facts["rank"]:
        lines.append(f"- rank: {facts['rank']} at most, in {facts['modules']} modules")
    if facts["energy"] is not None:
        lines.append(
            f"- truncated: {facts['energy']:.4f} of the energy is kept (squared singular values)"
        )
    if facts["head_tensors"]:
        lines.append(
            f"- fully trained tensors ({facts['heads']}): {', '.join(facts['head_tensors'])}"
        )
    return lines


def _tables(facts: Mapping[str, Any]) -> list[str]:
    names = list(facts["inputs"])
    inputs = {
        name: [
            Cell(str(entry["rank"])),
            Cell(_norm(entry["norm"])),
            *(_cosine(x) for x in row),
        ]
        for (name, entry), row in zip(facts["inputs"].items(), facts["cosines"], strict=True)
    }
    groups = {
        group: [
            Cell(str(entry["modules"])),
            Cell(f"{100 * entry['sign_conflict']:.1f}"),
            Cell(_range(entry["norms"])),
            Cell(_norm(entry["norm"])),
        ]
        for group, entry in facts["groups"].items()
    }
    files = {
        f"{name}, {file}": [Cell(digest)]
        for name, entry in facts["inputs"].items()
        for file, digest in entry["sha256"].items()
    }
    tables = (
        Table(
            "The adapters: rank, norm, and cosine to each other",
            "adapter",
            ["rank", "norm", *names],
            inputs,
            [f"The merge has norm {_norm(facts['norm'])}."],
        ),
        Table(
            "By kind of module",
            "modules",
            ["count", "sign conflict %", "norms before", "norm after"],
            groups,
            [
                "Sign conflict: how much of the adapters' entries, by magnitude, goes against the "
                "sign of their sum; estimated from a sample of the outputs."
            ],
        ),
        Table("The files it was made from", "file", ["SHA-256"], files),
    )
    return [line for table in tables for line in (table.markdown(), "")]


def _loading(facts: Mapping[str, Any], base: str) -> list[str]:
    auto = _auto_class(facts)
    return [
        "With PEFT:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f'base = {auto}.from_pretrained("{base}")',
        'model = PeftModel.from_pretrained(base, "<this directory>")',
        "```",
        "",
        *_serving(facts, base),
    ]


def _serving(facts: Mapping[str, Any], base: str) -> list[str]:
    needed = next((x for x in _VLLM_RANKS if x >= facts["rank"]), None)
    if needed is None:
        return [
            f"vLLM serves ranks up to {_VLLM_RANKS[-1]}; for it, merge again with a lower rank."
        ]
    if facts["head_tensors"]:
        return [
            "vLLM serves no adapter with fully trained tensors; fold it into its base for that."
        ]
    if len(facts["scales"]) > 1:
        return [
            "vLLM reads one `lora_alpha` for all modules, and this adapter has several; for it, "
            "merge again with a rank, which gives all modules one scale, or fold it into its base."
        ]
    return [
        "With vLLM:",
        "",
        "```sh",
        f"vllm serve {base} --enable-lora --max-lora-rank {needed} \\",
        "  --lora-modules merged=<this directory>",
        "```",
    ]


def _whole(facts: Mapping[str, Any]) -> list[str]:
    auto = _auto_class(facts)
    return [
        "As the base model; no adapter is needed.",
        "",
        "```python",
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("<this directory>")',
        "```",
    ]


def _auto_class(facts: Mapping[str, Any]) -> str:
    return _AUTO_CLASSES.get(facts["task_type"] or "CAUSAL_LM", "AutoModel")


def _range(norms: Sequence[float | None]) -> str:
    known = [x for x in norms if x is not None]
    lost = [None] * (len(norms) > len(known))
    ends = [min(known), max(known)] if known else []
    return " to ".join(map(_norm, [*ends, *lost]))


def _norm(value: float | None) -> str:
    return "overflow" if value is None else f"{value:.4g}"


def _weight(weight: Any) -> str:
    if isinstance(weight, Mapping):
        return "; ".join(f"{_weight(w)} in {pattern}" for pattern, w in weight.items())
    if isinstance(weight, Sequence):
        return f"{weight[0]:g} to {weight[1]:g} over the depth"
    return f"{weight:g}"


def _cosine(value: float | None) -> Cell:
    return Cell("-" if value is None else f"{value:z.3f}")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
