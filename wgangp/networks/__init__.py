"""Generators and critics, layer by layer as in the paper and its released code. One file a family.

Every network is built for one shape of points, checks it, and is a function:
    generator: (B, latent_dim) -> (B, *shape), with .latent_dim
    critic:    (B, *shape) -> (B,)
"""
