"""Adapters: LoRA factors in memory, and the PEFT format on disk."""

from langmerge_jax.adapters.adapter import Adapter, Factors, natural_order
from langmerge_jax.adapters.agreement import check_same_base, common_base
from langmerge_jax.adapters.reading import load_adapter
from langmerge_jax.adapters.writing import save_adapter, write_adapter

__all__ = [
    "Adapter",
    "Factors",
    "check_same_base",
    "common_base",
    "load_adapter",
    "natural_order",
    "save_adapter",
    "write_adapter",
]
