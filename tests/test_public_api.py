"""`tune_ssl` itself: the names that scripts and methods from outside import, and what they cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tune_ssl


def test_every_public_name_is_there_and_nothing_else_is_made_up():
    assert all(getattr(tune_ssl, name) is not None for name in tune_ssl.__all__)
    assert set(tune_ssl.__all__) <= set(dir(tune_ssl))
    assert not hasattr(tune_ssl, "run_stury")


def test_type_checkers_see_each_name_where_it_comes_from():
    tree = ast.parse(Path(tune_ssl.__file__).read_text())
    checked, _ = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: tuple(alias.name for alias in node.names) for node in checked.body}
    assert seen == tune_ssl._HOMES
    assert sorted(name for names in seen.values() for name in names) == sorted(tune_ssl.__all__)


def test_importing_tune_ssl_loads_neither_torch_nor_ray():
    code = "import sys, tune_ssl; print({'torch', 'ray', 'optuna', 'pydantic'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
