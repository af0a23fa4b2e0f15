"""Modules of the published `langchain_timbr`, without the rest of its package.

The package's `__init__` imports language models, agents and their frameworks, but these modules need only `requests` and
`pytimbr_api`. This module replaces the package's `__init__` by an empty one; the client's own code is unchanged.
"""

import importlib
import importlib.util
import sys
import types


def kbclient():
    """The module `langchain_timbr.kbclient`."""
    return langchain_module("kbclient")


def langchain_module(name):
    """A module of `langchain_timbr`."""
    if "langchain_timbr" not in sys.modules:
        spec = importlib.util.find_spec("langchain_timbr")
        package = types.ModuleType("langchain_timbr")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["langchain_timbr"] = package
    return importlib.import_module(f"langchain_timbr.{name}")
