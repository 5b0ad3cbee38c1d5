"""The recipe of the embedded checkpoint: `python -m server.recipes.mini` rebuilds it; README.md says how."""
