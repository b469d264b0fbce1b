"""Adapters: LoRA factors in memory, and the PEFT format on disk."""

from langmerge_jax.adapters.adapter import Adapter, Factors, check_same_base, natural_order
from langmerge_jax.adapters.peft import load_adapter, save_adapter

__all__ = [
    "Adapter",
    "Factors",
    "check_same_base",
    "load_adapter",
    "natural_order",
    "save_adapter",
]
