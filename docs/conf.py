"""The manual's build: `make docs`."""

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

import generate  # noqa: E402

import diffjax  # noqa: E402

generate.write()

project = "diffjax"
author = "the authors of diffjax"
copyright = "the authors of diffjax, Apache-2.0"
version = release = diffjax.__version__

extensions = [
    "myst_nb",
    "references",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Pages are Markdown; those with `file_format: mystnb` at their top are executed, and kept in a
# cache outside of the source, so that an unchanged page is not executed again. Notebooks show what
# they were stored with.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "docs" / "executed")
nb_execution_excludepatterns = ["notebooks/*.ipynb"]
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True


add_module_names = False
autodoc_member_order = "bysource"
highlight_language = "text"
maximum_signature_line_length = 72
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
smartquotes = False  # --flags stay flags
nitpicky = True


html_theme = "sphinx_book_theme"
html_title = "diffjax"
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# MathJax is copied into the page, which so needs no network. Its SVG output needs no font files.
_mathjax = find_spec("mathjax").submodule_search_locations[0]
html_static_path = ["manual.css", str(Path(_mathjax) / "static" / "mathjax" / "es5" / "tex-svg.js")]
html_css_files = ["manual.css"]
mathjax_path = "tex-svg.js"
