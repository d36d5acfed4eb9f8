from .continuation import continued as continued
from .continuation import identify as identify
from .identity import Identity as Identity
from .identity import fingerprint as fingerprint
from .start import find_start as find_start
from .start import preview as preview
