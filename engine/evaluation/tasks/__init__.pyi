from .detection import Detection as Detection
from .from_config import task_of as task_of
from .semantic import Semantic as Semantic
from .task import Task as Task
from .task import TaskEvaluation as TaskEvaluation
from .task import TaskScores as TaskScores
from .task import headline_text as headline_text
from .task import score_table as score_table
