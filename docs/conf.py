"""Settings of Sphinx for `make docs`. The repository is the source folder, so that README and docs link each other."""

import re
from pathlib import Path

import sphinx.application

ROOT = Path(__file__).resolve().parent.parent

project = 'mmcasvit'
version = release = re.search(r"'(.+)'", (ROOT / 'mmcasvit/version.py').read_text())[1]
author = 'The mmcasvit contributors'
html_title = f'mmcasvit {release}'
root_doc = 'docs/index'
include_patterns = ['*.md', 'docs/**']
# Folders of the repository that are large, or hold Markdown of others. Sphinx does not enter them.
exclude_patterns = ['.*', 'build', 'data', 'dist', 'docs/_build', 'node_modules', 'outputs', 'tests', 'work_dirs']

extensions = ['myst_nb', 'autoapi.extension', 'sphinx.ext.napoleon', 'sphinx_copybutton']
templates_path = ['_templates']
html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_additional_pages = {'index': 'redirect.html'}  # the first page lies in docs/, as in the repository
html_copy_source = False
html_show_copyright = False
toc_object_entries_show_parents = 'hide'

# The slugs of headings are those of GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ['colon_fence']
# The notebook is shown as it was saved. A test runs it.
nb_execution_mode = 'off'
copybutton_exclude = '.linenos, .gp, .go'  # prompts and outputs

# The reference reads the source without importing it, so that the site needs neither PyTorch nor OpenMMLab.
autoapi_dirs = [str(ROOT / 'mmcasvit')]
autoapi_generate_api_docs = False  # docs/reference/api.md chooses
autoapi_add_toctree_entry = False
autoapi_python_class_content = 'class'
autoapi_options = ['members', 'undoc-members']
autodoc_typehints = 'signature'
napoleon_numpy_docstring = False
napoleon_custom_sections = ['Shape', ('Attributes', 'params_style')]
# Constants that are unpacked from one assignment, as in `STEP, VALIDATION = range(2)`.
suppress_warnings = ['autoapi.python_import_resolution']
maximum_signature_line_length = 88

linkcheck_timeout = 20
linkcheck_workers = 4


def add_contents(app: sphinx.application.Sphinx, docname: str, source: list[str]) -> None:
    """Make the contents of the sidebar from the links in each section of the first page."""
    if docname != root_doc:
        return
    first, *sections = re.split(r'^## ', source[0], flags=re.MULTILINE)
    for section in sections:
        entries = re.findall(r'^- \[(.+?)\]\((.+?)\)', section, re.MULTILINE)
        contents = '\n'.join(f'{title} <{Path(file).with_suffix("")}>' for title, file in entries)
        caption = section.splitlines()[0]
        first += f'## {section}\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{contents}\n```\n\n'
    source[0] = first


def setup(app: sphinx.application.Sphinx) -> None:
    app.connect('source-read', add_contents)
