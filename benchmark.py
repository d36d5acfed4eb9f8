"""The attention operator beside its alternatives, its tuning, and the paper's complexity tables.

python benchmark.py                          every implementation, side by side, checked before it is timed
python benchmark.py mode=tune                search tile sizes on this GPU, write kernels/configs/<gpu>.json
python benchmark.py mode=complexity          added GFLOPs and memory, as the paper's Tables 2 and 5
"""

import hydra
import torch
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if cfg.mode == "compare":
        from engine.benchmark_compare import compare

        on_gpu = device.type == "cuda"
        dtype = getattr(torch, cfg.dtype or ("bfloat16" if on_gpu else "float32"))
        shape = list(cfg.shape or ([8, 97, 97] if on_gpu else [1, 17, 33]))
        print(compare(cfg, device, dtype, shape))
    elif cfg.mode == "tune":
        from engine.benchmark_tune import tune

        print(tune(cfg, device))
    elif cfg.mode == "complexity":
        from engine.benchmark_complexity import complexity

        print(complexity(cfg, device))
    else:
        raise ValueError(f"mode {cfg.mode!r} is unknown: choose one of compare, tune, complexity")


if __name__ == "__main__":
    main()
