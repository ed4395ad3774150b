"""Sphinx: `sphinx-build -W docs docs/_build`."""

import l2l_jax

project = "l2l_jax"
copyright = "the l2l_jax authors"
version = release = l2l_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "l2l_jax"

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say shapes and dtypes
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
myst_heading_anchors = 3


def _skip_fields(app, what, name, obj, skip, options):
    """The fields of a NamedTuple stand in its docstring, under Attributes."""
    return skip or type(obj).__name__ == "_tuplegetter"


def _own_fields(app, what, name, obj, options, signature, annotation):
    """Without those that Flax gives every module."""
    own, flax, _ = (signature or "").partition(", parent=<")
    return (f"{own})", annotation) if flax else None


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-signature", _own_fields)
