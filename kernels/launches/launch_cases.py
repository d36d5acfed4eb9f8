"""The launches of a call with the dtypes of their pointers, as torch and JAX issue them.

Triton specialises a kernel on these dtypes and on which pointers are None. Both frameworks pass the same kinds of
arguments, as ``tests/kernels/test_launch_cases.py`` checks; for JAX, Triton emits an older PTX version. Like
``plan.py``, this module is pure arithmetic without torch, jax or triton.
"""

from typing import NamedTuple

from . import plan


class Case(NamedTuple):
    """A launch and everything else that its compiled code depends on.

    Attributes:
        kernel: "forward" or "backward".
        launch: the planned launch.
        pointers: dtype of each pointer by name, such as "float16"; None where no array is passed.
        descriptors: dtype and block of each tensor descriptor by name; None where none is passed.
        ptx_version: PTX version that JAX requests, such as 85; None for Triton's default, which torch uses.
        small: whether the storage of every array is below 2 GiB, on which Triton specialises for AMD GPUs.
    """

    kernel: str
    launch: plan.Launch
    pointers: dict[str, str | None]
    descriptors: dict[str, tuple[str, tuple[int, ...]] | None]
    ptx_version: int | None = None
    small: bool = False


def forward_cases(
    problem: plan.Problem, device: plan.Device, residual: str | None = None, save_out: bool = True
) -> list[Case]:
    """Return the forward pass's cases, one per axis.

    Args:
        problem: the call.
        device: the GPU it runs on.
        residual: dtype of the residual, if the call has one.
        save_out: whether a backward pass will read the attention's output.
    """
    dtype = problem.dtype
    one_dtype = residual in (None, dtype) and (not save_out or plan.kept_dtype(dtype) == dtype)
    problem = problem._replace(aligned=problem.aligned and one_dtype)
    cases: list[Case] = []
    for launch in plan.forward_launches(problem, device, residual is not None, save_out):
        fused = launch.constants["HAS_RESIDUAL"]
        pointers = {
            **dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), dtype),
            "out_ptr": plan.kept_dtype(dtype) if save_out else dtype,
            "stats_ptr": "float32",
            "previous_stats_ptr": "float32" if launch.constants["HAS_PREVIOUS"] else None,
            "residual_ptr": residual if fused else None,
            "gamma_ptr": "float32" if fused else None,
            "result_ptr": residual if fused else None,
        }
        cases.append(Case("forward", launch, pointers, _forward_descriptors(launch, pointers)))
    return cases


def _forward_descriptors(
    launch: plan.Launch, pointers: dict[str, str | None]
) -> dict[str, tuple[str, tuple[int, ...]] | None]:
    tile = launch.tile
    rows = {"value": tile.block_n, "out": tile.block_m, "residual": tile.block_m, "result": tile.block_m}
    dtypes = {name: pointers[f"{name}_ptr"] if tile.descriptors else None for name in rows}
    return {
        f"{name}_desc": None if dtype is None else (dtype, (1, rows[name], tile.block_c))
        for name, dtype in dtypes.items()
    }


def backward_cases(
    problem: plan.Problem, device: plan.Device, has_gamma: bool = False, joined: bool = False
) -> list[Case]:
    """Return the backward pass's cases, one per axis; see :func:`ccnet.kernels.launches.plan.backward_launches`."""
    dtype = problem.dtype
    launches = plan.backward_launches(problem, device, has_gamma, joined)
    gradients = ("dquery_ptr", "dkey_ptr", "dvalue_ptr")
    wide = zip(gradients, plan.backward_partials(launches), strict=True)
    pointers = {
        **dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "grad_ptr", *gradients), dtype),
        "out_ptr": plan.kept_dtype(dtype),
        "stats_ptr": "float32",
        "gamma_ptr": "float32" if has_gamma else None,
        "delta_ptr": "float32",
        **{f"partial_{name}": "float32" if is_wide else dtype for name, is_wide in wide},
    }
    return [Case("backward", launch, pointers, {}) for launch in launches]


def for_jax(case: Case, capability: tuple[int, int]) -> Case:
    """Return the case as JAX compiles it for a compute capability."""
    return case._replace(ptx_version=plan.PTX_VERSIONS.get(capability))
