from .results import describe_again as describe_again
from .results import finished_score as finished_score
from .results import is_exhausted as is_exhausted
from .results import set_aside_result as set_aside_result
from .results import sweep_name as sweep_name
from .results import write_result as write_result
