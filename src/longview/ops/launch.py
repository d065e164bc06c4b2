# mypy: disable-error-code="no-untyped-call"
"""Launching a kernel again without looking at every argument again.

Triton looks at the type and alignment of each argument on every call, to find the kernel it compiled for them, and
asks the driver about each pointer. Here a few microseconds of work follow each launch, and that search costs more. So
the caller names what a compiled kernel depends on, the kernel is found by that name, and pointers are given as numbers:
the first launch looked at them. What is launched one after the other for the same shapes is a `Recipe`, made once:
then little is left to do but to add where tensors lie.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

ALIGNED = 16  # bytes: wide loads begin at a multiple
TENSORS = frozenset((Tensor, Parameter))  # a set of types is asked faster than isinstance
KNOWN = "3.6."  # releases of Triton whose launcher is called without what it does around

Start = Callable[[tuple[int, int], int, Sequence[Any]], None]

_starts: dict[Hashable, Start] = {}


def alignment(tensor: Tensor) -> bool:
    """Return whether a tensor begins where wide loads can, which kernels are compiled for."""
    return tensor.data_ptr() % ALIGNED == 0


def launch(
    kernel: Any, grid: tuple[int, int], name: Hashable, args: tuple[Any, ...], constants: dict[str, Any], **options: int
) -> None:
    """Launch `kernel` with `args` and after them its constexpr `constants`, in the order of its parameters.

    Args:
        kernel: a jitted function whose constexpr parameters come last.
        grid: programs.
        name: what else the compiled kernel depends on: dtypes and alignments of `args`.
        args: tensors, the first of them on the device of the launch or else `name` says which, and numbers; integers
            below 2^31 whose parameters are not specialised. All are on that device: only the first launch of a kernel
            looks.
        constants: the constexpr parameters.
        options: of the compiler.
    """
    device = args[0].get_device()
    key = (kernel.fn, device, name, *constants.values(), *options.values())
    start = _starts.get(key)
    if start is None:
        compiled = kernel[grid](*args, **constants, **options)
        if compiled is not None:  # the interpreter returns nothing, and is asked again each time
            _starts[key] = start_of(compiled)
        return
    plain = [arg.data_ptr() if type(arg) in TENSORS else arg for arg in args]
    start(grid, _stream(device), (*plain, *constants.values()))


class Step:
    """One launch of a recipe: what the kernel takes, which is pointers by name, numbers and constexpr parameters."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int],
        pointers: Sequence[str],
        numbers: Sequence[float],
        constants: dict[str, Any],
        **options: Any,
    ) -> None:
        self.kernel, self.grid, self.pointers = kernel, grid, pointers
        self.numbers, self.constants, self.options = numbers, constants, options
        self.rest = (*numbers, *constants.values())
        self.starts: dict[Hashable, Start] = {}


class Recipe:
    """Launches for tensors of certain shapes and dtypes, in their order, and buffers that these share.

    The buffers are places in one allocation, each fit for wide loads: to allocate many, and to view them, would cost as
    much as the launches.

    Attributes:
        bytes: of all buffers together.
        firsts: where each begins, and where the last ends under the name "".

    Args:
        inputs: names of the tensors that every run is given.
        buffers: dtype and number of values of each.
        steps: made of these names.
    """

    def __init__(
        self, inputs: Sequence[str], buffers: Mapping[str, tuple[torch.dtype, int]], steps: Sequence[Step]
    ) -> None:
        self.inputs, self.buffers, self.steps = inputs, buffers, steps
        self.firsts = firsts_of(buffers)
        self.bytes = self.firsts[""]
        self._offsets = [self.firsts[name] for name in buffers]
        places = {name: place for place, name in enumerate((*inputs, *buffers))}
        self._choose = [_chooser([places[name] for name in step.pointers]) for step in steps]

    def room(self, device: torch.device) -> Tensor:
        """Return memory for the buffers, (bytes,) uint8, which holds anything."""
        return torch.empty(self.bytes, dtype=torch.uint8, device=device)

    def buffer(self, room: Tensor, name: str) -> Tensor:
        """Return a buffer as a tensor, flat."""
        dtype, size = self.buffers[name]
        first = self.firsts[name]
        return room[first : first + size * dtype.itemsize].view(dtype)

    def run(self, room: Tensor, tensors: Sequence[Tensor], steps: slice = slice(None)) -> None:
        """Launch `steps` on contiguous tensors, which are the inputs."""
        device, base = room.get_device(), room.data_ptr()
        pointers = [tensor.data_ptr() for tensor in tensors]
        form: Hashable = device
        if functools.reduce(operator.or_, pointers, 0) % ALIGNED:
            form = (device, *[pointer % ALIGNED for pointer in pointers])
        pointers += [base + first for first in self._offsets]
        stream = _stream(device)
        for step, choose in zip(self.steps[steps], self._choose[steps], strict=True):
            start = step.starts.get(form) or self._first(step, room, tensors, form)
            if start is not None:
                start(step.grid, stream, choose(pointers) + step.rest)

    def _first(self, step: Step, room: Tensor, tensors: Sequence[Tensor], form: Hashable) -> Start | None:
        """Return what launches a step from now on; None where that had to be compiled, and was launched with it."""
        given = dict(zip(self.inputs, tensors, strict=True))
        args = [given[name] if name in given else self.buffer(room, name) for name in step.pointers]
        dtypes = tuple(arg.dtype for arg in args)
        name = (step.kernel.fn, form, dtypes, *step.constants.values(), *step.options.values())
        start = _starts.get(name)  # of another recipe, perhaps, whose kernel is the same
        if start is None:
            compiled = step.kernel[step.grid](*args, *step.numbers, **step.constants, **step.options)
            if compiled is not None:
                step.starts[form] = _starts[name] = start_of(compiled)
            return None
        step.starts[form] = start
        return start


def _chooser(places: Sequence[int]) -> Callable[[list[int]], tuple[int, ...]]:
    """Return what takes the pointers at `places`, of which there may be one or none."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda pointers: tuple(pointers[place] for place in places)


def firsts_of(buffers: Mapping[str, tuple[torch.dtype, int]]) -> dict[str, int]:
    """Return the byte at which each buffer begins, one after the other, and under the name "" where the last ends."""
    firsts, end = {}, 0
    for name, (dtype, size) in buffers.items():
        firsts[name] = end
        end += -(-size * dtype.itemsize // ALIGNED) * ALIGNED
    return firsts | {"": end}


def start_of(compiled: Any) -> Start:
    """Return what launches a compiled kernel: (grid, stream, all its arguments, pointers as numbers).

    Triton's own way makes a function, two lookups of the device and two calls of empty hooks on each launch.
    """
    import triton

    def as_triton_does(grid: tuple[int, int], stream: int, args: Sequence[Any]) -> None:
        compiled[(*grid, 1)](*args, stream=stream)

    launcher = compiled.run
    if not triton.__version__.startswith(KNOWN) or launcher.global_scratch_size or launcher.profile_scratch_size:
        return as_triton_does
    hooks = triton.knobs.runtime
    fixed = (compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None,
             compiled.packed_metadata, None, None, None)  # fmt: skip
    begin = launcher.launch

    def directly(grid: tuple[int, int], stream: int, args: Sequence[Any]) -> None:
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler wants to know
            as_triton_does(grid, stream, args)
        else:
            begin(*grid, 1, stream, *fixed, *args)

    return directly


def _stream(device: int) -> int:
    """Return the current stream of a GPU, as the driver knows it; of the CPU, where Triton interprets, none."""
    return torch._C._cuda_getCurrentRawStream(device) if device >= 0 else 0  # as Triton asks, without an object
