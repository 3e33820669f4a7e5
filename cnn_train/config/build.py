"""Build what a node's `_target_` names: the one door to Hydra's instantiate."""

from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cnn_train.config.schema import first_line
from cnn_train.errors import ConfigError

if TYPE_CHECKING:
    from cnn_train.layers.factory import LayerFactory


def build(node: Any, **arguments: Any) -> Any:
    """Call what a node's `_target_` names, with its settings and `arguments`; the one door to Hydra's instantiate.

    A null node gives None. A node with `_partial_: true` gives the callable. Raises ConfigError, also for a ValueError
    of the builder, whose message is the user's answer.
    """
    if node is None:
        return None
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = node.get("_target_")
    try:
        # Arguments stay outside of instantiate: OmegaConf would turn a dataclass such as LayerFactory into a config.
        builder = instantiate(node, _partial_=True, _convert_="all")
        if node.get("_partial_"):
            # Hydra's own kind of partial would hide the settings from whoever asks for them.
            return partial(builder.func, *builder.args, **{**builder.keywords, **arguments})
        return builder(**arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"cannot build {target}: {first_line(cause or error)}") from error
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigError(f"cannot build {target}: {first_line(error)}") from error
    except ValueError as error:
        if isinstance(error, ConfigError) or type(error) is not ValueError:
            raise
        raise ConfigError(f"{target}: {first_line(error)}") from error


def build_layers(config: DictConfig) -> "LayerFactory":
    """The chosen norm, activation, pooling, upsampling and initializer, as networks take them."""
    from cnn_train.layers.factory import LayerFactory

    return LayerFactory(
        norm_layer=build(config.norm),
        act_layer=build(config.act),
        pool_layer=build(config.pool),
        global_pool_layer=build(config.global_pool),
        upsample_layer=build(config.upsample),
        initializer=build(config.init),
    )
