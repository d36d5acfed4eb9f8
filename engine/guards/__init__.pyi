from .checks import check_run as check_run
from .checks import checked_config as checked_config
from .secret_values import refuse_environment as refuse_environment
from .secret_values import refuse_secrets as refuse_secrets
from .setting_types import check_settings as check_settings
from .settings import plain as plain
from .settings import replaced as replaced
