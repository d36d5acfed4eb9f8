"""Types and bounds of the options that only commands other than train.py have."""

from ..guards.setting_types import Bounds

_MOST = 2**31 - 1
_SIZE = tuple[int, int]  # (H, W)
_SHAPE = tuple[int, int] | tuple[int, int, int] | tuple[int, int, int, int]  # (N, *S): one to three spatial axes

OPTION_BOUNDS: dict[str, Bounds] = {
    # app.py
    "port": (int, 0, 65535, True),  # null: Gradio's first free one
    "max_upload_mb": (float, 1e-3, 1e6, False),
    "max_megapixels": (float, 1e-3, 1e6, False),
    # check_data.py
    "samples": (int, 0, _MOST, False),  # 0: no figure
    # evaluate.py
    "save_predictions": (bool, 0, 1, False),
    "submission": (bool, 0, 1, False),
    # predict.py
    "logits": (bool, 0, 1, False),
    "compare_rows": (int, 0, _MOST, False),  # 0: no comparison
    # publish.py
    "half": (bool, 0, 1, False),
    "most_lost": (float, -100, 100, False),  # below 0: float16 must score higher
    # benchmark.py
    "shape": (_SHAPE, 1, _MOST, True),
    "query_channels": (int, 1, _MOST, False),
    "value_channels": (int, 1, _MOST, False),
    "repeats": (int, 1, _MOST, False),
    "cache_mib": (float, 0, 1e6, False),
    "tune.processes": (int, 1, 1024, True),
    "tune.compile_seconds": (float, 1, 1e6, False),
    "tune.minutes": (float, 0, 1e6, False),
    "gpu.minutes": (float, 0, 1e6, False),
    "complexity.crop": (_SIZE, 1, _MOST, False),
    "complexity.output_stride": (int, 1, 32, False),
    "zoo.num_classes": (int, 1, _MOST, False),
    "zoo.size": (_SIZE, 1, _MOST, False),
    "zoo.timed_size": (_SIZE, 1, _MOST, False),
    "zoo.repeats": (int, 1, _MOST, False),
    "train.rounds": (int, 1, _MOST, False),
    "train.warmup": (int, 0, _MOST, False),
    "train.iterations": (int, 1, _MOST, False),
    "backbones.size": (_SIZE, 1, _MOST, False),
    "backbones.max_parameters_m": (float, 0, 1e6, False),
}
