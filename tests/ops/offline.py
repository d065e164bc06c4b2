"""Compile shipped kernels for Hopper (sm_90) on a machine without a GPU, and read what the assembler reports.

As a program (`python -m tests.ops.offline MODULE [NAME]`) it compiles every `Shipped` that MODULE's `shipped()`
returns, or those whose name begins with NAME, and prints a JSON list; `compiled(MODULE)` runs that in a process of its
own, because a process that has Triton's interpreter on cannot compile.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHARED = 232448  # bytes of shared memory that a program may take on Hopper


def compiled(module: str, name: str = "") -> list[dict[str, Any]]:
    """Return a row for each shipped configuration of `module` whose name begins with `name`, of which there is one.

    A row has name, registers, stack, shared, wgmma.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.offline", module, name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert rows, f"{module} ships nothing that is called {name!r}"
    too_large = [row for row in rows if row["shared"] > SHARED]
    assert not too_large, too_large
    return rows


def _compile(
    name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> dict[str, Any]:
    """Compile as a launch would: pointers, and integers written `i32:16`, are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    given = [signature.get(argument, "constexpr") for argument in kernel.arg_names]
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, kind in enumerate(given)
        if kind.startswith("*") or kind.endswith(":16")
    }
    types = dict(zip(kernel.arg_names, (kind.removesuffix(":16") for kind in given), strict=True))
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, types, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    usage = {**_usage(built.asm["cubin"]), "shared": built.metadata.shared}
    return {"name": name, **usage, "wgmma": built.asm["ptx"].count("wgmma.mma_async")}


def _usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = next((Path(triton.__file__).parent / "backends/nvidia/bin").glob("cuobjdump*"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "stack": found["STACK"] + found["LOCAL"]}


if __name__ == "__main__":
    found = importlib.import_module(sys.argv[1]).shipped()
    rows = [_compile(*one) for one in found if one[0].startswith("".join(sys.argv[2:]))]
    print(json.dumps(rows))  # noqa: T201
