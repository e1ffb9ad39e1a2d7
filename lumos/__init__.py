"""lumos: pretraining of token-based autoregressive video models in JAX.

    import lumos

    model = lumos.load("runs/transformer")                   # weights, text model and tokenizer
    video = model.generate(["a red circle moves left"]).videos[0]
    lumos.train("configs/demo.py:transformer", "runs/new", overrides={"train.num_steps": 2000})

The names below are what scripts may rely on; all other modules may change. Nothing is imported before it is used.
Import lumos before JAX compiles anything: it switches off a library whose sums are wrong on CPUs (`lumos.runtime.xla_flags`).

Shape legend. Tensor names end in the letters of their axes, outermost first:

    B  batch (clips or sequences)       L  sequence length
    T  latent frames                    H  latent rows          W  latent columns
    F  pixel frames                     Y  pixel rows           X  pixel columns
    D  model dimension                  M  mlp dimension        V  vocabulary
    N  query heads                      K  key/value heads      G  query heads per kv head
    A  head dimension                   S  cache slots          C  channels
    Q  queries of the current call

So `x_BLD` is a batch of sequences of model vectors and `q_BLNA` its queries. `num_*` counts things,
`*_dim` is the size of a tensor axis, `*_axis` names a mesh axis. A *step* is one finished update, counted
from 0; a *process* is one JAX process; a *device* is one accelerator (or one CPU "device").
"""

import importlib
from typing import TYPE_CHECKING, Any

from lumos.runtime.xla_flags import avoid_ynnpack

if TYPE_CHECKING:
    from lumos import data as data
    from lumos.api import load as load
    from lumos.api import load_config as load_config
    from lumos.api import load_tokenizer as load_tokenizer
    from lumos.api import make_env as make_env
    from lumos.api import train as train
    from lumos.config import Config as Config
    from lumos.errors import Preempted as Preempted
    from lumos.errors import UserError as UserError
    from lumos.generation.session import Session as Session
    from lumos.tokenizers.pretrained import Tokenizer as Tokenizer
    from lumos.trained import Model as Model

__version__ = "0.1.0"
avoid_ynnpack()

# Name -> module that has it. Importing lumos must not import JAX, which takes a second.
_PUBLIC = {
    "load": "lumos.api",
    "load_config": "lumos.api",
    "load_tokenizer": "lumos.api",
    "make_env": "lumos.api",
    "train": "lumos.api",
    "data": "lumos.data",
    "Config": "lumos.config",
    "Model": "lumos.trained",
    "Preempted": "lumos.errors",
    "Session": "lumos.generation.session",
    "Tokenizer": "lumos.tokenizers.pretrained",
    "UserError": "lumos.errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lumos' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"lumos.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
