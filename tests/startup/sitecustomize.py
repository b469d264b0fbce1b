"""Doors that tests start find no torch, as with most users: importing it takes seconds."""

import importlib.machinery
import sys


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)


if any(argument.startswith("langmerge_jax.") for argument in sys.orig_argv):
    sys.meta_path = [Finder if x is Finder.__base__ else x for x in sys.meta_path]
