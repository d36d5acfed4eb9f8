from .arguments import accepted as accepted
from .arguments import check_overrides as check_overrides
