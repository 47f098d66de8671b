"""A page to look at trained models with: `python -m diffjax.playground --workdir=runs/digits`."""
