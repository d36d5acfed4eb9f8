from .compare import compare_operators as compare_operators
from .complexity import count_complexity as count_complexity
from .gpu_session import run_session as run_session
from .input_pipeline import time_input as time_input
from .training_step import time_training as time_training
from .tuning.tune import tune_kernels as tune_kernels
from .tuning.warm_cache import compile_ahead as compile_ahead
from .zoo import measure_zoo as measure_zoo
