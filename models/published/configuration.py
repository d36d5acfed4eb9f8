"""Settings of mmsegmentation's networks that the configuration in a checkpoint contains but its tensors do not show."""

import re
from typing import NamedTuple

# Settings that change the computation but not the tensors, with the values that the imported network has.
_SUPPORTED = {
    "dilations": ("(1,1,2,4)", "(1,12,24,36)"),  # of the backbone and of DeepLabv3's pyramid
    "dilation": ("1",),
    "contract_dilation": ("True",),
    "multi_grid": ("None", "(1,1,1)"),
    "style": ("'pytorch'",),
    "pool_scales": ("(1,2,3,6)",),
    "use_scale": ("True",),
    "mode": ("'embedded_gaussian'",),
    "to_rgb": ("True",),
    "bgr_to_rgb": ("True",),
}
_LAYERS = {"act_cfg": ("type", ("'ReLU'",)), "norm_cfg": ("eps", ("1e-05", "1e-5", "0.00001"))}  # in dict(...)
_OTHER_MODES = ("'gaussian'", "'dot_product'", "'concatenation'")  # of the non-local block
_VALUE = r"(\([^()]*\)|\[[^\[\]]*\]|'[^']*'|[\w.+-]+)"


class Settings(NamedTuple):
    """Training settings of a published network; None for those that are unknown.

    Attributes:
        align_corners: whether bilinear upsampling aligns corners.
        crop: size of the training crops, (H, W) in pixels.
        recurrence: number of loops R of a criss-cross head.
        mean, std: statistics of the RGB images, for pixels in [0, 255].
    """

    align_corners: bool
    crop: tuple[int, int] | None
    recurrence: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def settings(config: str, name: str) -> Settings:
    """Read the settings of a checkpoint.

    Published files contain the source of their configuration. Without it, the crop and align_corners are inferred from
    the file name: only mmsegmentation's networks trained on crops of 769x769 use align_corners.

    Args:
        config: source of the configuration; "" if the file has none.
        name: the file name.

    Raises:
        ValueError: the network differs from this project's in a setting that cannot be inferred from the weights, such
            as its output stride.
    """
    _check(config, name)
    named = re.search(r"(?<!\d)(\d{3,4})x(\d{3,4})(?!\d)", name)
    size = _tuple(config, "crop_size") or (named.groups() if named else ())
    crop = (int(size[0]), int(size[1])) if len(size) == 2 else None
    aligned = set(_values(config, "align_corners")) & {"True", "False"}
    recurrence = next((int(value) for value in _values(config, "recurrence") if value.isdecimal()), None)
    return Settings(
        aligned == {"True"} if aligned else crop == (769, 769),
        crop,
        recurrence,
        _tuple(config, "mean"),
        _tuple(config, "std"),
    )


def _check(config: str, name: str) -> None:
    """Raise ValueError if a setting has a value that the imported network cannot have."""
    strides = _values(config, "strides")
    if set(strides) - {"(1,2,1,1)"} if strides else re.search(r"-d(16|32)[_-]", name):
        raise ValueError("it was trained with output stride 16 or 32: only output stride 8 can be imported")
    for key, supported in _SUPPORTED.items():
        values = _values(config, key)
        if key == "contract_dilation" and not values and _values(config, "dilations"):
            values = ["False"]  # mmsegmentation's default
        if key == "mode":  # also a setting of the evaluation
            values = [value for value in values if value in _OTHER_MODES]
        _check_values(key, values, supported)
    for layer, (key, supported) in _LAYERS.items():
        for options in re.findall(rf"\b{layer}\s*=\s*dict\(([^()]*)\)", config):
            _check_values(f"{layer}.{key}", _values(options, key), supported)
    for key in ("mean", "std"):
        if "None" in _values(config, key) and _tuple(config, key) is None:
            raise ValueError(f"it was trained with {key}=None: only numbers, one per channel, can be imported")


def _check_values(key: str, values: list[str], supported: tuple[str, ...]) -> None:
    """Raise ValueError unless all values of ``key`` are supported."""
    for value in values:
        if value not in supported:
            raise ValueError(f"it was trained with {key}={value}: only {' or '.join(supported)} can be imported")


def _values(config: str, key: str) -> list[str]:
    """Return all values assigned to ``key`` in the source of a configuration, without spaces and as tuples."""
    values: list[str] = re.findall(rf"\b{key}\s*=\s*{_VALUE}", config)
    return [re.sub(r"\s|,\s*(?=\))", "", value.replace("[", "(").replace("]", ")")) for value in values]


def _tuple(config: str, key: str) -> tuple[float, ...] | None:
    """Return the first tuple or list of numbers assigned to ``key``, or None."""
    number = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
    matches = (re.fullmatch(rf"\(({number}(,{number})*)\)", value) for value in _values(config, key))
    return next((tuple(float(part) for part in match[1].split(",")) for match in matches if match), None)
