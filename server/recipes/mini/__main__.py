"""Rebuilds the embedded checkpoint: `python -m server.recipes.mini --work FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from server.recipes.mini.install import install
from server.recipes.mini.recipe import Options, Recipe
from server.recipes.mini.stages import Progress, run_all


def main() -> None:
    """Runs the stages whose inputs changed."""
    parser = argparse.ArgumentParser(prog="python -m server.recipes.mini", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path(".recipe"), help="folder of results (default: .recipe)"
    )
    parser.add_argument(
        "--photographs", type=Path, default=Path(".recipe/photographs"), help="folder of the photographs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU (default: cpu)")
    parser.add_argument(
        "--threads", type=int, default=2, help="another number gives other last digits (default: 2)"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="train in half the time on a CPU with AVX512-BF16"
    )
    parser.add_argument(
        "--install", action="store_true", help="replace the embedded checkpoint and all that is made from it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    progress = Progress()
    options = Options(seed=arguments.seed, device=arguments.device, bfloat16=arguments.bfloat16)
    recipe = Recipe(options, arguments.work / "downloads", arguments.photographs, progress)
    folders = run_all(recipe.stages(), arguments.work, progress)
    if arguments.install:
        install(folders["checkpoint"])


if __name__ == "__main__":
    main()
