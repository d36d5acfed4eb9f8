from .compare import compare_operators as compare_operators
from .complexity import count_complexity as count_complexity
from .input_pipeline import time_input as time_input
from .training_step import time_training as time_training
from .tune import tune_kernels as tune_kernels
from .zoo import measure_zoo as measure_zoo
