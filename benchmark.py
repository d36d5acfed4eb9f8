"""Benchmark the attention operator, its kernels, whole networks and the input pipeline.

python benchmark.py                          verify and time every implementation of the operator side by side
python benchmark.py shape=[4,64,64]          the same at another shape; docs/kernels.md explains the table
python benchmark.py framework=jax            the same in JAX, under jit
python benchmark.py mode=tune                search for tile sizes on this GPU and write kernels/configs/<gpu>.json
python benchmark.py mode=race                time kernels on trial, alternating with those in use, on a Hopper GPU
python benchmark.py mode=compile             precompile the kernel launches of the GPU tests in parallel
python benchmark.py mode=gpu output=DIR      run everything that needs a GPU, as independent steps
python benchmark.py mode=complexity          report added GFLOPs and memory, as in the paper's Tables 2 and 5
python benchmark.py mode=zoo                 measure every network: parameters, GFLOPs, memory, images/s
python benchmark.py mode=train               time full training iterations of ccnet, fcn and nonlocal
python benchmark.py mode=backbones           compare every JAX backbone with timm's, with random weights
python benchmark.py mode=input               measure the input pipeline, in images/s per core, against other projects'
"""

from omegaconf import DictConfig

from ccnet import benchmarks
from ccnet.engine import runtime
from ccnet.engine.commands.entry_point import entry_point

# Mode -> function in `benchmarks`; its module is imported on first use.
_MODES = {
    "compare": "compare_operators",
    "tune": "tune_kernels",
    "race": "race_variants",
    "compile": "compile_ahead",
    "gpu": "run_session",
    "complexity": "count_complexity",
    "zoo": "measure_zoo",
    "train": "time_training",
    "backbones": "compare_backbones",
    "input": "time_input",
}


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    """Run one mode and print its table."""
    if config.mode not in _MODES:
        raise ValueError(f"mode is {config.mode!r}: choose one of {', '.join(_MODES)}")
    try:
        run = getattr(benchmarks, _MODES[config.mode])
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ValueError(f"mode={config.mode} needs triton, which torch only installs on Linux") from error
    print(run(config, runtime.choose_device(config.device)))


if __name__ == "__main__":
    import ccnet.benchmark  # so that launchers pickle `main` by reference: see entry_point

    ccnet.benchmark.main()
