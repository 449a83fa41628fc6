"""Generators and critics, layer by layer as in the paper and its released code. One file per family.

Every network is built for one shape of samples, checks this shape, and is a function:

    generator: (z (B, latent_dim), *y) -> samples (B, *shape), with the attribute latent_dim
    critic:    (x (B, *shape), *y) -> scores (B,)

A network that takes labels y (B,) has the attribute classes, their number. A critic whose score does not depend on
them can be called without them, and has the attribute score_takes_labels = False: its slopes are those of D(x).

For a loss that needs more than scores, a critic takes keyword arguments, for example logits=True -> (scores (B,),
logits (B, classes)).
"""
