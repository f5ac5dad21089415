"""On PYTHONPATH, makes a Python in which gfm_hf is not installed, wherever it lies."""

import importlib.abc
import sys


class NotInstalled(importlib.abc.MetaPathFinder):
    """Stands before all other finders."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gfm_hf", "gfm_hf_cli"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, NotInstalled())
