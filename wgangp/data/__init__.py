"""What the critic compares with: endless, seekable streams of points.

Every data set has .shape, the shape of one point, .span, the range (low, high) in which its points are drawn, and

    batch(k, size, seed, split="train", purpose="data") -> (x, y)     points (size, *shape), labels (size,) or None

Batch k of a split ("train" or "heldout") is a function of (k, size, seed, purpose), so a stream can be entered
anywhere, and a report does not see the batches of the training. Mixtures of Gaussians also have .centres (M, 2) and
.sd; sets that are read from files have .fingerprint, which tells one set from another.
"""
