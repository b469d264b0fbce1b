"""The card of a merged adapter or model: what it was made from and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from langmerge_jax.merging.plan import Plan
from langmerge_jax.reporting.table import Cell, Table

# What vLLM's --max-lora-rank can be.
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


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
        *(_loading(facts["rank"], base or "<base model>") if facts["rank"] else _whole()),
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
        f"- written in {facts['dtype']}, computed in float32 or wider",
    ]
    if facts["rank"]:
        lines.append(f"- rank: {facts['rank']} at most, in {facts['modules']} modules")
    if facts["energy"] is not None:
        lines.append(
            f"- truncated: {facts['energy']:.4f} of the energy is kept (squared singular values)"
        )
    if facts["heads"]:
        lines.append(f"- fully trained tensors: {', '.join(facts['heads'])}")
    return lines


def _tables(facts: Mapping[str, Any]) -> list[str]:
    names = list(facts["inputs"])
    inputs = {
        name: [
            Cell(str(entry["rank"])),
            Cell(f"{entry['norm']:.4g}"),
            *(_cosine(x) for x in row),
        ]
        for (name, entry), row in zip(facts["inputs"].items(), facts["cosines"], strict=True)
    }
    groups = {
        group: [
            Cell(str(entry["modules"])),
            Cell(f"{100 * entry['sign_conflict']:.1f}"),
            Cell(f"{min(entry['norms']):.4g} to {max(entry['norms']):.4g}"),
            Cell(f"{entry['norm']:.4g}"),
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
            [f"The merge has norm {facts['norm']:.4g}."],
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


def _loading(rank: int, base: str) -> list[str]:
    needed = next((x for x in _VLLM_RANKS if x >= rank), None)
    serving = (
        [
            "With vLLM:",
            "",
            "```sh",
            f"vllm serve {base} --enable-lora --max-lora-rank {needed} \\",
            "  --lora-modules merged=<this directory>",
            "```",
        ]
        if needed
        else [f"vLLM serves ranks up to {_VLLM_RANKS[-1]}; for it, merge again with a lower rank."]
    )
    return [
        "With PEFT:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        'model = PeftModel.from_pretrained(base, "<this directory>")',
        "```",
        "",
        *serving,
    ]


def _whole() -> list[str]:
    return [
        "As the base model; no adapter is needed.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("<this directory>")',
        "```",
    ]


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
