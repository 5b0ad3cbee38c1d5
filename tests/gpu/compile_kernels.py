"""Compiles the server's Triton kernels for GPUs that need not be here, and prints the shared memory of each.

`python -m tests.gpu.compile_kernels` takes minutes; data types as arguments, such as `fp16`, limit it to
those. It must not run where TRITON_INTERPRET is set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import triton  # type: ignore[import-untyped]
from alignserve_server.model.runtimes.kernels import convolutions, passes
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]

_CAPABILITIES = (80, 89, 90, 120)  # A100, L4, H100, RTX PRO 6000
_DTYPES = ("fp16", "bf16", "fp32")
_FLOATS = {"sums", "squeezed", "gate", "scale", "offset"}  # float32, whatever the network's data type is
_MAPS = {"hidden", "output", "weight", "bias", "shortcut"}
_ALIGNED = {"channels", "out_channels", "units"}  # multiples of 16 in most layers
_SILU, _SIGMOID = 1, 2
_LARGEST, _WARPS = 128, 8  # of a matrix product's tile, and the warps of a program with the largest one


def _variants() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields kernels, and the arguments that are compiled into them."""
    tile = {"rows": 32, "columns": 64}
    finish = {"activation": _SILU, "has_scale": False, "has_gate": False, "has_shortcut": False, **tile}
    yield passes._finish, {**finish, "is_padded": False}
    yield passes._finish, {**finish, "is_padded": False, "has_gate": True}
    yield passes._finish, {**finish, "is_padded": True, "has_scale": True}
    yield passes._finish, {**finish, "is_padded": False, "has_shortcut": True}
    yield passes._partial_sums, {"activation": _SILU, "tiles": 16, **tile}
    yield passes._squeeze, {"activation": _SILU, "rows": 8, "columns": 128, "chunk_rows": 32}
    yield passes._excite, {"activation": _SIGMOID, "rows": 64, "columns": 32}
    geometry = {"activation": _SILU, "rows": 16, "columns": 64, "stride": 2}
    yield convolutions._depthwise, {**geometry, "side": 5, "tiles": 4}
    yield convolutions._stem, {**geometry, "side": 3}
    for side in (32, _LARGEST):
        for is_projection in (False, True):
            yield (
                convolutions._pointwise,
                {
                    "activation": 0 if is_projection else _SILU,
                    "has_gate": is_projection,
                    "has_shortcut": is_projection,
                    "rows": side,
                    "columns": side,
                    "depth": 64,
                    "is_interpreted": False,
                },
            )


def _compiled(kernel: Any, constants: dict[str, Any], dtype: str, capability: int) -> Any:
    constants = constants | ({"depth": 32} if dtype == "fp32" and "depth" in constants else {})
    names = [parameter.name for parameter in kernel.params]
    types = {name: _type(kernel, name, dtype) for name in names}
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # As at a launch with aligned tensors: without it, loads are not pipelined through shared memory.
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if name in _ALIGNED or types[name].startswith("*")
        },
    )
    warps = _WARPS if constants["rows"] == constants["columns"] == _LARGEST else 4
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def _type(kernel: Any, name: str, dtype: str) -> str:
    if kernel is convolutions._stem and name == "pixels":
        return "*u8"
    if name in _FLOATS or (kernel is passes._squeeze and name == "output"):
        return "*fp32"
    return f"*{dtype}" if name in _MAPS else "i32"


if __name__ == "__main__":
    for kernel, constants in _variants():
        for capability in _CAPABILITIES:
            for dtype in sys.argv[1:] or _DTYPES:
                shared = _compiled(kernel, constants, dtype, capability).metadata.shared
                print(kernel.__name__, f"sm_{capability}", dtype, shared)
