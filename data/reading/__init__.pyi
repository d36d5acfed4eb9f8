from .errors import UnreadableImage as UnreadableImage
from .file_lists import find_files as find_files
from .image_files import read_image as read_image
from .label_files import LabelReader as LabelReader
from .label_values import label_values as label_values
