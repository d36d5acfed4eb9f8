"""The linear rule: the learning rate follows the batch size (Goyal et al., 2017, arXiv:1706.02677)."""

from omegaconf import DictConfig, OmegaConf

from ...guards.settings import replaced
from ...runtime.launchers import is_first


def with_linear_rule(config: DictConfig) -> DictConfig:
    """Return the configuration, with ``recipe.lr`` scaled to the batch size if ``recipe.base_batch_size`` is set.

    A scaled learning rate is printed, and ``recipe.base_batch_size`` becomes the batch size. A run resumed with
    ``resume=FOLDER`` keeps its learning rate.
    """
    base, batch = config.recipe.get("base_batch_size"), config.recipe.batch_size
    if base in (None, batch) or config.resume not in (None, "auto"):
        return config
    rate = config.recipe.lr * batch / base
    if is_first():
        print(
            f"learning rate {rate:g}: recipe.lr={config.recipe.lr:g} for batches of {base} (recipe.base_batch_size), "
            f"times {batch}/{base}"
        )
    scaled = replaced(config)
    OmegaConf.update(scaled, "recipe.lr", rate)
    OmegaConf.update(scaled, "recipe.base_batch_size", batch)
    return scaled
