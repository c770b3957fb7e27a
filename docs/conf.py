"""How Sphinx makes the documentation: ``sphinx-build -n -W --keep-going -b html docs docs/_build/html``."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "backends")]

project = "flowno"
author = copyright = "The flowno developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"flowno {release}"
highlight_language = "python"

autodoc_default_options = {"member-order": "bysource"}
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Cancellation", "notes_style")]
python_use_unqualified_type_names = True

# The build reads nothing from the network, so what is not flowno's has no page to point to. Nor have type variables,
# and a protocol that signatures name only to say "has a fileno()".
nitpick_ignore_regex = [
    (r"py:.*", r"(?!flowno).*"),
    (r"py:class", r"flowno\..*\.(T|T1|T2|T3|Timer|HasFileno)"),
]
