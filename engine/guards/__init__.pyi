from .checks import check_run as check_run
from .secret_values import refuse_environment as refuse_environment
from .setting_types import check_settings as check_settings
from .settings import as_list as as_list
from .settings import plain as plain
from .settings import replaced as replaced
