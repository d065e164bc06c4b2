"""Where FP8 pays: a device that has it, and shapes for which it was measured to be faster."""

from __future__ import annotations

import torch

from longview.ops.kernels import why_no_triton

LEAST_CAPABILITY = (8, 9)  # Ada: the first with E4M3 products
MULTIPLE = 16  # the copy engine moves 16 bytes at least
PIPELINE_TRITON = "3.6."
WIDEST_ROW = 8192  # columns of a row that one program holds in registers

# Inner columns → the fewest rows at which quantising and multiplying were measured to beat bfloat16 on one H200, before
# attention and behind it (`layers` and `where_it_pays` of `longview bench quantisation`; as CUDA graphs). What was not
# measured counts as not paying.
LEAST_ROWS = {512: 16384, 1024: 16384, 2048: 16384}


def why_no_fp8(device: torch.device | str, width: int) -> str | None:
    """Return why FP8 kernels cannot run on `device` with rows of `width` columns, in a sentence, or None."""
    reason = why_no_triton(device)
    if reason is not None:
        return reason
    if torch.device(device).type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return (
                f"this GPU has compute capability {capability[0]}.{capability[1]}; E4M3 products need "
                f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (Ada, Hopper)"
            )
    if width > WIDEST_ROW:
        return f"rows have {width} columns; the kernels hold whole rows of up to {WIDEST_ROW}"
    return None


def why_no_pipeline(device: torch.device | str) -> str | None:
    """Return why products run in their portable form on `device`, in a sentence, or None where Hopper's runs."""
    reason = why_no_triton(device)
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device) if torch.device(device).type == "cuda" else (0, 0)
    if capability[0] != 9:
        return (
            f"the pipeline is written for Hopper (9.0), and the device has capability {capability[0]}.{capability[1]}"
        )
    import triton

    installed = triton.__version__  # asking for the package's metadata would cost half a millisecond a product
    if not installed.startswith(PIPELINE_TRITON):
        return f"the pipeline is written in Gluon, which changes between versions, for Triton 3.6; here is {installed}"
    return None


def where_it_pays(device: torch.device | str) -> str:
    """Return in words where layers whose precision is `auto` have FP8 products on `device`.

    Example:
        >>> where_it_pays("cpu")
        'nowhere: FP8 products need a CUDA GPU, and the tensors are on cpu, where they are only emulated'
    """
    widths = [width for width in LEAST_ROWS if why_not_fp8(device, LEAST_ROWS[width], width, width) is None]
    if not widths:
        return f"nowhere: {why_not_fp8(device, max(LEAST_ROWS.values()), max(LEAST_ROWS), max(LEAST_ROWS))}"
    return ", ".join(f"width {width:,} from {LEAST_ROWS[width]:,} tokens" for width in widths)


def why_not_fp8(device: torch.device | str, rows: int, d_in: int, d_out: int) -> str | None:
    """Return why FP8 should be off for products (rows, d_in) x (d_in, d_out) on `device`, in a sentence, or None.

    It is off where it cannot run and where it was measured to be no faster than bfloat16.

    Example:
        >>> why_not_fp8("cpu", 131072, 1024, 1024)
        'Triton kernels need a CUDA GPU, and the tensors are on cpu'
    """
    if torch.device(device).type == "cpu":
        return "FP8 products need a CUDA GPU, and the tensors are on cpu, where they are only emulated"
    reason = why_no_fp8(device, d_in)
    if reason is not None:
        return reason
    if d_in % MULTIPLE or d_out % MULTIPLE:
        return f"the product is {d_in} x {d_out}; the kernels need multiples of {MULTIPLE}"
    measured = [width for width in LEAST_ROWS if width <= d_in]
    if not measured:
        least = min(LEAST_ROWS)
        return f"the inner width is {d_in}; below {least} FP8 has not been measured to be faster"
    least = LEAST_ROWS[max(measured)]
    if rows < least:
        return f"there are {rows} rows; at an inner width of {d_in} FP8 was measured to pay from {least} on"
    return None
