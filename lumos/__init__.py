"""lumos: pretraining of token-based autoregressive video models in JAX.

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

__version__ = "0.1.0"
