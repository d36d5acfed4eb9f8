from .checks import check_channels as check_channels
from .class_weights import with_class_weights as with_class_weights
from .freezing import freeze as freeze
from .freezing import held_modules as held_modules
from .optimizer import make_optimizer as make_optimizer
from .optimizer import make_schedule as make_schedule
from .run_length import with_length as with_length
