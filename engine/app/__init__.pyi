from .server import serving as serving
from .street_scene import street_scene as street_scene
from .viewer import Viewer as Viewer
