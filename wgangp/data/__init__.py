"""Data sets: endless streams of samples that can be read from any position.

Every data set has .shape, the shape of one sample, .span, the range (low, high) in which its samples are drawn, and

    batch(k, size, seed, split="train", purpose="data") -> (x,) or (x, y)

where x are samples (size, *shape). Batch k of a split ("train" or "heldout") is a function of (k, size, seed, purpose):
a stream can be read from any position, and a report uses other batches than the training.

Images are scaled to the span of the generator if it has one (an attribute span, the range of its outputs).

A data set with labels also has .classes, their number. It yields labels y (size,) only if .labeled is True, which
runs.py sets if the networks have classes, too. .label_problem, if it is there and not empty, says why the labels
cannot be used. Mixtures of Gaussians have .centers (M, 2) and .sd. Data sets that are read from files have
.fingerprint, which identifies the set. Those of image_folder and text have .summary, one line for the user. Text, as
one-hot vectors (V, L), has .symbols, the V texts that the symbols stand for, and .ids: see text.py.
"""
