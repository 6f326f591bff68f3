"""The site: ``sphinx-build -W docs site``. Its pages are those that are read in the repository."""

import subprocess
import sys
from pathlib import Path

import backdoorbench_ext

HERE = Path(__file__).parent

project = "backdoorbench_ext"
author = "backdoorbench_ext contributors"
version = release = backdoorbench_ext.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = False
html_title = f"{project} {release}"
exclude_patterns = ["_build"]

myst_heading_anchors = 3
# the tutorial runs whenever the site is built: what it shows is what the code does
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
# progress bars of the tutorial
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"


def command_line(app: object) -> None:
    """Write the reference of the command line from its own help."""
    words = [sys.executable, "-m", "typer", "backdoorbench_ext.cli", "utils", "docs"]
    words += ["--name", "bbx", "--title", "Command line"]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    (HERE / "commands.md").write_text(text)


def setup(app: object) -> None:
    app.connect("builder-inited", command_line)  # type: ignore[attr-defined]
