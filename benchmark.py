"""The attention operator beside its alternatives, its tuning, and the paper's complexity tables.

python benchmark.py                          every implementation, side by side, checked before it is timed
python benchmark.py framework=jax            the same in JAX, under jit
python benchmark.py mode=tune                search tile sizes on this GPU, write kernels/configs/<gpu>.json
python benchmark.py mode=complexity          added GFLOPs and memory, as the paper's Tables 2 and 5
python benchmark.py mode=zoo                 every network: parameters, GFLOPs, memory, images/s
python benchmark.py mode=train               whole training iterations of ccnet, fcn and nonlocal
python benchmark.py mode=input               images/s per core of the input pipeline at the Cityscapes recipe
"""

import hydra
import torch
from omegaconf import DictConfig

from ccnet.conf import CONF
from ccnet.engine.runtime.devices import choose_device
from ccnet.engine.sweeps.entry_point import entry_point

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="benchmark")
@entry_point
def main(config: DictConfig) -> None:
    """Run one mode and print its table."""
    device = choose_device(config.device)
    on_gpu = device.type == "cuda"
    if config.mode == "compare":
        from ccnet.benchmarks.compare import compare

        name = config.dtype or ("bfloat16" if on_gpu else "float32")
        if name not in _DTYPES:
            raise ValueError(f"dtype is {name!r}: choose one of {', '.join(_DTYPES)}")
        shape = list(config.shape or ([8, 97, 97] if on_gpu else [1, 17, 33]))
        if config.framework == "jax":
            from ccnet.benchmarks.compare_jax import compare as compare_in_jax

            print(compare_in_jax(config, _DTYPES[name], shape))
        else:
            print(compare(config, device, _DTYPES[name], shape))
    elif config.mode == "tune":
        from ccnet.benchmarks.tune import tune

        print(tune(config, device))
    elif config.mode == "complexity":
        from ccnet.benchmarks.complexity import complexity

        print(complexity(config, device))
    elif config.mode == "zoo":
        from ccnet.benchmarks.zoo import zoo

        print(zoo(config, device))
    elif config.mode == "train":
        from ccnet.benchmarks.training_step import train_speed

        print(train_speed(config, device))
    elif config.mode == "input":
        from ccnet.benchmarks.input_pipeline import input_speed

        print(input_speed(config))
    else:
        raise ValueError(f"mode is {config.mode!r}: choose one of compare, tune, complexity, zoo, train, input")


if __name__ == "__main__":
    main()
